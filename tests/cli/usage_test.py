"""The program in bad weather: full disks, closed descriptors, narrow terminals, interrupts, wrong values."""
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

from eval_command_test import interrupt

QIAO = os.environ["QIAO_BINARY"]
MODEL = str(pathlib.Path(__file__).resolve().parents[1] / "golden" / "chat")


def qiao(*arguments, **more):
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 300, **more}
    return subprocess.run([QIAO, *arguments], **options)


def on_terminal(*arguments, columns, keys=(), seconds=120):
    """What the program shows on a terminal; each of `keys` is (what to wait for, what to type then)."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))  # before the program can ask for it
        os.execv(QIAO, [QIAO, *arguments])
    keys, shown, end = list(keys), b"", time.monotonic() + seconds
    while time.monotonic() < end:
        if keys and keys[0][0] in shown:
            os.write(terminal, keys.pop(0)[1])
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # it has ended
                break
    else:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown.decode("utf-8", "replace")


class UsageTest(unittest.TestCase):
    def test_a_full_disk_is_an_error(self):
        for arguments in (["list"], ["--help"], ["chat", "--help"], ["serve", "--help"], ["train", "grpo", "--help"], ["list", "--json"], ["generate", "-m", MODEL, "-p", "x", "-n", "2"]):
            with open("/dev/full", "w") as full:
                run = qiao(*arguments, stdout=full, stderr=subprocess.PIPE, capture_output=False)
            self.assertEqual(run.returncode, 1, arguments)
            self.assertIn("No space left on device", run.stderr)
            self.assertEqual(run.stderr.count("\n"), 1)

    def test_a_device_that_is_none(self):
        with_cuda = "cuda[:N]" in qiao("generate", "-m", MODEL, "-p", "x", "--device", "gpu").stderr
        for device in ("gpu", "cuda:x", "cuda:", "cuda:-1", "cuda:99999999999999999999", "cpu:1"):
            run = qiao("generate", "-m", MODEL, "-p", "x", "-n", "1", "--device", device)
            self.assertEqual(run.returncode, 1, device)
            self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
            self.assertTrue(run.stderr.startswith(f"qiao: --device {device}: "), run.stderr)
            self.assertEqual(not with_cuda and device.startswith("cuda"), "built without" in run.stderr, run.stderr)

    def test_nan_is_in_no_range(self):
        for arguments in (["generate", "-m", MODEL, "-p", "x", "--rank-timeout"], ["serve", "-m", MODEL, "--memory-utilization"],
                          ["serve", "-m", MODEL, "--kv-cache-dir-size"], ["train", "pretrain", "--rank-timeout"]):
            run = qiao(*arguments, "nan")
            self.assertEqual(run.returncode, 2, arguments)
            self.assertIn(f"{arguments[-1]}: Value nan not in range", run.stderr)

    def test_closed_descriptors(self):
        for redirection, code in ((">&-", 1), ("<&-", 0), ("2>&-", 0), (">&- 2>&-", 1)):
            run = subprocess.run(["bash", "-c", f'"$0" generate -m "$1" -p x -n 2 {redirection}', QIAO, MODEL],
                                 capture_output=True, text=True, timeout=300)
            self.assertEqual(run.returncode, code, redirection)

    def test_a_reader_that_leaves_ends_it(self):
        run = subprocess.run(["bash", "-c", '"$0" generate -m "$1" -p x -n 400 --ignore-eos | head -c 1; echo "${PIPESTATUS[0]}"', QIAO, MODEL],
                             capture_output=True, timeout=300)
        self.assertIn(run.stdout[1:].strip(), (b"141", b"0"))  # SIGPIPE, unless it had written all before
        self.assertEqual(run.stderr, b"")

    def test_values_that_mean_nothing(self):
        for arguments, said in ((["bench", "-m", MODEL, "-p", "0", "-n", "0"], "nothing to measure"),
                                (["serve", "-m", MODEL, "--port", "70000"], "--port: Value 70000 not in range 0 to 65535"),
                                (["serve", "-m", MODEL, "--port", "x"], "--port"), (["chat", "-m", MODEL, "--temp", "hot", "x"], "--temp"),
                                (["chat", "-p", "a", "-f", "b"], "--file"),
                                (["train", "grp"], "train: unknown command 'grp'; did you mean 'grpo'?"),
                                (["tokenizer", "nothing like it"], "`qiao tokenizer --help`"),
                                (["conformance", "--products", "12x"], "--products: 12x: not N x K of a weight, each from 1 to 1048576, as in 28672x4096"),
                                (["conformance", "--products", "0x4"], "0x4: not N x K"), (["conformance", "--products", "4-4"], "4-4: not N x K"),
                                (["conformance", "--products", "4x4x4"], "4x4x4: not N x K"), (["conformance", "--tokens", "4"], "--tokens requires --products"), (["conformance", "--products", "4x4", "--tokens", "0"], "--tokens: Value 0 not in range"),
                                (["train", "dpo", "--bogus"], "train dpo: unknown option '--bogus'; `qiao train dpo --help`")):
            run = qiao(*arguments)
            self.assertEqual((run.returncode, run.stdout), (2, ""), arguments)
            self.assertIn(said, run.stderr)
            self.assertEqual(run.stderr.count("\n"), 1)
        for arguments, said in ((["--quick"], "leave out --quick and --no-bench"), (["--op", "rope"], "leave out --op, or say --op linear")):
            run = qiao("conformance", "--products", "16x16", *arguments)
            self.assertEqual((run.returncode, run.stdout, run.stderr), (1, "", f"qiao: --products: times products alone; {said}\n"))
        for command in (["generate", "-p", "a b c"], ["chat", "hello"], ["serve", "--port", "0"]):
            run = qiao(*command, "-m", MODEL, "-c", "1")
            self.assertEqual((run.returncode, run.stdout, run.stderr),
                             (1, "", "qiao: the context (-c) is 1 token; the least is 2: one of a prompt and one of its answer\n"), command)
        for command in (["generate", "-p", "a b c"], ["chat", "hello"]):  # the least that it names is enough, and no less
            run = qiao(*command, "-m", MODEL, "-c", "2", "-n", "1")
            self.assertEqual((run.returncode, run.stdout, run.stderr.count("\n")), (1, "", 1), command)
            needed = int(re.search(r"the least for it is (\d+) \(-c\)$", run.stderr)[1])
            self.assertEqual(qiao(*command, "-m", MODEL, "-c", str(needed), "-n", "1").returncode, 0, command)
            self.assertEqual(qiao(*command, "-m", MODEL, "-c", str(needed - 1), "-n", "1").returncode, 1, command)
        run = qiao("serve", "-m", MODEL, "--api-key", "", "--port", "0")
        self.assertEqual((run.returncode, run.stderr), (1, "qiao: --api-key: is empty; leave it out to ask for none\n"))

    def test_help_fits_the_terminal(self):
        for columns in (60, 80, 200):
            code, shown = on_terminal("chat", "--help", columns=columns)
            self.assertEqual(code, 0)
            options = shown.split("Options:")[1].split("Examples:")[0]
            self.assertLessEqual(max(len(line.rstrip("\r")) for line in options.split("\n")), min(columns, 100))
            self.assertIn("-n, --predict, --n-predict N", options)
            self.assertNotIn("INT", options)
        self.assertRegex(qiao("serve", "--help").stdout, r"(?s)--port PORT +Port to listen on.*?\[8080\]")

    def test_messages_from_files_and_pipes(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("Why?")
            file.flush()
            answers = [qiao("chat", "-m", MODEL, "-n", "8", "-s", "1", "--json", *how, input=text, stdin=None)
                       for how, text in ((["-f", file.name], ""), (["Why?"], ""), (["-p", "Why?"], ""), ([], "Why?"))]
        self.assertEqual([run.returncode for run in answers], [0] * 4, answers)
        self.assertEqual(len({json.loads(run.stdout)["text"] for run in answers}), 1)

    def test_an_interrupt_ends_an_answer_with_what_there_is(self):
        process = subprocess.Popen([QIAO, "generate", "-m", MODEL, "-p", "x", "-c", "32768", "-n", "32000", "--ignore-eos", "--json", "-t", "1"],
                                   stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        interrupt(process)  # whose answer would take many seconds
        out, _ = process.communicate(timeout=300)
        self.assertEqual(process.returncode, 130)
        self.assertEqual(json.loads(out)["finish_reason"], "cancelled")

    def test_a_conversation_on_a_narrow_terminal(self):
        with tempfile.TemporaryDirectory() as home:
            os.environ["QIAO_HOME"] = home
            try:
                code, shown = on_terminal("chat", "-m", MODEL, "-n", "4", columns=24, keys=[
                    (b"> ", b"/help\r"), (b"/exit", b"hello\r"), (b"hello", b"/nosuch\r"), (b"No such command", b"/exit\r")])
            finally:
                del os.environ["QIAO_HOME"]
            self.assertEqual(code, 0, shown)
            self.assertIn("hello", pathlib.Path(home, "history").read_text())
            self.assertEqual(pathlib.Path(home, "history").stat().st_mode & 0o077, 0)


if __name__ == "__main__":
    unittest.main()
