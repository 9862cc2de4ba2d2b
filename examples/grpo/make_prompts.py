#!/usr/bin/env python3
"""Makes prompts of arithmetic for `qiao train grpo`: JSON Lines with messages and the answer that reward.py asks for.

  make_prompts.py [--rows 2000] [--digits 1] [--seed 0] [--text] > prompts.jsonl

--text writes plain prompts in place of messages, for models without a chat template.
"""
import argparse
import json
import random

INSTRUCTION = "Answer with the number alone, in the form <answer>N</answer>."


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--digits", type=int, default=1, help="of each number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", action="store_true")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    most = 10 ** options.digits - 1
    for _ in range(options.rows):
        a, b = draw.randint(0, most), draw.randint(0, most)
        sign, answer = draw.choice([("+", a + b), ("-", a - b)])
        question = f"What is {a} {sign} {b}? {INSTRUCTION}"
        row = {"prompt": f"Question: {question}\nAnswer:"} if options.text else {
            "messages": [{"role": "user", "content": question}]}
        print(json.dumps({**row, "answer": answer}))


if __name__ == "__main__":
    main()
