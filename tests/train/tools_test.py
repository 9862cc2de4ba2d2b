"""From texts to a tokenizer, a model from nothing, its curves; and what a person sees of a run."""
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import struct
import subprocess
import tempfile
import termios
import unittest

QIAO = os.environ["QIAO_BINARY"]
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 800, "hidden_size": 32,
          "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
          "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}


def qiao(*arguments, **more):
    return subprocess.run([QIAO, *map(str, arguments)], **{"capture_output": True, "text": True, "stdin": subprocess.DEVNULL,
                                                           "timeout": 300, **more})


def tokenizer(folder, *flags):
    return qiao("tokenizer", "train", "--data", GOLDEN / "bpe" / "texts.jsonl", "--vocab-size", 800, "--special", "<|begin|>",
                "--special", "<|end|>", "--eos", "<|end|>", "--out", folder, *flags)


def pretrain(init, run, *flags):
    return ["train", "pretrain", "--init", str(init), "--data", str(GOLDEN / "bpe" / "texts.jsonl"), "--out", str(run), "--seq",
            "32", "--batch", "2", *map(str, flags)]


class ToolsTest(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def test_a_tokenizer_encodes_as_the_library_does(self):
        for name, size, special in (("llama3", 800, ["<|begin|>", "<|end|>"]), ("gpt2", 700, ["<|endoftext|>"])):
            run = qiao("tokenizer", "train", "--data", GOLDEN / "bpe" / "texts.jsonl", "--vocab-size", size, "--pre-tokenizer",
                       name, *(flag for token in special for flag in ("--special", token)), "--out", self.folder / name)
            self.assertEqual(run.returncode, 0, run.stderr)
            for case in json.loads((GOLDEN / "bpe" / "ids.json").read_text())[name]:
                ids = qiao("tokenize", "-m", self.folder / name / "tokenizer.json", "--json", input=case["text"], stdin=None)
                self.assertEqual(json.loads(ids.stdout), case["ids"], case["text"])

    def test_a_chat_template_is_kept_and_checked(self):
        (self.folder / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        run = tokenizer(self.folder / "kept", "--chat-template", self.folder / "chat.jinja")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual((self.folder / "kept" / "chat_template.jinja").read_bytes(), (self.folder / "chat.jinja").read_bytes())
        (self.folder / "chat.jinja").write_text("{% for m in messages %}")
        run = tokenizer(self.folder / "not", "--chat-template", self.folder / "chat.jinja")
        self.assertEqual(run.returncode, 1)
        self.assertIn("chat.jinja", run.stderr)

    def test_bad_rows_and_settings_are_told(self):
        (self.folder / "rows.jsonl").write_text('{"text": "ab ab"}\n{"text": 1}\n')
        run = qiao("tokenizer", "train", "--data", self.folder / "rows.jsonl", "--vocab-size", 258, "--out", self.folder / "t")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("rows.jsonl:2: ", run.stderr)
        for flags, told in ((["--vocab-size", 100], "--vocab-size is 100"), (["--eos", "x"], "--eos is x")):
            run = qiao("tokenizer", "train", "--data", self.folder / "rows.jsonl", "--out", self.folder / "u", *flags)
            self.assertEqual(run.returncode, 1)
            self.assertIn(told, run.stderr)

    def test_from_nothing_to_text_and_curves(self):
        tokenizer(self.folder / "init")
        (self.folder / "init" / "config.json").write_text(json.dumps(CONFIG))
        runs = []
        for seed in (1, 2, 1):
            runs.append(self.folder / f"run-{len(runs)}")
            run = qiao(*pretrain(self.folder / "init", runs[-1], "--steps", 12, "--seed", seed, "--sample-every", 6,
                                 "--sample-prompt", "bako", "--sample-tokens", 5))
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertIn("sample of step 6: bako", run.stderr)
            self.assertEqual(len(re.findall(r"^step \d+/12 ", run.stderr, re.M)), 3)  # the first, the tenth and the last
        weights = [(run / "model" / "model.safetensors").read_bytes() for run in runs]
        self.assertEqual(weights[0], weights[2])
        self.assertNotEqual(weights[0], weights[1])
        self.assertEqual((runs[0] / "model" / "tokenizer.json").read_bytes(), (self.folder / "init" / "tokenizer.json").read_bytes())
        said = qiao("generate", "-m", runs[0] / "model", "-p", "bako", "-n", "4")
        self.assertEqual(said.returncode, 0, said.stderr)
        for name, begins in (("curves.svg", b"<?xml"), ("curves.png", b"\x89PNG")):
            drawn = qiao("plot", *runs[:2], "--metric", "loss,grad_norm", "--smooth", "0.5", "--out", self.folder / name)
            self.assertEqual(drawn.returncode, 0, drawn.stderr)
            self.assertTrue((self.folder / name).read_bytes().startswith(begins))
        self.assertIn(b">run-0<", (self.folder / "curves.svg").read_bytes().replace(b"\n", b"").replace(b" ", b""))
        for flags, told in ((["--metric", "lose"], "no step has lose; loss, grad_norm"), (["--out", "x.gif"], "--out is x.gif")):
            refused = qiao("plot", runs[0], *flags)
            self.assertEqual(refused.returncode, 1)
            self.assertIn(told, refused.stderr)

    def test_runs_of_one_name_are_told_apart_in_the_picture(self):
        for kind in ("small", "large"):
            (self.folder / kind / "run").mkdir(parents=True)
            (self.folder / kind / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "loss": 1}\n')
        drawn = qiao("plot", self.folder / "small" / "run", self.folder / "large" / "run", "--out", self.folder / "x.svg")
        self.assertEqual(drawn.returncode, 0, drawn.stderr)
        picture = (self.folder / "x.svg").read_text()
        for kind in ("small", "large"):
            self.assertIn(f"{kind}/run<", picture)

    def test_a_run_without_gnuplot_names_the_package(self):
        (self.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n')
        refused = qiao("plot", self.folder, "--out", self.folder / "x.svg", env={"PATH": str(self.folder)})
        self.assertEqual(refused.returncode, 1)
        self.assertIn("gnuplot-nox", refused.stderr)
        self.assertEqual([path.name for path in self.folder.iterdir()], ["metrics.jsonl"])

    def test_on_a_terminal_one_line_is_rewritten(self):
        command = [QIAO, *pretrain(GOLDEN / "chat", self.folder / "run", "--steps", 6)]
        pid, terminal = pty.fork()
        if pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))  # before the program can ask for it
            os.execv(QIAO, command)
        shown = b""
        while select.select([terminal], [], [], 60)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:  # it has ended
                break
            shown += data
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
        self.assertEqual(os.waitstatus_to_exitcode(status), 0, shown)
        lines = [line for line in shown.decode().split("\n") if "step 6/6" in line]
        self.assertEqual(len(lines), 1)
        drawn = lines[0].split("\r\x1b[K")
        self.assertEqual(len(drawn), 7)  # before the first, and one a step
        for part in ("loss", "gradient", "lr", "tokens/s", "% of peak"):
            self.assertIn(part, drawn[-1])
        self.assertTrue(all(len(part.rstrip("\r")) < 100 for part in drawn))


if __name__ == "__main__":
    unittest.main()
