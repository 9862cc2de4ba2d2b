#!/usr/bin/env python3
"""`qiao train grpo` from the command line: the recipe of examples/grpo on a tiny model, going on, wrong arguments."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

BINARY = os.environ["QIAO_BINARY"]
TESTS = pathlib.Path(__file__).resolve().parent.parent
EXAMPLE = TESTS.parent / "examples" / "grpo"


def qiao(*arguments):
    return subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=300)


class GrpoTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.out = pathlib.Path(self.folder.name) / "run"
        subprocess.run([sys.executable, EXAMPLE / "make_prompts.py", self.folder.name], stdout=subprocess.DEVNULL,
                       check=True)
        self.prompts = pathlib.Path(self.folder.name) / "prompts.jsonl"

    def train(self, *more, max_tokens=8):
        return qiao("train", "grpo", "--init", TESTS / "golden" / "chat", "--data", self.prompts, "--batch", 2,
                    "--group", 3, "--seq", 160, "--steps", 2, "--out", self.out, "-t", 1, "--max-tokens",
                    max_tokens, *more)

    def test_the_example_runs_and_goes_on(self):
        run = self.train("--reward-python", EXAMPLE / "reward.py", "--lr", "1e-4", "--kl", "0.1")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("rollout kl 0, 0 of ", run.stderr)
        again = qiao("train", "grpo", "--resume", self.out, "--steps", 3)
        self.assertEqual(again.returncode, 0, again.stderr)
        lines = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual([line["step"] for line in lines], [1, 2, 3])
        for line in lines:
            self.assertEqual(line["rollout_differing"], 0)
            self.assertGreater(line["rollout_compared"], 6)
            for name in ["reward", "reward/right", "reward/in_form", "completion_tokens", "finished", "entropy", "kl",
                         "rollout_seconds", "rollout_tokens_per_second", "training_seconds"]:
                self.assertIn(name, line)
        self.assertTrue((self.out / "model" / "model.safetensors").exists())

    def test_wrong_arguments(self):
        run = self.train("--reward", "cat", max_tokens=160)
        self.assertIn("--max-tokens is 160; 1 to 159", run.stderr)
        for more, expected in [((), "no reward is given"),
                               (("--reward", "cat", "--loss", "ppo"), "--loss"),
                               (("--reward", "cat", "--tools", "tools.json"), "--tool-command is not given"),
                               (("--reward", "exit 4"), "exit code 4")]:
            run = self.train(*more)
            self.assertNotEqual(run.returncode, 0, more)
            errors = [line for line in run.stderr.splitlines() if line.startswith("qiao: ")]
            self.assertEqual(len(errors), 1, run.stderr)
            self.assertIn(expected, errors[0])


if __name__ == "__main__":
    unittest.main()
