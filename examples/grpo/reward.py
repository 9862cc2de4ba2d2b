"""Rewards sums in a fixed form: 1 for the right answer to the question, 0.2 for the form with other numbers, 0 else.

  qiao train grpo --init DIR --data sums/prompts.jsonl --reward-python examples/grpo/reward.py …
"""
import re

FORM = re.compile(r"<answer>\d+ \+ \d+ = \d+</answer>")


def reward(completion):
    answer = completion["completion"].strip()
    right, in_form = answer == completion["row"]["answer"], FORM.fullmatch(answer) is not None
    return {"reward": 1.0 if right else 0.2 if in_form else 0.0, "right": right, "in_form": in_form}
