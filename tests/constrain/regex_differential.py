#!/usr/bin/env python3
"""Compares `qiao constrain --regex` with Python's re over random expressions and texts. Run by hand.

usage: regex_differential.py QIAO [--patterns N] [--seed S]
Prints each disagreement; exit status 1 where there is one.
"""

import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile

ATOMS = ["a", "b", "c", "é", ".", "[ab]", "[^a]", "[a-c]", r"\d", r"\w", r"\s", r"\W", r"\.", "x{2}", "1", " "]
LETTERS = ["a", "b", "c", "é", "1", " ", ".", "x", "xx", "\n", "\U0001F642"]


def random_pattern(rng, depth):
    if depth == 0 or rng.random() < 0.25:
        return rng.choice(ATOMS)
    kind = rng.choice(["concat", "concat", "or", "repeat", "group"])
    if kind == "concat":
        return "".join(random_pattern(rng, depth - 1) for _ in range(rng.randrange(1, 4)))
    if kind == "or":
        return "(?:" + "|".join(random_pattern(rng, depth - 1) for _ in range(rng.randrange(2, 4))) + ")"
    inner = "(" + random_pattern(rng, depth - 1) + ")"
    return inner + (rng.choice(["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?"]) if kind == "repeat" else "")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("qiao")
    parser.add_argument("--patterns", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    compared = matched = wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        texts = ["".join(rng.choice(LETTERS) for _ in range(rng.randrange(7))) for _ in range(150)]
        files = []
        for i, text in enumerate(texts):
            files.append(folder / str(i))
            files[-1].write_bytes(text.encode())
        for _ in range(args.patterns):
            pattern = random_pattern(rng, 3)
            run = subprocess.run([args.qiao, "constrain", "--json", "--regex", pattern, *files], capture_output=True,
                                 text=True, timeout=60)
            if run.returncode not in (0, 1):
                wrong += 1
                print(f"{pattern!r}: exit {run.returncode}: {run.stderr}")
                continue
            for text, result in zip(texts, json.loads(run.stdout)):
                expected = re.fullmatch(pattern, text, re.ASCII) is not None
                compared += 1
                matched += expected
                if result["accepted"] != expected:
                    wrong += 1
                    print(f"{pattern!r} on {text!r}: re says {expected}, qiao {result}")
    print(f"{compared} texts compared ({matched} match), {wrong} disagreements")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
