#!/usr/bin/env python3
"""`qiao train`'s settings: flags, --config, what a run keeps of them, --resume; and `qiao data inspect`."""
import json
import os
import pathlib
import subprocess
import tempfile
import tomllib
import unittest

QIAO = os.environ["QIAO_BINARY"]
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
CHATS = GOLDEN / "chat_training" / "chats.jsonl"


def qiao(*arguments, cwd=None):
    return subprocess.run([QIAO, *map(str, arguments)], capture_output=True, text=True, cwd=cwd)


class TrainCommandTest(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self.scratch.name)
        self.addCleanup(self.scratch.cleanup)

    def config(self, text):
        path = self.folder / "settings.toml"
        path.write_text(text)
        return path

    def steps(self, run):
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

    def test_a_run_goes_on_by_its_own_settings(self):
        config = self.config(f'mode = "finetune"\ninit = "{GOLDEN}/chat"\ndata = ["{CHATS}"]\nsteps = 9\nbatch = 1\nseq = 112\n'
                             'lr = 1e-4\nshuffle = false\nschedule = "constant"\n')
        run, whole = self.folder / "run", self.folder / "whole"
        first = qiao("train", "finetune", "--config", config, "--out", run, "--steps", 3, "-q")
        self.assertEqual(first.returncode, 0, first.stderr)
        settings = tomllib.loads((run / "run.toml").read_text())
        self.assertEqual((settings["steps"], settings["lr"], settings["seq"], settings["beta2"]), (3, 1e-4, 112, 0.95))
        self.assertEqual(len(self.steps(run)), 3)
        # From another folder, with nothing else said; then from there once more, by --out.
        again = qiao("train", "finetune", "--resume", run, "--steps", 5, cwd=self.folder)
        self.assertEqual(again.returncode, 0, again.stderr)
        again = qiao("train", "finetune", "--out", run, "--resume", "--steps", 6)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertEqual(tomllib.loads((run / "run.toml").read_text())["steps"], 6)
        self.assertEqual(qiao("train", "finetune", "--config", config, "--out", whole, "--steps", 6).returncode, 0)
        self.assertEqual([line["loss"] for line in self.steps(run)], [line["loss"] for line in self.steps(whole)])
        self.assertEqual((run / "model" / "model.safetensors").read_bytes(), (whole / "model" / "model.safetensors").read_bytes())
        other = qiao("train", "pretrain", "--resume", run)
        self.assertEqual(other.returncode, 1)
        self.assertIn('"pretrain" was expected', other.stderr)

    def test_wrong_settings_name_file_key_value_and_what_is_allowed(self):
        base = f'init = "{GOLDEN}/chat"\ndata = "{CHATS}"\nout = "{self.folder}/never"\nsteps = 1\n'
        for line, *expected in [
                ("stepz = 3", 'unknown key "stepz"', "did you mean 'steps'"),
                ('batch = "4"', "batch = '4'", "an integer was expected"),
                ("batch = 1.5", "batch = 1.5", "an integer was expected"),
                ("batch = 0", "--batch is 0", "a number above 0"),
                ('schedule = "fast"', "schedule = 'fast'", "one of constant, linear, cosine"),
                ('lr = "high"', "lr = 'high'", "a number was expected"),
                ("beta1 = 1.0", "--beta1 is 1", "below 1"),
                ("shuffle = 3", "shuffle = 3", "on, off"),
                ("dry-run = 1", "dry-run = 1", "true or false"),
                ("threads = 99999999999999999", "threads = 99999999999999999", "an integer"),
                ("threads = -2", "--threads is -2", "0 to 4096"),
                ("lora-rank = -2", "lora-rank = -2", "0 or more"),
                ("batch = 9223372036854775807", "--batch is 9223372036854775807", "up to 4194303"),
                ("lora-dropout = 0.5", "--lora-dropout is 0.5", "no adapter"),
                ("max-bad-rows = -1", "--max-bad-rows is -1", "0 or more"),
                ("[adam]\nlr = 1", 'unknown key "adam"'),
                ("resume = true", 'unknown key "resume"'),
                ('mode = "dpo"', "mode = 'dpo'", '"finetune" was expected'),
                ("seq = 4\nseq = 5", "not valid TOML"),
                ("seq", "not valid TOML"),
                ("x = " + "[" * 5000, "not valid TOML")]:
            with self.subTest(line=line[:40]):
                result = qiao("train", "finetune", "--config", self.config(base + line + "\n"))
                self.assertEqual(result.returncode, 1)
                self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
                for part in ("settings.toml", *expected):
                    self.assertIn(part, result.stderr)
        self.assertFalse((self.folder / "never").exists())

    def test_wrong_flags_name_value_and_what_is_allowed(self):
        base = ["train", "pretrain", "--init", GOLDEN / "chat", "--data", CHATS, "--out", self.folder / "never", "--steps", 1]
        for flags, *expected in [(["--lr", "abc"], "--lr is abc", "a number was expected"),
                                 (["--batch", "x"], "--batch is x", "an integer was expected"),
                                 (["--seed", "9223372036854775808"], "--seed is 9223372036854775808", "below 2^63"),
                                 (["--seed", "99999999999999999999"], "--seed is 99999999999999999999"),
                                 (["--threads", "100000"], "--threads is 100000", "0 to 4096")]:
            with self.subTest(flags=flags):
                result = qiao(*base, *flags)
                self.assertIn(result.returncode, (1, 2))
                self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
                for part in expected:
                    self.assertIn(part, result.stderr)

    def test_what_is_missing_is_said(self):
        for arguments, expected in [(["--out", "x", "--data", "x"], "--init is missing"),
                                    (["--resume"], "--resume: the folder of a run"),
                                    (["--resume", self.folder / "none"], "there is no run to go on with"),
                                    (["--config", self.folder / "none.toml"], "none.toml")]:
            result = qiao("train", "pretrain", *arguments)
            self.assertEqual(result.returncode, 1)
            self.assertIn(expected, result.stderr)

    def test_a_batch_that_cannot_fit_is_refused(self):
        result = qiao("train", "finetune", "--init", GOLDEN / "chat", "--data", CHATS, "--steps", 1, "--out", self.folder / "run",
                      "--batch", 2000000, "--seq", 4096)
        self.assertEqual(result.returncode, 1)
        self.assertIn("--batch is 2000000", result.stderr)


class DataInspectTest(unittest.TestCase):
    def inspect(self, *arguments):
        result = qiao("data", "inspect", "--init", GOLDEN / "chat", "--data", CHATS, "--shuffle", "off", *arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def test_json_has_tokens_and_which_carry_loss(self):
        expected = [case for case in json.loads((GOLDEN / "chat_training" / "masks.json").read_text())["cases"]
                    if case["template"] == "plain"]
        out = json.loads(self.inspect("--mode", "finetune", "--seq", 150, "--batch", 2, "--json"))
        self.assertEqual([len(sequence["documents"]) for sequence in out["sequences"]], [2, 1])
        documents = [document for sequence in out["sequences"] for document in sequence["documents"]]
        for document, case in zip(documents, expected):
            self.assertEqual(document["tokens"], case["tokens"])
            self.assertEqual(document["loss"], [bool(each) for each in case["mask"]])
            self.assertEqual(len(document["texts"]), len(document["tokens"]))
        tokens = sum(len(document["tokens"]) for document in documents)
        self.assertEqual((out["tokens"], out["rows"], out["bad_rows"]), (tokens, 4, 0))
        self.assertAlmostEqual(out["share_empty"], 1 - tokens / 300)
        self.assertEqual(out["tokens_with_loss"], sum(sum(document["loss"]) for document in documents))

    def test_text_marks_what_carries_loss(self):
        text = self.inspect("--mode", "finetune", "--seq", 150, "--batch", 1)
        self.assertIn("sequence 1: ", text)
        self.assertIn("document 2: ", text)
        self.assertIn("[<|im_end|>/2]", text)
        self.assertIn(" <|im_start|>/1 ", text)
        self.assertIn("4 rows, 0 bad", text)

    def test_pairs_show_both_answers(self):
        result = qiao("data", "inspect", "--init", GOLDEN / "chat", "--data", GOLDEN / "chat_training" / "pairs.jsonl", "--mode",
                      "dpo", "--batch", 1, "--json")
        parts = [document["part"] for sequence in json.loads(result.stdout)["sequences"] for document in sequence["documents"]]
        self.assertEqual(parts, ["chosen", "rejected"])


if __name__ == "__main__":
    unittest.main()
