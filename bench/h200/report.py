"""The table of run.sh, in Markdown, from the files that it left: report.py FOLDER.

Shares are of what the same run measured (`qiao devices`), in brackets of the datasheet's, where the GPU's is known here.
"""
import json
import pathlib
import re
import sys

from make_model import COMMON, SHAPES, products

# GB/s and dense TFLOP/s by NVIDIA's datasheets.
DATASHEETS = {"H200": {"read": 4800e9, "bf16": 989e12, "fp8": 1979e12}, "H100": {"read": 3350e9, "bf16": 989e12, "fp8": 1979e12}}
PEAKS = {"read": "read_bytes_per_second", "bf16": "bf16_flops", "fp8": "f8_flops"}
# What others published for an 8B (training: 1.5B) on one GPU of this kind, and what is to be reached.
PUBLISHED = {
    ("decode", "bf16", 1): "vLLM 66% of the datasheet's reads; target 85% of the measured", ("decode", "fp8", 1): "vLLM 53% of the datasheet's reads; target 75% of the measured",
    ("serve", "fp8", 1000, 1000): "TensorRT-LLM 17744 tokens/s; target 19518", ("serve", "fp8", 128, 2048): "TensorRT-LLM 26221 tokens/s; target 28843",
    ("prefill", "bf16"): "target 70% of the measured", ("prefill", "fp8"): "about 40% of FP8's peak; target 55%",
    ("train", "bf16"): "torchtitan 33 to 39%, llm.c 44% of the datasheet's; target 50%", ("train", "fp8"): "NeMo 37.6% of FP8's peak; target 40%"}


def rows(path):
    text = path.read_text() if path.exists() else ""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:  # of a program that was ended as it wrote
            print(f"report.py: {path.name}: left out what is no JSON: {text[at:at + 80].splitlines()[0]!r}", file=sys.stderr)
            at = text.find("\n{", at) + 1 or len(text)
            continue
        yield value


class Table:
    def __init__(self, device, peers):
        self.device, self.peers = device, {}
        self.datasheet = next((sheet for name, sheet in DATASHEETS.items() if name in device["name"]), None)
        self.uploads = {row["model"]: row for row in peers if row["what"] == "upload"}
        for row in peers:
            if row["what"] != "upload":
                key = (row["model"], row["what"], row.get("sequences", 1), row.get("depth", 0), row.get("tokens", 0))
                self.peers[key] = row["tokens_per_second"]

    def share(self, part, kind):
        """`part` of the measured peak of `kind` ("read", "bf16", "fp8"), which may be None for another kind's."""
        if kind not in PEAKS or not self.datasheet:
            return f"{part:.0%} of {kind}"
        return f"{part:.0%} of {kind} ({part * self.device[PEAKS[kind]] / self.datasheet[kind]:.0%})"

    def line(self, name, what, rate, share, peer, published):
        ratio = f"{rate / peer:.2f}" if peer else "-"
        print(f"| {name} | {what} | {rate:.0f} | {share} | {f'{peer:.0f}' if peer else '-'} | {ratio} | {published} |")

    def serving(self, row, name, kind):
        self.line(name, f"serving {row['clients']} clients, {row['input']} in, {row['output']} out", row["output_tokens_per_second"],
                  f"first token {row['first_token_seconds']:.2f} s, gap {(row['gap_seconds'] or 0) * 1e3:.1f} ms", None,
                  PUBLISHED.get(("serve", kind, row["input"], row["output"]), ""))
        upload = self.uploads.get(row["model"])
        if upload:
            plain = upload["bytes"] / upload["bytes_per_second"]
            print(f"| {name} | start to ready, {upload['bytes'] / 1e9:.1f} GB | {row['start_seconds']:.1f} s | | {plain:.1f} s to read them | "
                  f"{row['start_seconds'] / plain:.2f} | target {1.2 * plain + 2:.1f} s |")

    def training(self, row):
        kind = "fp8" if row["dtype"] == "fp8" else "bf16"
        recipe = f"training, {row['sequences']} x {row['tokens']}{', small states' if row['small_states'] else ''}"
        self.line(row["model"] + (", fp8" if kind == "fp8" else ""), recipe, row["tokens_per_second"], self.share(row["flops"] / self.device[PEAKS[kind]], kind),
                  self.peers.get((row["model"], "train", row["sequences"], 0, row["tokens"])), PUBLISHED[("train", kind)])

    def row(self, row):
        if row.get("what") == "skipped":
            why = f"its weights have {row['bytes']} bytes" if "bytes" in row else f"no time was left for {row['no_time_for']}"
            print(f"| {row['model']} | skipped: {why} | | | | | |")
            return
        if row.get("what") == "train":
            self.training(row)
            return
        name, kind = row["model"], row.get("quantize") or "bf16"
        if row.get("quantize"):
            name += f", {row['quantize']}"
        if row.get("fast"):
            name += ", --fast"
        if row.get("kv_type", "f16") != "f16":
            name += f", pages of {row['kv_type']}"
        if row.get("what") == "serve":
            self.serving(row, name, kind)
        elif row["decode_tokens"]:
            sequences, depth = row["sequences"], row["depth"]
            self.line(name, f"decode {sequences} x at {depth}", row["decode_tokens_per_second"]["median"], self.share(row["decode_share_of_bandwidth"], "read"),
                      self.peers.get((name, "decode", sequences, depth, 0)), PUBLISHED.get(("decode", kind, sequences), ""))
        else:
            self.line(name, f"prefill {row['prompt_tokens']}", row["prefill_tokens_per_second"]["median"], self.share(row["prefill_share_of_peak"], row["peak"]["kind"]),
                      self.peers.get((name, "prefill", 1, 0, row["prompt_tokens"])), PUBLISHED[("prefill", kind)])


# (variant, T, N, K) -> seconds of "qiao", "fast" and "cublaslt".
def times_of_products(path):
    times = {}
    for row in rows(path):
        by = "cublaslt" if "variant" in row else "qiao" if row["batch_invariant"] else "fast"
        lines = [row] if "variant" in row else [{"variant": line["variant"], **bench} for line in row["lines"] for bench in line["benches"]]
        for line in lines:
            shape = tuple(map(int, re.fullmatch(r"T=(\d+) N=(\d+) K=(\d+)", line["shape"]).groups()))
            times.setdefault((line["variant"], *shape), {})[by] = line.get("seconds")
    return times


def print_products(times):
    """A line for each product, and one for all of a layer. In Qiao's time is the rounding of x, which cuBLASLt's has behind it."""
    print("\n| weight | T | N x K | Qiao, µs (TFLOP/s), with rounding x | --fast | cuBLASLt, x rounded before | of cuBLASLt's rate: Qiao | --fast |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- |")

    def line(variant, tokens, what, flop, seconds):
        cells = [f"{s * 1e6:.1f} ({flop / s / 1e12:.0f})" if s else "-" for s in map(seconds.get, ("qiao", "fast", "cublaslt"))]
        best = seconds.get("cublaslt")
        shares = [f"{best / seconds[by]:.2f}" if best and seconds.get(by) else "-" for by in ("qiao", "fast")]
        print(f"| {variant} | {tokens} | {what} | {' | '.join(cells + shares)} |")

    for (variant, tokens, n, k), seconds in times.items():
        line(variant, tokens, f"{n} x {k}", 2 * tokens * n * k, seconds)
    for name, config in SHAPES.items():
        of_layer = products(COMMON | config)
        for variant, tokens in dict.fromkeys(key[:2] for key in times):
            parts = [times.get((variant, tokens, n, k), {}) for n, k in of_layer]
            if "num_experts" in config or not all(parts):
                continue
            whole = {by: sum(part[by] for part in parts) for by in ("qiao", "fast", "cublaslt") if all(part.get(by) for part in parts)}
            line(variant, tokens, f"a layer of {name}", 2 * tokens * sum(n * k for n, k in of_layer), whole)


def main():
    folder = pathlib.Path(sys.argv[1])
    device = next(d for d in json.loads((folder / "devices.json").read_text()) if d["chip"].startswith("cuda"))
    print(f"{device['name']}: reads {device['read_bytes_per_second'] / 1e9:.0f} GB/s, f32 {device['f32_flops'] / 1e12:.1f}, bf16 {device['bf16_flops'] / 1e12:.0f}, "
          f"fp8 {device['f8_flops'] / 1e12:.0f} TFLOP/s, int8 {device['int8_ops'] / 1e12:.0f} TOP/s\n")
    table = Table(device, list(rows(folder / "pytorch.jsonl")))
    print("| model (BF16 where nothing else is said) | what | Qiao, tokens/s | share of the measured (of the datasheet) | PyTorch | ratio | published for an 8B (training: 1.5B) |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows(folder / "qiao.jsonl"):
        table.row(row)
    times = times_of_products(folder / "products.jsonl")
    if times:
        print_products(times)
    report = next(rows(folder / "conformance.json"), None)
    if report is None:
        return
    print("\n| op | variant | shape | time, µs | share | largest error, of its bound |\n| --- | --- | --- | --- | --- | --- |")
    for line in report["lines"]:
        for bench in line["benches"]:
            print(f"| {line['op']} | {line['variant']} | {bench['shape']} | {bench['seconds'] * 1e6:.1f} | {bench['roofline_share']:.0%} of "
                  f"{bench['roofline_of']} | {line['max_share_of_bound']:.2f} |")


main()
