#!/usr/bin/env python3
"""What recommenders ask of a CPU, beside PyTorch and faiss: bags of an embedding table, their way back, the nearest rows of a table.

  bench/recommend_bench.py --threads 2      (needs torch and faiss-cpu)

Qiao's times are those of `qiao conformance --op …` (the best call of some); the peers run the same shapes with random ids and vectors,
--rounds rounds in turn, and the best call counts. PyTorch: embedding_bag (its way back with sparse gradients, which leaves an id that comes twice in
two rows; `coalesce` makes one of them, as Qiao's op does), topk(q @ t.T). faiss: IndexFlatIP, which is exact too. GB/s: of the least bytes that
must be read and written.
"""
import argparse
import json
import pathlib
import re
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def conformance(options, op):
    """{(variant, shape): seconds} of an op's timed shapes."""
    command = [options.qiao, "conformance", "--backend", "cpu", "--op", op, "--json", "-t", str(options.threads)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {(line["variant"], bench["shape"]): bench["seconds"] for line in report["lines"] for bench in line.get("benches", [])}


def best(call, seconds=0.5):
    call()
    found, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        found = min(found, time.perf_counter() - begin)
    return found


def sizes(shape):
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", shape)}


def bag_peer(variant, shape, back):
    import torch
    size = sizes(shape)
    dtype = getattr(torch, DTYPES[variant])
    table = torch.randn(size["V"], size["C"]).to(dtype).requires_grad_(back)
    ids = torch.randint(0, size["V"], (size["n"],))
    offsets = torch.arange(0, size["n"], size["n"] // size["B"])
    forward = lambda: torch.nn.functional.embedding_bag(ids, table, offsets, mode="sum", sparse=back)
    row = size["C"] * dtype.itemsize
    if not back:
        with torch.no_grad():
            return {"PyTorch": best(forward)}, size["n"] * row
    out = forward()
    dout = torch.ones_like(out)
    gradient = lambda: torch.autograd.grad(out, table, dout, retain_graph=True)[0]
    return {"PyTorch": best(gradient), "PyTorch, coalesced": best(lambda: gradient().coalesce())}, 2 * size["n"] * row


def search_peer(variant, shape):
    import faiss
    import torch
    size = sizes(shape)
    name, compute = variant.split()[:2]
    if name not in DTYPES or (name != "F32" and compute == "f32"):
        return {}, 0
    table, queries = torch.randn(size["V"], size["C"]), torch.randn(size["B"], size["C"])
    dtype = getattr(torch, DTYPES[name])
    peers = {"PyTorch": best(lambda t=table.to(dtype), q=queries.to(dtype): torch.topk(q @ t.T, size["k"]))}
    if name == "F32":
        index = faiss.IndexFlatIP(size["C"])
        index.add(table.numpy())
        peers["faiss"] = best(lambda: index.search(queries.numpy(), size["k"]))
    return peers, size["V"] * size["C"] * dtype.itemsize


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--qiao", default=str(ROOT / "build" / "bin" / "qiao"))
    options = parser.parse_args()
    import faiss
    import torch
    torch.manual_seed(1)
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    times, sizes_of = {}, {}
    for _ in range(options.rounds):
        for op in ("embedding_bag", "embedding_bag_backward", "vector_search"):
            for (variant, shape), seconds in conformance(options, op).items():
                peers, count = search_peer(variant, shape) if op == "vector_search" else bag_peer(variant, shape, "backward" in op)
                row = times.setdefault((op, variant, shape), {})
                sizes_of[op, variant, shape] = count
                for name, value in {"Qiao": seconds, **peers}.items():
                    row[name] = min(row.get(name, float("inf")), value)
    print("| op | shape | Qiao | GB/s | peers | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for (op, variant, shape), row in times.items():
        own = row.pop("Qiao")
        rate = f"{sizes_of[op, variant, shape] / own / 1e9:.1f}" if sizes_of[op, variant, shape] else ""
        peers = ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in row.items())
        ratio = ", ".join(f"{value / own:.2f}" for value in row.values())
        print(f"| {op} {variant} | {shape} | {own * 1e3:.2f} ms | {rate} | {peers} | {ratio} |")


if __name__ == "__main__":
    main()
