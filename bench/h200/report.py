"""The table of run.sh, in Markdown, from the files that it left: report.py FOLDER."""
import json
import pathlib
import sys


def rows(path):
    text = path.read_text() if path.exists() else ""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        value, at = decoder.raw_decode(text, at)
        yield value


def main():
    folder = pathlib.Path(sys.argv[1])
    device = next(d for d in json.loads((folder / "devices.json").read_text()) if d["chip"].startswith("cuda"))
    print(f"{device['name']}: reads {device['read_bytes_per_second'] / 1e9:.0f} GB/s, f32 {device['f32_flops'] / 1e12:.1f}, "
          f"bf16 {device['bf16_flops'] / 1e12:.0f} TFLOP/s, int8 {device['int8_ops'] / 1e12:.0f} TOP/s\n")
    peers = {}
    for row in rows(folder / "pytorch.jsonl"):
        key = (row["model"], row["what"], row.get("sequences", 1), row.get("depth", 0), row.get("tokens", 0))
        peers[key] = row["tokens_per_second"]
    print("| model (BF16 where nothing else is said) | what | Qiao, tokens/s | share of the measured | PyTorch | ratio |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows(folder / "qiao.jsonl"):
        if row.get("what") == "skipped":
            print(f"| {row['model']} | skipped: its weights have {row['bytes']} bytes | | | | |")
            continue
        name = row["model"] + (f", {row['quantize']}" if row.get("quantize") else "")
        if row.get("fast"):
            name += ", --fast"
        if row.get("kv_type", "f16") != "f16":
            name += f", pages of {row['kv_type']}"
        if row.get("what") == "serve":
            print(f"| {name} | serving {row['clients']} clients, {row['input']} in, {row['output']} out | {row['output_tokens_per_second']:.0f} | "
                  f"first token {row['first_token_seconds']:.2f} s, gap {row['gap_seconds'] * 1e3:.1f} ms | | |")
            continue
        if row.get("what") == "train":
            rate, peer = row["tokens_per_second"], peers.get((row["model"], "train", row["sequences"], 0, row["tokens"]))
            recipe = f"training, {row['sequences']} x {row['tokens']}{', small states' if row['small_states'] else ''}"
            name, peak = (f"{row['model']}, fp8", "f8_flops") if row["dtype"] == "fp8" else (row["model"], "bf16_flops")
            print(f"| {name} | {recipe} | {rate:.0f} | {row['flops'] / device[peak]:.0%} of {'fp8' if peak == 'f8_flops' else 'bf16'} | "
                  f"{f'{peer:.0f}' if peer else '-'} | {f'{rate / peer:.2f}' if peer else '-'} |")
            continue
        if row["decode_tokens"]:
            what, key = f"decode {row['sequences']} x at {row['depth']}", ("decode", row["sequences"], row["depth"], 0)
            rate, share = row["decode_tokens_per_second"]["median"], f"{row['decode_share_of_bandwidth']:.0%} of reads"
        else:
            what, key = f"prefill {row['prompt_tokens']}", ("prefill", 1, 0, row["prompt_tokens"])
            rate, share = row["prefill_tokens_per_second"]["median"], f"{row['prefill_share_of_peak']:.0%} of {row['peak']['kind']}"
        peer = peers.get((name, *key))
        print(f"| {name} | {what} | {rate:.0f} | {share} | {f'{peer:.0f}' if peer else '-'} | {f'{rate / peer:.2f}' if peer else '-'} |")
    if not (folder / "conformance.json").exists():
        return
    report = json.loads((folder / "conformance.json").read_text())
    print("\n| op | variant | shape | time, µs | share | largest error, of its bound |\n| --- | --- | --- | --- | --- | --- |")
    for line in report["lines"]:
        for bench in line["benches"]:
            print(f"| {line['op']} | {line['variant']} | {bench['shape']} | {bench['seconds'] * 1e6:.1f} | {bench['roofline_share']:.0%} of "
                  f"{bench['roofline_of']} | {line['max_share_of_bound']:.2f} |")


main()
