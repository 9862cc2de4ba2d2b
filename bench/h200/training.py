"""Tokens/s of a training step on the GPU, by Qiao or by PyTorch: training.py SHAPE [--qiao PROGRAM] [--dtype bf16|fp8] [--batch N] [--micro-batch N] [--sequence N] [--small-states]

A step is --batch sequences of random tokens, computed --micro-batch at a time, in BF16 (or, by Qiao alone, FP8) over float32 masters, with AdamW and the gradient's norm clipped. --small-states is the recipe for
what would not fit otherwise: moments in BF16 and layers computed again on the way back; PyTorch then has weights and gradients in BF16, too. With --qiao, `qiao train pretrain --dry-run` times a
micro-batch and an update, from random weights. Without it PyTorch trains the same shape: autocast, torch.compile of a layer and of head with loss, fused attention, fused AdamW; the median of
three steps. Prints a JSON object. FLOP are 6 a parameter and token without the embedding's gather, and 6 L C S for the causal half of attention; what is computed again counts for nothing.
"""
import argparse
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F

from make_model import COMMON, SHAPES, tensors

HERE = pathlib.Path(__file__).resolve().parent


def flop_a_token(config, sequence):
    count = sum(math.prod(shape) for layer in (None, *range(config["num_hidden_layers"])) for _, shape in tensors(config, layer))
    if not config["tie_word_embeddings"]:
        count -= config["vocab_size"] * config["hidden_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    return 6 * count + 6 * config["num_hidden_layers"] * heads * sequence


def by_qiao(options, config):
    with tempfile.TemporaryDirectory() as place:
        init, rows = pathlib.Path(place) / "init", pathlib.Path(place) / "rows.jsonl"
        subprocess.run([sys.executable, str(HERE / "make_model.py"), options.shape, str(init), "--tokenizer", "-", "--no-weights"], check=True)
        generator = torch.Generator().manual_seed(1)
        with open(rows, "w", encoding="utf-8") as file:
            for _ in range(options.batch):
                row = torch.randint(config["vocab_size"], (options.sequence,), generator=generator)
                file.write(json.dumps({"tokens": row.tolist()}) + "\n")
        small = ["--adam-states", "bf16", "--recompute", "on"] if options.small_states else []
        command = [options.qiao, "train", "pretrain", "--init", str(init), "--data", str(rows), "--out", f"{place}/run", "--device", options.device, "--dtype", options.dtype, "--steps", "2", "--batch",
                   str(options.batch), "--micro-batch", str(options.micro_batch), "--seq", str(options.sequence), "--checkpoint-every", "0", "--dry-run", "--profile", *small]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        found = re.search(r"([\d.]+) tokens/s;", said)
        if done.returncode != 0 or not found:
            raise SystemExit(f"qiao train: exit code {done.returncode}: {said[-2000:]}")
        print(said, file=sys.stderr)
        return float(found[1])


class Layer(torch.nn.Module):
    def __init__(self, config, device, dtype):
        super().__init__()
        self.config = config
        h, g, d = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
        hidden, inner = config["hidden_size"], config["intermediate_size"]

        def matrix(rows, columns):
            return torch.nn.Parameter(torch.empty(rows, columns, device=device, dtype=dtype).normal_(0, 0.02))

        self.qkv, self.o = matrix((h + 2 * g) * d, hidden), matrix(hidden, h * d)
        self.gate_up, self.down = matrix(2 * inner, hidden), matrix(hidden, inner)
        self.norms = torch.nn.ParameterList(torch.nn.Parameter(torch.ones(hidden, device=device, dtype=dtype)) for _ in range(2))

    def forward(self, x, cos, sin):
        c = self.config
        h, g, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        batch, length, hidden = x.shape
        y = F.rms_norm(x, (hidden,), self.norms[0], c["rms_norm_eps"])
        q, k, v = F.linear(y, self.qkv).view(batch, length, h + 2 * g, d).transpose(1, 2).split((h, g, g), 1)

        def rotate(a):
            first, second = a.chunk(2, -1)
            return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(v.dtype)

        out = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + F.linear(out.transpose(1, 2).reshape(batch, length, h * d), self.o)
        y = F.rms_norm(x, (hidden,), self.norms[1], c["rms_norm_eps"])
        gate, up = F.linear(y, self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


def by_pytorch(options, config):
    from torch.utils.checkpoint import checkpoint

    device, dtype = options.device, torch.bfloat16 if options.small_states else torch.float32
    torch.manual_seed(1)
    layers = torch.nn.ModuleList(Layer(config, device, dtype) for _ in range(config["num_hidden_layers"]))
    outside = {name: torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype).normal_(0, 0.02)) for name, shape in tensors(config, None) if len(shape) == 2}
    embedding = outside["model.embed_tokens.weight"]
    head, norm = outside.get("lm_head.weight", embedding), torch.nn.Parameter(torch.ones(config["hidden_size"], device=device, dtype=dtype))
    parameters = [*layers.parameters(), *outside.values(), norm]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    half = config["head_dim"] // 2
    angle = torch.arange(options.sequence, device=device)[:, None] / config["rope_theta"] ** (torch.arange(half, device=device) / half)
    cos, sin = angle.cos(), angle.sin()
    tokens = torch.randint(config["vocab_size"], (options.batch, options.sequence), device=device)

    def loss_of(x, labels):
        logits = F.linear(F.rms_norm(x, (x.shape[-1],), norm, config["rms_norm_eps"]), head)
        return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())

    layer_of, end = torch.compile(Layer.forward, dynamic=False), torch.compile(loss_of, dynamic=False)
    parts = options.batch // options.micro_batch

    def step():
        for part in tokens.split(options.micro_batch):
            with torch.autocast(device, dtype=torch.bfloat16):
                x = F.embedding(part, embedding)
                for layer in layers:
                    x = checkpoint(layer_of, layer, x, cos, sin, use_reentrant=False) if options.small_states else layer_of(layer, x, cos, sin)
                loss = end(x, part) / parts
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()  # waits

    times = []
    for _ in range(5):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return options.batch * options.sequence / sorted(times[2:])[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=[name for name, config in SHAPES.items() if "num_experts" not in config])
    parser.add_argument("--qiao", help="the program; without it PyTorch is timed")
    parser.add_argument("--dtype", choices=["bf16", "fp8"], default="bf16", help="what Qiao computes in")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--sequence", type=int, default=1024)
    parser.add_argument("--small-states", action="store_true")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    options = parser.parse_args()
    if options.dtype == "fp8" and not options.qiao:
        parser.error("--dtype fp8 is Qiao's alone: PyTorch has no recipe of its own with scales for 128 numbers")
    config = COMMON | SHAPES[options.shape]
    rate = by_qiao(options, config) if options.qiao else by_pytorch(options, config)
    print(json.dumps({"what": "train", "model": options.shape, "sequences": options.batch, "tokens": options.sequence, "small_states": options.small_states, "dtype": options.dtype, "tokens_per_second": rate,
                      "flops": rate * flop_a_token(config, options.sequence)}))


if __name__ == "__main__":
    main()
