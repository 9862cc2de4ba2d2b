"""The same work as `qiao bench`, by PyTorch on the same GPU: a decoder of real dimensions with random weights in BF16.

usage: pytorch_peer.py SHAPE [--decode SEQUENCES:DEPTH …] [--prefill TOKENS …] [--upload FOLDER]

Decoding is torch.compile's layer (weights are arguments, so that all layers share it) over a static cache, all layers of
a step captured in one CUDA graph; attention is PyTorch's own choice of fused kernel over the cached keys and values.
Prefill is one sequence, a graph too, with causal fused attention. --upload reads the safetensors files of FOLDER through two pinned buffers into the GPU's
memory: how fast a model of that size could be there. Prints a JSON object a line. Needs torch.
"""
import argparse
import json
import pathlib
import time

import torch
import torch.nn.functional as F

from make_model import COMMON, SHAPES, tensors


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Model:
    def __init__(self, config):
        self.config = config
        generator = torch.Generator("cuda").manual_seed(1)

        def draw(shape):
            if len(shape) == 1:
                return torch.ones(shape, dtype=torch.bfloat16, device="cuda")
            return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_(0, 0.02, generator=generator)

        outside = {name: draw(shape) for name, shape in tensors(config, None)}
        self.embedding, self.norm = outside["model.embed_tokens.weight"], outside["model.norm.weight"]
        self.head = outside.get("lm_head.weight", self.embedding)
        self.layers = []
        for layer in range(config["num_hidden_layers"]):
            w = {name.split(".", 3)[3]: draw(shape) for name, shape in tensors(config, layer)}
            fused = {"qkv": torch.cat([w.pop(f"self_attn.{p}_proj.weight") for p in "qkv"]),
                     "gate_up": torch.cat([w.pop(f"mlp.{p}_proj.weight") for p in ("gate", "up")])}
            self.layers.append(w | fused)
        half = config["head_dim"] // 2
        self.inverse = 1.0 / config["rope_theta"] ** (torch.arange(half, device="cuda", dtype=torch.float32) / half)

    def rows(self, positions):
        angle = positions[:, None].float() * self.inverse
        return angle.cos().bfloat16(), angle.sin().bfloat16()

    def heads(self, x, w, cos, sin):
        """x [T, C] -> q [T, H, D], k, v [T, G, D]"""
        c = self.config
        h, g, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        x = F.rms_norm(x, (x.shape[-1],), w["input_layernorm.weight"], c["rms_norm_eps"])
        q, k, v = F.linear(x, w["qkv"]).view(-1, h + 2 * g, d).split((h, g, g), 1)
        if "self_attn.q_norm.weight" in w:
            q = F.rms_norm(q, (d,), w["self_attn.q_norm.weight"], c["rms_norm_eps"])
            k = F.rms_norm(k, (d,), w["self_attn.k_norm.weight"], c["rms_norm_eps"])
        return rotate(q, cos[:, None], sin[:, None]), rotate(k, cos[:, None], sin[:, None]), v

    def rest(self, x, heads, w):
        c = self.config
        x = x + F.linear(heads, w["self_attn.o_proj.weight"])
        y = F.rms_norm(x, (x.shape[-1],), w["post_attention_layernorm.weight"], c["rms_norm_eps"])
        gate, up = F.linear(y, w["gate_up"]).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, w["mlp.down_proj.weight"])

    def decode_layer(self, x, w, keys, values, cos, sin, position):
        """x [B, C]; keys, values [B, G, S, D], of which `position` + 1 are seen."""
        q, k, v = self.heads(x, w, cos, sin)
        keys[:, :, position] = k
        values[:, :, position] = v
        out = F.scaled_dot_product_attention(q[:, :, None], keys[:, :, :position + 1], values[:, :, :position + 1],
                                             enable_gqa=True)
        return self.rest(x, out.reshape(x.shape[0], -1), w)

    def prefill_layer(self, x, w, cos, sin):
        q, k, v = self.heads(x, w, cos, sin)
        out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None],
                                             is_causal=True, enable_gqa=True)
        return self.rest(x, out[0].transpose(0, 1).reshape(x.shape[0], -1), w)

    def logits(self, x):
        return F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, self.config["rms_norm_eps"]), self.head)


def timed(step, repetitions):
    """The median of a graph's replays, in seconds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # what is drawn there is read here
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    times = []
    for _ in range(repetitions + 2):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return sorted(times[2:])[repetitions // 2]


def upload(folder):
    """Bytes, and how many a second come from the files into the GPU's memory."""
    buffers = [torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    views, left = [memoryview(buffer.numpy()) for buffer in buffers], [torch.cuda.Event() for _ in buffers]
    to = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    begin, total, turn = time.perf_counter(), 0, 0
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while True:
                left[turn].synchronize()
                count = file.readinto(views[turn])
                if not count:
                    break
                to[:count].copy_(buffers[turn][:count], non_blocking=True)
                left[turn].record()
                total, turn = total + count, 1 - turn
    torch.cuda.synchronize()
    return total, total / (time.perf_counter() - begin)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--decode", nargs="*", default=[], metavar="SEQUENCES:DEPTH")
    parser.add_argument("--prefill", nargs="*", type=int, default=[], metavar="TOKENS")
    parser.add_argument("--upload", metavar="FOLDER")
    parser.add_argument("--repetitions", type=int, default=20)
    arguments = parser.parse_args()
    torch.manual_seed(1)
    config = COMMON | SHAPES[arguments.shape]
    if arguments.upload:
        total, rate = upload(arguments.upload)
        print(json.dumps({"what": "upload", "model": arguments.shape, "bytes": total, "bytes_per_second": rate}), flush=True)
    if config.get("num_experts"):
        raise SystemExit("mixtures of experts are not timed here")
    with torch.inference_mode():
        model = Model(config)
        layer = torch.compile(model.decode_layer, dynamic=False)
        for case in arguments.decode:
            sequences, depth = map(int, case.split(":"))
            shape = (sequences, config["num_key_value_heads"], depth + 1, config["head_dim"])
            caches = [(torch.randn(shape, dtype=torch.bfloat16, device="cuda"), torch.randn(shape, dtype=torch.bfloat16, device="cuda"))
                      for _ in model.layers]
            tokens = torch.randint(config["vocab_size"], (sequences,), device="cuda")
            cos, sin = model.rows(torch.full((sequences,), depth, device="cuda"))

            def step():
                x = F.embedding(tokens, model.embedding)
                for w, (keys, values) in zip(model.layers, caches):
                    x = layer(x, w, keys, values, cos, sin, depth)
                return model.logits(x)

            seconds = timed(step, arguments.repetitions)
            print(json.dumps({"what": "decode", "model": arguments.shape, "sequences": sequences, "depth": depth,
                              "tokens_per_second": sequences / seconds}), flush=True)
            del caches
        for count in arguments.prefill:
            tokens = torch.randint(config["vocab_size"], (count,), device="cuda")
            cos, sin = model.rows(torch.arange(count, device="cuda"))

            def step():
                x = F.embedding(tokens, model.embedding)
                for w in model.layers:
                    x = model.prefill_layer(x, w, cos, sin)
                return model.logits(x[-1:])

            seconds = timed(step, max(3, arguments.repetitions // 4))
            print(json.dumps({"what": "prefill", "model": arguments.shape, "tokens": count, "tokens_per_second": count / seconds}),
                  flush=True)


if __name__ == "__main__":
    main()
