#!/usr/bin/env python3
"""Tokens a second and peak memory of a training step: `qiao train` beside PyTorch, in turn, as ratios.

  bench/versus_pytorch.py                             Llama shapes of 15M, 50M and 135M
  bench/versus_pytorch.py --shapes 15M --rounds 3     one of them
  bench/versus_pytorch.py --modes eager-f32,compile-bf16

The same model, the same packed tokens (sequences of 512, one document each), AdamW, the gradient clipped, the same threads. PyTorch
runs Transformers' model (SDPA attention) eager and compiled, in float32 and in bfloat16 (autocast over float32 weights); Qiao runs --dtype f32
and bf16. A step's time is the median of --steps after a warm-up; memory is each process's largest resident set. FLOP are 6 a
parameter and token without the embedding's gather, and 12 L C S for attention (half of it masked away is not counted), as in PaLM's appendix B;
what is computed again counts for nothing. Shares are of the peaks that `qiao devices` measures.

Needs torch and transformers (`pip install torch transformers`).
"""
import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHAPES = {  # hidden, layers, heads, key/value heads, feed-forward, vocabulary
    "15M": (288, 6, 6, 6, 768, 32000),
    "50M": (512, 10, 8, 8, 1376, 32000),
    "135M": (576, 30, 9, 3, 1536, 49152),  # SmolLM2-135M's
}
MODES = ["eager-f32", "eager-bf16", "compile-f32", "compile-bf16"]


def make_model(shape, folder):
    """A directory to train from, random weights; how many numbers are multiplied with each token."""
    import torch
    import transformers
    hidden, layers, heads, kv_heads, inner, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())  # tied: the head's are the embedding's


def make_rows(shape, options, path):
    draw = random.Random(1)
    vocabulary = SHAPES[shape][-1]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(options.batch * 4):
            row = [draw.randrange(vocabulary) for _ in range(options.sequence)]
            file.write(json.dumps({"tokens": row}) + "\n")


def peer(options):
    """Run as a process of its own: PyTorch's steps, printed as JSON."""
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    kind, dtype = options.peer.split("-")
    model = transformers.LlamaForCausalLM.from_pretrained(options.init, attn_implementation="sdpa", dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rows = [json.loads(line)["tokens"] for line in open(options.data, encoding="utf-8")]
    run = torch.compile(model) if kind == "compile" else model
    seconds = []
    for step in range(options.steps + options.warm_up):
        at = step * options.batch
        ids = torch.tensor([rows[(at + i) % len(rows)] for i in range(options.batch)])
        begin = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds[options.warm_up:]}))


def measured(command, environment=None):
    """Its standard output and largest resident set in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    output = process.stdout.read()
    complaint = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]}: exit code {process.returncode}: {complaint[-600:]}")
    return output, usage.ru_maxrss * 1024


def run_peer(mode, init, data, options):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")}
    output, memory = measured(
        [sys.executable, __file__, "--peer", mode, "--init", str(init), "--data", str(data), "--batch", str(options.batch),
         "--steps", str(options.steps), "--warm-up", str(options.warm_up), "--threads", str(options.threads)], environment)
    return statistics.median(json.loads(output.splitlines()[-1])["seconds"]), memory


def run_qiao(dtype, init, data, options):
    with tempfile.TemporaryDirectory() as place:
        _, memory = measured(
            [options.binary, "train", "pretrain", "--init", str(init), "--data", str(data), "--out", f"{place}/run",
             "--steps", str(options.steps + options.warm_up), "--batch", str(options.batch), "--micro-batch", str(options.micro_batch),
             "--seq", str(options.sequence), "--dtype", dtype, "--lr", "1e-4", "--schedule", "constant", "--shuffle", "off",
             "--checkpoint-every", "0", "-t", str(options.threads), "-q"])
        lines = [json.loads(line) for line in open(f"{place}/run/metrics.jsonl", encoding="utf-8")]
    tokens = options.batch * options.sequence
    return statistics.median(tokens / line["tokens_per_second"] for line in lines[options.warm_up:]), memory


def flop(shape, parameters, options):
    hidden, layers = SHAPES[shape][:2]
    return options.batch * options.sequence * (6 * parameters + 6 * layers * hidden * options.sequence)


def compare(shape, options, peaks):
    with tempfile.TemporaryDirectory() as place:
        init, data = pathlib.Path(place) / "init", pathlib.Path(place) / "rows.jsonl"
        parameters = make_model(shape, init)
        make_rows(shape, options, data)
        figures = {}
        for _ in range(options.rounds):
            for name in ["qiao-f32", "qiao-bf16"] + options.modes:
                run = run_qiao if name.startswith("qiao") else run_peer
                try:
                    seconds, memory = run(name.removeprefix("qiao-"), init, data, options)
                except RuntimeError as problem:
                    print(f"{shape} {name}: {problem}", file=sys.stderr)
                    continue
                figures.setdefault(name, []).append((seconds, memory))
    work = flop(shape, parameters, options)
    tokens = options.batch * options.sequence
    peers = {name: f for name, f in figures.items() if not name.startswith("qiao")}
    best = min(peers, key=lambda name: statistics.median(s for s, _ in peers[name])) if peers else None
    result = {"shape": shape, "parameters": parameters, "best_peer": best, "runs": {}}
    for name, rounds in figures.items():
        seconds = statistics.median(s for s, _ in rounds)
        entry = {"tokens_per_second": tokens / seconds, "gflops": work / seconds * 1e-9, "memory": max(m for _, m in rounds)}
        for peak, value in peaks.items():
            if value > 0:  # a machine without BF16 instructions has no such peak
                entry[f"share_of_{peak}"] = work / seconds / value
        if best and name.startswith("qiao"):
            entry["speed_ratio"] = statistics.median(b[0] / a[0] for a, b in zip(rounds, figures[best]))
            entry["memory_ratio"] = entry["memory"] / max(m for _, m in figures[best])
        result["runs"][name] = entry
    return result


def device_peaks(binary, threads):
    found = json.loads(subprocess.run([binary, "devices", "--json", "-t", str(threads)], check=True, capture_output=True).stdout)
    chip = next(entry for entry in found if entry["chip"] == "cpu")
    return {"f32": chip["f32_flops"], "bf16": chip["bf16_flops"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build" / "bin" / "qiao"))
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of " + ", ".join(SHAPES))
    parser.add_argument("--modes", default=",".join(MODES), help="PyTorch's, of " + ", ".join(MODES))
    parser.add_argument("--batch", type=int, default=8, help="sequences of a step")
    parser.add_argument("--micro-batch", type=int, default=2, help="sequences that Qiao computes at once")
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    for name in ("peer", "init", "data"):  # of the process that runs PyTorch
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        return peer(options)
    options.modes = options.modes.split(",")
    peaks = device_peaks(options.binary, options.threads)
    results = [compare(shape, options, peaks) for shape in options.shapes.split(",")]
    if options.json:
        return print(json.dumps({"peaks": peaks, "results": results}, indent=1))
    for result in results:
        print(f"\n{result['shape']}: {result['parameters'] / 1e6:.1f} million parameters, {options.batch} sequences of {options.sequence}")
        print(f"{'':14} {'tokens/s':>9} {'GFLOP/s':>8} {'of peak':>8} {'memory':>9}   beside {result['best_peer']}")
        for name, entry in result["runs"].items():
            share = entry.get("share_of_" + name.split("-")[1], entry["share_of_f32"])
            ratio = f"   {entry['speed_ratio']:.2f} x speed, {entry['memory_ratio']:.2f} x memory" if "speed_ratio" in entry else ""
            print(f"{name:14} {entry['tokens_per_second']:9.0f} {entry['gflops']:8.1f} {share:8.0%} "
                  f"{entry['memory'] / 2**20:5.0f} MiB{ratio}")


if __name__ == "__main__":
    main()
