"""Rewards arithmetic in a fixed format: 1 for the right number in the form, 0.2 for the form with a wrong one, 0 else.

  qiao train grpo --init DIR --data prompts.jsonl --reward-python examples/grpo/reward.py …
"""
import re

FORM = re.compile(r"\s*<answer>(-?\d+)</answer>\s*")


def reward(completion):
    match = FORM.fullmatch(completion["completion"])
    right = match is not None and int(match[1]) == completion["row"]["answer"]
    return {"reward": 1.0 if right else 0.2 if match else 0.0, "right": right, "in_form": match is not None}
