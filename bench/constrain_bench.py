#!/usr/bin/env python3
"""Times token masks of `qiao constrain` beside the llguidance and xgrammar wheels, over generated JSON, in one run.

usage: constrain_bench.py QIAO [--model qwen2.5-coder-1.5b] [--documents N] [--seed S]
needs: pip install llguidance xgrammar (either may be absent: it is then left out)
Each document (spelled as json.dumps does) is tokenized by `qiao tokenize`, and every engine computes the mask before each
of its tokens; "first mask" is the median of compiling and the first mask together. Masks of tokens that Qiao's automaton
forces are left out of its rows; with whitespace left free, as the others have it, few are.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import tempfile
import time

WORDS = "alpha beta gamma delta river stone cloud engine market signal orange seven paper window".split()


def make(rng, depth=3):
    """A schema and a maker of its instances."""
    kind = rng.choice(["object", "object", "array"]) if depth == 3 else rng.choice(
        ["object", "array", "string", "string", "string", "enum", "integer", "number", "boolean", "short", "date"])
    if depth == 0 and kind in ("object", "array"):
        kind = "string"
    if kind == "object":
        names = rng.sample(WORDS, rng.randrange(2, 8))
        parts = {name: make(rng, depth - 1) for name in names}
        schema = {"type": "object", "properties": {n: p[0] for n, p in parts.items()}, "required": names,
                  "additionalProperties": False}
        return schema, lambda: {n: p[1]() for n, p in parts.items()}
    if kind == "array":
        item = make(rng, depth - 1)
        return {"type": "array", "items": item[0]}, lambda: [item[1]() for _ in range(rng.randrange(1, 5))]
    sentence = lambda low, high: " ".join(rng.choice(WORDS) for _ in range(rng.randrange(low, high)))
    return {
        "string": ({"type": "string"}, lambda: sentence(2, 15)),
        "short": ({"type": "string", "maxLength": 60}, lambda: sentence(1, 5)),
        "enum": ({"enum": WORDS[:6]}, lambda: rng.choice(WORDS[:6])),
        "integer": ({"type": "integer", "minimum": 0, "maximum": 10000}, lambda: rng.randrange(10000)),
        "number": ({"type": "number"}, lambda: round(rng.uniform(-100, 100), 3)),
        "boolean": ({"type": "boolean"}, lambda: rng.random() < 0.5),
        "date": ({"type": "string", "format": "date"}, lambda: f"20{rng.randrange(10, 99)}-0{rng.randrange(1, 9)}-1{rng.randrange(9)}"),
    }[kind]


class Numbers:
    def __init__(self):
        self.masks, self.firsts, self.failed = [], [], 0

    def line(self, name):
        if not self.masks:
            return f"{name:<24} no document"
        ordered = sorted(self.masks)
        p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return (f"{name:<24} {len(ordered):>7} {statistics.fmean(ordered):>8.1f} {statistics.median(ordered):>8.1f} {p99:>8.1f} "
                f"{ordered[-1]:>9.1f} {statistics.median(self.firsts):>11.1f} {self.failed:>7}")


def run_qiao(args, folder, cases, extra):
    numbers = Numbers()
    for schema, document in cases:
        (folder / "schema.json").write_text(json.dumps(schema))
        (folder / "document.json").write_text(json.dumps(document))
        run = subprocess.run([args.qiao, "constrain", "--json", "--timings", *extra, "-m", args.model, "--schema",
                              folder / "schema.json", folder / "document.json"], capture_output=True, text=True)
        result = json.loads(run.stdout)[0] if run.returncode == 0 else None
        if not result or not result["mask_us"]:
            numbers.failed += 1
            continue
        numbers.masks += result["mask_us"]
        numbers.firsts.append(result["compile_us"] + result["mask_us"][0])
    return numbers


def run_llguidance(tokenizer, cases, tokens):
    import llguidance
    import llguidance.numpy as masks

    table = llguidance.LLTokenizer(llguidance.TokenizerWrapper(tokenizer))
    bitmap = masks.allocate_token_bitmask(1, table.vocab_size)
    numbers = Numbers()
    for (schema, _), ids in zip(cases, tokens):
        begin = time.perf_counter()
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        matcher = llguidance.LLMatcher(table, grammar)
        first = True
        for id in ids:
            if not first:
                begin = time.perf_counter()
            masks.fill_next_token_bitmask(matcher, bitmap, 0)
            taken = 1e6 * (time.perf_counter() - begin)
            (numbers.firsts if first else numbers.masks).append(taken)
            first = False
            if not matcher.consume_token(id):
                numbers.failed += 1
                break
    return numbers


def run_xgrammar(vocabulary, cases, tokens):
    import xgrammar

    info = xgrammar.TokenizerInfo(vocabulary, vocab_type=xgrammar.VocabType.RAW)
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    bitmap = xgrammar.allocate_token_bitmask(1, info.vocab_size)
    numbers = Numbers()
    for (schema, _), ids in zip(cases, tokens):
        begin = time.perf_counter()
        matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema), any_whitespace=True))
        first = True
        for id in ids:
            if not first:
                begin = time.perf_counter()
            matcher.fill_next_token_bitmask(bitmap)
            taken = 1e6 * (time.perf_counter() - begin)
            (numbers.firsts if first else numbers.masks).append(taken)
            first = False
            if not matcher.accept_token(id):
                numbers.failed += 1
                break
    return numbers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("qiao")
    parser.add_argument("--model", default="qwen2.5-coder-1.5b")
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    cases = []
    for _ in range(args.documents):
        schema, instance = make(rng)
        cases.append((schema, instance()))
    print(f"{'engine':<24} {'masks':>7} {'mean us':>8} {'median':>8} {'p99':>8} {'most':>9} {'first mask':>11} {'failed':>7}")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        print(run_qiao(args, folder, cases, []).line("qiao, any whitespace"))
        print(run_qiao(args, folder, cases, ["--generation"]).line("qiao, --generation"))
        inspect = subprocess.run([args.qiao, "inspect", "--json", "--full", "--no-tensors", args.model], capture_output=True, text=True, check=True)
        metadata = json.loads(inspect.stdout)["metadata"]
        vocabulary, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
        kinds = metadata["tokenizer.ggml.token_type"]
        tokens = [json.loads(subprocess.run([args.qiao, "tokenize", "--json", "--plain", "-m", args.model],
                                            input=json.dumps(document), capture_output=True, text=True, check=True).stdout)
                  for _, document in cases]
        alphabet = byte_alphabet()
        raw = [text.encode() if kind != 1 else bytes(alphabet[c] for c in text) for text, kind in zip(vocabulary, kinds)]
        for name, run in (("llguidance", lambda: run_llguidance(Vocabulary(raw, kinds, metadata), cases, tokens)),
                          ("xgrammar", lambda: run_xgrammar(raw, cases, tokens))):
            try:
                print(run().line(name))
            except ImportError:
                print(f"{name:<24} not installed")


def byte_alphabet():
    """GPT-2's letters for bytes."""
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    table = {chr(b): b for b in plain}
    extra = 0
    for b in range(256):
        if b not in plain:
            table[chr(256 + extra)] = b
            extra += 1
    return table


class Vocabulary:
    """What llguidance.LLTokenizer takes: tokens, the end, and how to tokenize (only to find canonical tokens)."""

    def __init__(self, raw, kinds, metadata):
        self.tokens = [b"\xff<" + text + b">" if kind == 3 else text for text, kind in zip(raw, kinds)]
        self.eos_token_id = metadata["tokenizer.ggml.eos_token_id"]
        self.bos_token_id = None
        self.special_token_ids = [i for i, kind in enumerate(kinds) if kind == 3]
        self._ids = {text: i for i, text in enumerate(self.tokens)}

    def __call__(self, text):
        data = text if isinstance(text, bytes) else text.encode()
        return [self._ids[bytes([b])] for b in data]


if __name__ == "__main__":
    main()
