#!/usr/bin/env python3
"""Makes a folder of sums for `qiao train grpo`: questions, and others of the kind that are held out.

  make_prompts.py FOLDER [--most 20] [--held-out 81] [--shown 120] [--seed 0]

Questions are all sums of two numbers up to --most, in an order by --seed: "13 + 4?", to be answered by
"<answer>13 + 4 = 17</answer>". FOLDER/held_out.jsonl has the last of them, for `qiao eval --exact`; prompts.jsonl all others, with
the answer that reward.py asks for; form.jsonl the first --shown of those with their answers, for `qiao train pretrain`: a model
that has never seen the form would not find it by chance.
"""
import argparse
import json
import pathlib
import random


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--most", type=int, default=20, help="largest number of a question")
    parser.add_argument("--held-out", type=int, default=81, help="questions that are not trained on")
    parser.add_argument("--shown", type=int, default=120, help="questions that are shown with their answers")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    numbers = range(options.most + 1)
    rows = [{"prompt": f"{a} + {b}?", "answer": f"<answer>{a} + {b} = {a + b}</answer>"} for a in numbers for b in numbers]
    if not 0 < options.held_out < len(rows):
        parser.error(f"--held-out is {options.held_out}; 1 to {len(rows) - 1} of {len(rows)} questions was expected")
    random.Random(options.seed).shuffle(rows)
    training, held_out = rows[:-options.held_out], rows[-options.held_out:]
    shown = [{"text": f"{row['prompt']} {row['answer']}"} for row in training[:options.shown]]
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, made in (("prompts", training), ("form", shown), ("held_out", held_out)):
        (options.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    print(f"{len(training)} questions to train on, {len(shown)} of them shown with answers; {len(held_out)} held out")


if __name__ == "__main__":
    main()
