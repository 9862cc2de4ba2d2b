"""A run that is killed at any moment goes on to the bytes that it would have had."""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

QIAO = os.environ["QIAO_BINARY"]
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "training"
KILLS, STEPS = 30, 40


def start(run, *more):
    command = [QIAO, "train", "pretrain", "--init", str(GOLDEN / "llama" / "init"), "--data", str(GOLDEN / "data.jsonl"),
               "--steps", str(STEPS), "--batch", "4", "--seq", "32", "--seed", "5", "--checkpoint-every", "3",
               "--out", str(run), "--threads", "1", "--quiet", *more]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def files_of(run):
    """The bytes of all that is left: the model and the checkpoints."""
    return {str(path.relative_to(run)): path.read_bytes()
            for folder in ("model", "checkpoints") for path in sorted((run / folder).rglob("*")) if path.is_file()}


def steps_of(run):
    """Of each line of metrics.jsonl what does not depend on time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


class KillTest(unittest.TestCase):
    def test_a_kill_as_the_last_checkpoint_gets_its_name(self):
        """Older ones are still there, or half: what goes on tidies up, though it has no checkpoint to write."""
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            folder = pathlib.Path(folder)
            self.assertEqual(start(folder / "whole").wait(), 0)
            expected = files_of(folder / "whole")
            for number in range(4):
                run = folder / f"run-{number}"
                last = run / "checkpoints" / f"step-{STEPS:08}"
                process = start(run)
                while process.poll() is None and not last.exists():
                    pass
                process.kill()
                process.communicate()
                process = start(run, "--resume")
                errors = process.communicate()[1]
                self.assertEqual(process.returncode, 0, errors)
                self.assertEqual(files_of(run), expected)

    def test_thirty_random_kills(self):
        seed = int(os.environ.get("QIAO_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
        print(f"seed {seed} (QIAO_TEST_SEED)", file=sys.stderr)
        drawn = random.Random(seed)
        # In memory, where syncing takes no time: a killed process loses nothing that it has written anywhere.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            folder = pathlib.Path(folder)
            began = time.monotonic()
            whole = start(folder / "whole")
            errors = whole.communicate()[1]
            self.assertEqual((whole.returncode, errors), (0, ""))
            length = time.monotonic() - began
            expected, steps = files_of(folder / "whole"), steps_of(folder / "whole")
            self.assertEqual([row["step"] for row in steps], list(range(1, STEPS + 1)))
            kills = runs = 0
            while kills < KILLS:
                runs += 1
                run = folder / f"run-{runs}"
                while True:
                    # Before it has its folder there is no run to go on with.
                    process = start(run, *(["--resume"] if (run / "lock").exists() else []))
                    if kills < KILLS:
                        # Where other work made the first run slow, thirty of its like would take minutes.
                        time.sleep(drawn.uniform(0, 0.7 * min(length, 1.5)))
                        process.kill()
                    errors = process.communicate()[1]
                    if process.returncode != -signal.SIGKILL:
                        break
                    kills += 1
                self.assertEqual(process.returncode, 0, errors)
                self.assertEqual(steps_of(run), steps)
                left = files_of(run)
                self.assertEqual(left.keys(), expected.keys())
                for name, data in expected.items():
                    self.assertTrue(left[name] == data, f"{name} differs, seed {seed}")
                shutil.rmtree(run)  # there may be many of them, and little memory


if __name__ == "__main__":
    unittest.main()
