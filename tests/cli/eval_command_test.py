"""`qiao eval` as a person calls it: files in, table or JSON out, and what it refuses. Numbers are tests/eval's matter."""
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import unittest

QIAO = os.environ["QIAO_BINARY"]
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
EVAL = GOLDEN / "eval"
MODEL = ["-m", str(GOLDEN / "chat"), "-q"]


def qiao_eval(*flags, code=0, model=MODEL):
    run = subprocess.run([QIAO, "eval", *model, *map(str, flags)], capture_output=True, text=True, timeout=300)
    if run.returncode != code:
        raise AssertionError(f"{flags}: {run.returncode}: {run.stderr}")
    return run


def interrupt(process):
    """Sends SIGINT once the process would catch it."""
    def catches_it():
        mask = re.search(r"SigCgt:\s*([0-9a-f]+)", pathlib.Path(f"/proc/{process.pid}/status").read_text())
        return mask and int(mask[1], 16) >> (signal.SIGINT - 1) & 1
    deadline = time.monotonic() + 60
    while not catches_it() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)


class EvalCommandTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)

    def write(self, name, *rows):
        path = self.path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    def test_several_tasks_at_once(self):
        samples = self.path / "out.jsonl"
        run = qiao_eval("--text", EVAL / "texts.jsonl", "--choices", EVAL / "choices.jsonl", "--exact", EVAL / "exact.jsonl", "-n", 12,
                        "--compute", "f32", "--kv-type", "f32", "--json", "--samples", samples)
        self.assertEqual(run.stderr, "")
        answer = json.loads(run.stdout)
        self.assertEqual([task["task"] for task in answer["tasks"]], ["text", "choices", "exact"])
        expected = json.loads((EVAL / "expected.json").read_text())
        text, choices, exact = answer["tasks"]
        self.assertAlmostEqual(text["bits_per_byte"], expected["texts"][0]["bits_per_byte"], 4)
        for metric in ("acc", "acc_norm", "acc_bytes"):
            for ours, theirs in zip((choices[metric], choices[metric + "_stderr"]), expected["choices"][metric], strict=True):
                self.assertAlmostEqual(ours, theirs, 12)
        self.assertAlmostEqual(exact["exact_match"], expected["exact"]["exact_match"][0], 12)
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        self.assertEqual([sum(row["task"] == kind for row in rows) for kind in ("text", "choices", "exact")], [6, 8, 6])
        self.assertAlmostEqual(sum(row["acc"] for row in rows if row["task"] == "choices") / 8, choices["acc"], 12)

    def test_a_table_for_people(self):
        out = qiao_eval("--choices", EVAL / "choices.jsonl", "--limit", 3, "--num-fewshot", 2).stdout.splitlines()
        self.assertEqual(out[0].split(), ["task", "file", "rows", "shots", "metric", "value", "stderr"])
        self.assertEqual(out[1].split()[:5], ["choices", str(EVAL / "choices.jsonl"), "3", "2", "acc"])
        self.assertIn("tokens/s", out[-1])

    def test_adapters_beside_the_base(self):
        lora = GOLDEN / "lora"
        answer = json.loads(qiao_eval("--choices", EVAL / "choices.jsonl", "--json", "--with-base", "--lora", f"one={lora / 'chat-one'}",
                                      "--lora", f"two={lora / 'chat-two'}", "--samples", self.path / "s").stdout)
        self.assertEqual([task["adapter"] for task in answer["tasks"]], [None, "one", "two"])
        sums = [json.loads(line)["log_likelihoods"] for line in (self.path / "s").read_text().splitlines()]
        self.assertEqual(len({tuple(sums[i]) for i in (0, 8, 16)}), 3)

    def test_stops_and_filters(self):
        file = EVAL / "exact.jsonl"
        samples = self.path / "s"

        def said(*flags):
            qiao_eval("--exact", file, "-n", 12, "--samples", samples, *flags)
            return [json.loads(line) for line in samples.read_text().splitlines()]
        plain = said("--keep-whitespace")
        stop = plain[3]["generated"][4]
        for row, cut in zip(plain, said("--stop", stop, "--stop", "no such text", "--keep-whitespace"), strict=True):
            self.assertEqual(cut["generated"], row["generated"].split(stop)[0])
        self.assertEqual(said("--regex", "([a-z]+)", "--regex-match", -1)[3]["extracted"], "m")
        self.assertEqual(said("--regex", "no such (text)")[0]["extracted"], "[invalid]")

    def test_bad_rows_are_told_with_their_line(self):
        file = self.write("q.jsonl", {"question": "a", "choices": ["b", "c"], "answer": 1}, "{", {"question": "a", "choices": ["b", "c"], "answer": 7})
        run = qiao_eval("--choices", file, "--json")
        self.assertIn("q.jsonl:2: ", run.stderr)
        self.assertIn("q.jsonl:3: ", run.stderr)
        task = json.loads(run.stdout)["tasks"][0]
        self.assertEqual((task["rows"], task["bad_rows"], task["acc_stderr"]), (1, 2, None))
        many = self.write("many.jsonl", *["[]"] * 50, {"prompt": "a", "answer": "b"})
        self.assertEqual(qiao_eval("--exact", many, "-n", 1).stderr.count("\n"), 21)

    def test_what_is_refused(self):
        choices = EVAL / "choices.jsonl"
        for code, named, flags in (
                (2, "nothing to evaluate", []), (2, "--fewshot", ["--choices", choices, "--fewshot", choices]),
                (2, "--with-base", ["--choices", choices, "--with-base"]), (2, "--add-bos", ["--choices", choices, "--add-bos", "maybe"]),
                (2, "--max-tokens", ["--exact", choices, "--max-tokens", "0"]), (1, "--regex", ["--exact", choices, "--regex", "["]),
                (1, "no-such-file", ["--text", "no-such-file"]), (1, "--samples", ["--choices", choices, "--samples", self.path / "no" / "s"]),
                (1, "--seq 600", ["--text", EVAL / "texts.jsonl", "--seq", "600", "-c", "100"]),
                (1, "--num-fewshot 8", ["--choices", choices, "--num-fewshot", "8"]), (1, "is a directory", ["--text", self.path])):
            with self.subTest(flags=flags):
                run = qiao_eval(*flags, code=code)
                self.assertEqual(run.stdout, "")
                self.assertIn(named, run.stderr)
                self.assertEqual(run.stderr.count("\n"), 1)

    def test_a_chat_needs_a_template(self):
        for file in (GOLDEN / "chat").iterdir():
            (self.path / file.name).symlink_to(file)
        config = json.loads((GOLDEN / "chat" / "tokenizer_config.json").read_text())
        del config["chat_template"]
        (self.path / "tokenizer_config.json").unlink()
        (self.path / "tokenizer_config.json").write_text(json.dumps(config))
        model = ["-m", str(self.path), "-q"]
        self.assertIn("chat template", qiao_eval("--chat", "--exact", EVAL / "exact.jsonl", code=1, model=model).stderr)
        rows = self.write("m.jsonl", {"messages": [{"role": "user", "content": "a"}], "answer": "b"})
        self.assertIn("m.jsonl:1: ", qiao_eval("--exact", rows, "-c", 400, code=1, model=model).stderr)

    def test_interrupt(self):
        file = self.write("long.jsonl", *[{"prompt": f"{i} The sky", "answer": "x"} for i in range(4000)])
        process = subprocess.Popen([QIAO, "eval", *MODEL, "--exact", str(file), "-n", "400", "--stop", "no such text", "--json"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        interrupt(process)
        out, _ = process.communicate(timeout=300)
        self.assertEqual(process.returncode, 130)
        self.assertEqual(json.loads(out)["interrupted"], True)

    def test_perplexity_of_a_uniform_guess(self):
        """A text of one token: its perplexity is what the model's own distribution behind BOS says."""
        file = self.path / "a.txt"
        file.write_text("a")
        task = json.loads(qiao_eval("--text", file, "--json").stdout)["tasks"][0]
        self.assertEqual((task["tokens"], task["words"], task["bytes"]), (1, 1, 1))
        run = subprocess.run([QIAO, "generate", *MODEL, "-p", "<|endoftext|>", "-n", "1", "--temp", "0", "--logit-bias", "%d+100" % self.id_of_a(),
                              "--json", "--logprobs", "0"], capture_output=True, text=True)
        step = json.loads(run.stdout)["logprobs"][0]
        self.assertEqual(step["token"], "a")
        self.assertAlmostEqual(math.log(task["token_perplexity"]), -step["logprob"], 5)

    def id_of_a(self):
        return json.loads((GOLDEN / "chat" / "tokenizer.json").read_text())["model"]["vocab"]["a"]


if __name__ == "__main__":
    unittest.main()
