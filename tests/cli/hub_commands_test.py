"""pull, list, rm, completion, the first screen and mistyped names, with the program as a person runs it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

QIAO = os.environ["QIAO_BINARY"]
HUB = pathlib.Path(__file__).resolve().parents[1] / "hub" / "stand_in_hub.py"


class HubCommands(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = subprocess.Popen([sys.executable, "-B", HUB], stdout=subprocess.PIPE, text=True)
        cls.port = cls.server.stdout.readline().split()[0]

    @classmethod
    def tearDownClass(cls):
        cls.server.terminate()
        cls.server.wait()
        cls.server.stdout.close()

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.home = pathlib.Path(self.folder.name, "home with space")
        self.environment = {**os.environ, "QIAO_HOME": str(self.home), "no_proxy": "*",
                            "QIAO_HF_ENDPOINT": f"http://127.0.0.1:{self.port}"}

    def qiao(self, *arguments):
        run = subprocess.run([QIAO, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                             env=self.environment, cwd=self.folder.name, timeout=300)
        return run.returncode, run.stdout, run.stderr

    def test_the_first_screen(self):
        status, out, err = self.qiao()
        self.assertEqual((status, err), (0, ""))
        self.assertIn("qiao chat", out)
        for command in ("pull", "list", "rm", "completion"):
            self.assertRegex(out, rf"\n  {command} ")

    def test_version(self):
        status, out, _ = self.qiao("--version")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"^qiao \d+\.\d+\.\d+( \([0-9a-f]+\))?\n$")

    def test_help_shows_an_example_of_every_command(self):
        out = self.qiao()[1]
        commands = [line.split()[0] for line in out.split("Commands:\n")[1].split("\n\n")[0].splitlines()]
        for command in commands:
            status, out, err = self.qiao(command, "--help")
            self.assertEqual((status, err), (0, ""), command)
            self.assertIn(f"  qiao {command}", out.replace("source <(qiao", "  qiao"), command)
            self.assertTrue(out.endswith("\n"), command)
            self.assertEqual(self.qiao("help", command)[1], out)

    def test_mistyped(self):
        self.assertEqual(self.qiao("lits"), (2, "", "qiao: unknown command 'lits'; did you mean 'list'?\n"))
        self.assertEqual(self.qiao("zzzzzz"), (2, "", "qiao: unknown command 'zzzzzz'; `qiao` lists them\n"))
        self.assertEqual(self.qiao("list", "--jsno"),
                         (2, "", "qiao: list: unknown option '--jsno'; did you mean '--json'?\n"))
        status, out, err = self.qiao("list", "x")
        self.assertEqual((status, out), (2, ""))
        self.assertEqual(err, "qiao: list: 'x' is one argument too many; `qiao list --help` shows what it takes\n")
        status, _, err = self.qiao("pull")
        self.assertEqual(status, 2)
        self.assertEqual(err.count("\n"), 1)

    def test_an_unknown_model(self):
        status, out, err = self.qiao("pull", "smolm2")
        self.assertEqual((status, out), (1, ""))
        self.assertIn("no model 'smolm2'; did you mean 'smollm2'?", err)
        self.assertIn("qwen2.5-coder-1.5b", err)
        self.assertEqual(err.count("\n"), 1)

    def test_pull_list_rm(self):
        status, out, err = self.qiao("pull", "hf:org/gguf")
        path = self.home / "models/hf/org/gguf/model-Q4_K_M.gguf"
        self.assertEqual((status, out), (0, f"{path}\n"), err)
        self.assertIn("hf:org/gguf: 100% of 205 kB\n", err)
        status, out, _ = self.qiao("pull", "--json", "hf:org/gguf")
        self.assertEqual(json.loads(out), [{"name": "hf:org/gguf", "path": str(path)}])

        status, out, _ = self.qiao("list", "--json")
        self.assertEqual(status, 0)
        listed = {row["name"]: row for row in json.loads(out)}
        name = "hf:org/gguf:model-Q4_K_M.gguf"
        self.assertEqual(listed[name], {"name": name, "installed": True, "bytes": 204800, "licence": None,
                                        "description": None, "path": str(path)})
        self.assertEqual((listed["smollm2"]["installed"], listed["smollm2"]["licence"]), (False, "Apache-2.0"))
        self.assertEqual(self.qiao("list", "--names")[1].splitlines(), list(listed))
        self.assertIn(str(path), self.qiao("list")[1])

        status, _, err = self.qiao("rm", name)
        self.assertEqual(status, 1)
        self.assertIn("say -y", err)
        self.assertTrue(path.exists())
        self.assertEqual(self.qiao("rm", "-y", name)[:2], (0, f"removed {name} (205 kB)\n"))
        self.assertFalse(path.exists())
        self.assertEqual(list((self.home / "models").iterdir()), [])

    def test_rm_touches_nothing_else(self):
        victim = pathlib.Path(self.folder.name, "victim.gguf")
        victim.write_text("x")
        for name in (str(victim), "victim.gguf", "../../victim.gguf", "hf:../victim.gguf", "hf:org/none"):
            status, _, err = self.qiao("rm", "-y", name)
            self.assertEqual(status, 1, name)
            self.assertEqual(err.count("\n"), 1, err)
        self.assertTrue(victim.exists())

    def test_a_hostile_hub_is_one_line(self):
        status, out, err = self.qiao("pull", "-q", "hf:evil/traversal")
        self.assertEqual((status, out), (1, ""))
        self.assertEqual(err.count("\n"), 1)
        self.assertIn("which is not taken", err)

    def complete(self, *words):
        """What bash would offer for the last word."""
        script = ('source <("$1" completion bash); shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
                  'compopt() { :; }; _qiao; printf "%s\\n" "${COMPREPLY[@]}"')
        run = subprocess.run(["bash", "-c", script, "bash", QIAO, QIAO, *words], capture_output=True, text=True,
                             env=self.environment, timeout=300)
        self.assertEqual(run.stderr, "")
        return run.stdout.split()

    def test_completion_in_bash(self):
        self.assertEqual(self.complete("comp"), ["completion"])
        self.assertEqual(self.complete("pull", "sm"), ["smollm2"])
        self.assertEqual(self.complete("list", "--j"), ["--json"])
        self.assertEqual(self.complete("completion", ""), ["bash", "zsh"])
        self.assertIn("--yes", self.complete("rm", "-"))
        if "chat" in self.complete(""):
            self.assertEqual(self.complete("chat", "-m", "gem"), ["gemma3-270m"])
            self.assertEqual(self.complete("chat", "--compute", "b"), ["bf16"])

    def test_completion_in_zsh(self):
        script = self.qiao("completion", "zsh")[1]
        self.assertTrue(script.startswith("#compdef qiao\n"))
        self.assertIn("--endpoint", script)
        if shutil.which("zsh"):
            check = subprocess.run(["zsh", "-n"], input=script, capture_output=True, text=True)
            self.assertEqual((check.returncode, check.stderr), (0, ""))
        self.assertEqual(self.qiao("completion", "fish")[0], 2)


if __name__ == "__main__":
    unittest.main()
