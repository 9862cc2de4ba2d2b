"""The memory that a run states before its first step is what it then takes, within 3 %."""
import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

QIAO = os.environ["QIAO_BINARY"]
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def model(folder, **more):
    """A configuration without weights, and rows of tokens."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 4096, "hidden_size": 256,
              "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
              "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, **more}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [[(7 * i + j * j) % 4096 for j in range(300)] for i in range(64)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"tokens": row}) + "\n" for row in rows))


class MemoryTest(unittest.TestCase):
    def run_of(self, folder, *flags):
        command = [QIAO, "train", "pretrain", "--init", str(folder), "--data", str(folder / "rows.jsonl"), "--steps", "2",
                   "--out", str(folder / "run"), *flags]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        errors, output = process.stderr.read(), process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stderr.close()
        process.stdout.close()
        return process.returncode, output + errors, usage.ru_maxrss * 1024

    def stated(self, text):
        number, unit = re.search(r"memory at the peak: ([\d.]+) (\w+)", text).groups()
        return float(number) * UNITS[unit]

    def test_the_statement_is_what_is_used(self):
        cases = {"activations": ({}, "--batch", "8", "--seq", "256"),
                 "parameters": ({"vocab_size": 16384, "tie_word_embeddings": False}, "--batch", "1", "--seq", "64"),
                 "a copy": ({"vocab_size": 16384, "tie_word_embeddings": False}, "--batch", "1", "--seq", "64", "--checkpoint-every", "1"),
                 "bf16": ({"vocab_size": 16384, "dtype": "bfloat16"}, "--batch", "2", "--seq", "128", "--micro-batch", "1"),
                 "fp8": ({"vocab_size": 16384, "dtype": "bfloat16"}, "--batch", "2", "--seq", "128", "--dtype", "fp8")}
        for name, (more, *flags) in cases.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as folder:
                folder = pathlib.Path(folder)
                model(folder, **more)
                code, text, used = self.run_of(folder, *flags)
                self.assertEqual(code, 0, text)
                self.assertLessEqual(abs(self.stated(text) / used - 1), 0.03, f"{text}\nused {used}")

    def test_a_dry_run_tells_memory_speed_and_time_and_leaves_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            model(folder)
            code, text, used = self.run_of(folder, "--batch", "4", "--seq", "128", "--dry-run")
            self.assertEqual(code, 0, text)
            self.assertRegex(text, r"\d+ tokens/s; .* for 2 steps\n")
            self.assertFalse((folder / "run").exists())

    def test_what_does_not_fit_is_refused_with_what_would(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            model(folder)
            code, text, _ = self.run_of(folder, "--batch", "1000000", "--seq", "2048")
            self.assertEqual(code, 1, text)
            advice = re.search(r"--micro-batch (\d+) fits", text)
            self.assertIsNotNone(advice, text)
            self.assertIn("of activations", text)
            self.assertEqual(text.count("\n"), 1)


if __name__ == "__main__":
    unittest.main()
