#!/usr/bin/env python3
"""Decoding with prompt look-up beside plain decoding, on prompts that ask to rewrite a file.

  bench/lookup_bench.py                       qwen2.5-coder-1.5b, files of this project
  bench/lookup_bench.py --lookup 3 -r 3       drafts of up to 3 tokens, three rounds

Each prompt is a file of the tree and an order to write it again with one change. Both ways run in turn, greedily, and their
texts must be the same bytes. Printed: tokens/s of decoding (prefill is not counted), the ratio of each prompt, and the ratio of
all tokens together.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TASKS = [
    ("src/base/thread_pool.h", "the class ThreadPool renamed to WorkerPool"),
    ("src/infer/prompt_lookup.h", "the method propose renamed to guess"),
    ("src/backend/cpu/kv_pages.h", "every comment removed"),
    ("src/backend/conformance/compare.h", "the namespace qiao renamed to bridge"),
]


def run(qiao, model, threads, prompt, tokens, lookup):
    command = [qiao, "chat", "-m", model, "-t", str(threads), "--temp", "0", "--repeat-penalty", "1", "-n", str(tokens), "--lookup",
               str(lookup), "-q", "--json", "-p", prompt]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer["text"], answer["usage"]["completion_tokens"], answer["timings"]["decode_seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("-t", "--threads", type=int, default=0)
    parser.add_argument("-n", "--tokens", type=int, default=300, help="most tokens of an answer")
    parser.add_argument("-r", "--rounds", type=int, default=1)
    parser.add_argument("--lookup", type=int, default=7, help="most tokens drafted in a step")
    parser.add_argument("--qiao", default=str(ROOT / "build" / "bin" / "qiao"))
    options = parser.parse_args()
    all_tokens, seconds = 0, {"plain": 0.0, "lookup": 0.0}
    print("| file | tokens | plain, tokens/s | look-up, tokens/s | ratio |\n| --- | --- | --- | --- | --- |")
    for path, change in TASKS:
        text = (ROOT / path).read_text(encoding="utf-8")
        prompt = f"Rewrite this file with {change}. Answer with the whole file and nothing else.\n\n{text}"
        ratios, rates = [], []
        for _ in range(options.rounds):
            plain, tokens, plain_seconds = run(options.qiao, options.model, options.threads, prompt, options.tokens, 0)
            looked, _, lookup_seconds = run(options.qiao, options.model, options.threads, prompt, options.tokens, options.lookup)
            if plain != looked:
                sys.exit(f"{path}: the answers differ")
            ratios.append(plain_seconds / lookup_seconds)
            rates.append((tokens / plain_seconds, tokens / lookup_seconds))
            all_tokens += tokens
            seconds["plain"] += plain_seconds
            seconds["lookup"] += lookup_seconds
        plain_rate, lookup_rate = (statistics.median(rate[i] for rate in rates) for i in range(2))
        print(f"| {path} | {tokens} | {plain_rate:.1f} | {lookup_rate:.1f} | {statistics.median(ratios):.2f} |", flush=True)
    print(f"| all | {all_tokens} | {all_tokens / seconds['plain']:.1f} | {all_tokens / seconds['lookup']:.1f} | "
          f"{seconds['plain'] / seconds['lookup']:.2f} |")


if __name__ == "__main__":
    main()
