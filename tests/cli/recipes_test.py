#!/usr/bin/env python3
"""The recipes of examples/ that make data: a model begins from nothing on it, and nothing held out is trained on."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

BINARY = os.environ["QIAO_BINARY"]
EXAMPLES = pathlib.Path(__file__).resolve().parent.parent.parent / "examples"
CHAT_MODEL = EXAMPLES.parent / "tests" / "golden" / "chat"


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise AssertionError(f"{command}: {done.stderr}")
    return done.stdout


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class RecipesTest(unittest.TestCase):
    def setUp(self):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.folder = pathlib.Path(place.name)

    def test_a_model_begins_from_nothing(self):
        verses = [f"1Sm{chapter}:{verse} And Saul said: number {chapter * verse}." for chapter in range(1, 22) for verse in range(1, 6)]
        (self.folder / "verses.txt").write_text("\n".join(verses) + "\n")
        run(sys.executable, EXAMPLES / "from_nothing" / "prepare.py", self.folder, "--text", self.folder / "verses.txt", "--qiao", BINARY,
            "--seq", 32, "--hidden", 32, "--layers", 1, "--epochs", 1)
        training, held_out = (read(self.folder / f"{name}.jsonl") for name in ("train", "held_out"))
        self.assertEqual((len(training), len(held_out)), (20, 1))
        self.assertEqual(held_out[0]["text"], "".join(f"And Saul said: number {20 * verse}.\n" for verse in range(1, 6)))
        rows = read(self.folder / "train_rows.jsonl")
        text = b"\0".join(row["text"].encode() for row in training) + b"\0"
        self.assertEqual(len(rows), len(text) // 32)  # of a token a byte, and one behind each document
        self.assertTrue(all(len(row["tokens"]) == 32 for row in rows))
        run(BINARY, "train", "pretrain", "--init", self.folder / "init", "--data", self.folder / "train_rows.jsonl", "--validation",
            self.folder / "held_out_rows.jsonl", "--seq", 32, "--batch", 2, "--steps", 2, "--out", self.folder / "run", "-q")
        self.assertGreater(read(self.folder / "run" / "metrics.jsonl")[1]["validation_loss"], 0)

    def test_the_manual_holds_its_questions_out(self):
        run(sys.executable, EXAMPLES / "teach" / "make_manual.py", self.folder)
        training, held_out = (read(self.folder / f"{name}.jsonl") for name in ("train", "held_out"))
        self.assertGreaterEqual(len(training), 500)

        def part(rows, place):
            return [row["messages"][place]["content"] for row in rows]
        self.assertEqual(len(set(part(training, 1)) | set(part(held_out, 1))), len(training) + len(held_out))
        self.assertEqual(set(part(held_out, 2)), set(part(training, 2)))
        asked = read(self.folder / "new_phrasings.jsonl") + read(self.folder / "new_names.jsonl")
        self.assertEqual([(row["messages"][1]["content"], row["answer"]) for row in asked], list(zip(part(held_out, 1), part(held_out, 2))))
        shown = run(BINARY, "data", "inspect", "--init", CHAT_MODEL, "--data", self.folder / "train.jsonl", "--mode", "finetune",
                    "--seq", 512, "--json")
        self.assertIn("tokens", shown)

    def test_sums_are_held_out(self):
        run(sys.executable, EXAMPLES / "grpo" / "make_prompts.py", self.folder)
        prompts, held_out = (read(self.folder / f"{name}.jsonl") for name in ("prompts", "held_out"))
        asked = [row["prompt"] for row in prompts + held_out]
        self.assertEqual((len(asked), len(set(asked)), len(held_out)), (441, 441, 81))
        sys.path.insert(0, str(EXAMPLES / "grpo"))
        self.addCleanup(sys.path.remove, str(EXAMPLES / "grpo"))
        import reward
        for row in prompts:
            a, _, b = row["prompt"].rstrip("?").split()
            right, wrong = (f" <answer>{a} + {b} = {int(a) + int(b) + more}</answer>" for more in (0, 1))
            for answer, expected in ((right, 1.0), (wrong, 0.2), (right + " ok", 0.0)):
                self.assertEqual(reward.reward({"completion": answer, "row": row})["reward"], expected, answer)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    unittest.main()
