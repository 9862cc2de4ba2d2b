#!/usr/bin/env python3
"""What LoRA adapters cost a full server: 16 requests at once on the base, on one adapter, and over four adapters.

Makes four random adapters of every projection for a Llama-like GGUF model (shapes from its metadata), serves it with all of
them, and measures completions of the same 16 prompts, in turn (base, one adapter, four), best of --rounds each.

  bench/lora_batch.py [--model PATH] [--rank 16] [--threads N] [--rounds 5] [--tokens 64]

Needs numpy alone. Without --model: smollm2, as `qiao pull smollm2` has it.
"""
import argparse
import http.client
import json
import os
import pathlib
import re
import struct
import subprocess
import tempfile
import threading
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
BINARY = os.environ.get("QIAO_BINARY", str(ROOT / "build" / "bin" / "qiao"))
CLIENTS = 16


def sizes_of(model):
    """The linear layers' shapes, as PEFT names them, and the number of layers."""
    described = json.loads(subprocess.run([BINARY, "inspect", "--json", model], check=True, capture_output=True).stdout)
    shapes = {tensor["name"]: tensor["shape"] for tensor in described["tensors"]}
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blk."))
    return {peft: shapes[f"blk.0.{gguf}.weight"] for peft, gguf in names.items()}, layers


def write_adapter(folder, modules, layers, rank, seed):
    random = np.random.default_rng(seed)
    header, data, at = {}, [], 0
    for layer in range(layers):
        for name, (rows, columns) in modules.items():
            for half, shape in (("lora_A", (rank, columns)), ("lora_B", (rows, rank))):
                values = (random.standard_normal(shape) * 0.02).astype("<f2").tobytes()
                header[f"base_model.model.model.layers.{layer}.{name}.{half}.weight"] = {
                    "dtype": "F16", "shape": list(shape), "data_offsets": [at, at + len(values)]}
                at += len(values)
                data.append(values)
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": [n.split(".")[1] for n in modules]}))


def complete(port, model, prompt, tokens):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(
        {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}))
    answer = json.loads(connection.getresponse().read())
    if answer["usage"]["completion_tokens"] != tokens:
        raise RuntimeError(f"{model}: {answer}")


def measure(port, models, tokens):
    """Generated tokens a second of all requests together."""
    threads = [threading.Thread(target=complete, args=(port, models[i % len(models)], f"Request number {i}: once upon", tokens))
               for i in range(CLIENTS)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return CLIENTS * tokens / (time.perf_counter() - begin)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF file (smollm2 where there is none)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    model = arguments.model
    if model is None:
        listed = json.loads(subprocess.run([BINARY, "list", "--json"], check=True, capture_output=True).stdout)
        model = next(entry["path"] for entry in listed if entry["name"] == "smollm2")
    modules, layers = sizes_of(model)
    with tempfile.TemporaryDirectory() as scratch:
        flags = []
        for i in range(4):
            write_adapter(pathlib.Path(scratch) / f"a{i}", modules, layers, arguments.rank, i)
            flags += ["--lora", f"a{i}={scratch}/a{i}"]
        server = subprocess.Popen([BINARY, "serve", "-m", model, "--alias", "base", "--port", "0", "-c", "512", "-q", "-t",
                                   str(arguments.threads), "--no-prefix-cache", *flags], stderr=subprocess.PIPE, text=True)
        port = int(re.search(r"http://[^:]+:(\d+)", server.stderr.readline())[1])
        threading.Thread(target=server.stderr.read, daemon=True).start()
        kinds = {"base": ["base"], "one adapter": ["a0"], "four adapters": ["a0", "a1", "a2", "a3"]}
        best = dict.fromkeys(kinds, 0.0)
        try:
            measure(port, ["base"], 4)
            for _ in range(arguments.rounds):
                for kind, models in kinds.items():
                    best[kind] = max(best[kind], measure(port, models, arguments.tokens))
        finally:
            server.terminate()
            server.wait(60)
    for kind, rate in best.items():
        print(f"{kind:14} {rate:8.1f} tokens/s  {rate / best['base']:.2f} × base  ({CLIENTS} requests, rank {arguments.rank})")


if __name__ == "__main__":
    main()
