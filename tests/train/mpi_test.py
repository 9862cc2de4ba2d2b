#!/usr/bin/env python3
"""Trains in processes that mpirun starts: the same bytes for 1, 2 and 4 of them, and what happens where one is killed or
stopped. Skipped where there is no mpirun."""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

QIAO = os.environ["QIAO_BINARY"]
GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden" / "training"
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}


def command(processes, out, *flags, batch="4"):
    return ["mpirun", "-np", str(processes), QIAO, "train", "pretrain", "--init", str(GOLDEN / "llama" / "init"), "--data",
            str(GOLDEN / "data.jsonl"), "--out", str(out), "--batch", batch, "--seq", "32", "--threads", "1",
            "--schedule", "constant", *flags]


def run(processes, out, *flags, **settings):
    return subprocess.run(command(processes, out, *flags, **settings), env=ENVIRONMENT, capture_output=True, text=True, timeout=100)


def expect(condition, *what):
    if not condition:
        raise AssertionError(" ".join(map(str, what)))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in ("metrics.jsonl", "run.toml")}


def same_bytes(scratch):
    runs = {}
    for processes in (1, 2, 4):
        out = scratch / str(processes)
        result = run(processes, out, "--steps", "6", "--checkpoint-every", "3")
        expect(result.returncode == 0, result.stderr)
        expect(result.stderr.count("step 6/6") == 1, "only rank 0 prints:", result.stderr)
        runs[processes] = contents(out)
    expect(sum(name.endswith(".safetensors") for name in runs[1]) == 2 * 4 + 1, sorted(runs[1]))
    for processes in (2, 4):
        expect(runs[processes].keys() == runs[1].keys(), processes, sorted(runs[processes]))
        for name, found in runs[1].items():
            expect(runs[processes][name] == found, name, "of", processes, "processes")

    out = scratch / "resumed"
    expect(run(2, out, "--steps", "3", "--checkpoint-every", "3").returncode == 0, "the first half")
    result = run(4, out, "--steps", "6", "--checkpoint-every", "3", "--resume")
    expect(result.returncode == 0, result.stderr)
    expect(contents(out) == runs[1], "resumed with more processes")


def refusals(scratch):
    result = run(2, scratch / "never", "--steps", "6", batch="6")
    expect(result.returncode == 1, result.returncode, result.stderr)
    expect(result.stderr.count("multiple of 4") == 1, result.stderr)
    result = run(3, scratch / "never", "--steps", "6")
    expect("3 processes were started; 1, 2 or 4 were expected" in result.stderr, result.stderr)


def process_of(rank, launcher):
    """The process that has this rank among the launcher's."""
    for entry in pathlib.Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher and f"OMPI_COMM_WORLD_RANK={rank}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                return int(entry.name)
        except (OSError, ValueError, IndexError):
            continue
    raise AssertionError(f"no process of rank {rank}")


def newest_checkpoint(out):
    found = sorted(path for path in (out / "checkpoints").glob("step-*") if path.suffix != ".part")
    return found[-1] if found else None


def one_that_ends(scratch, how, rank, said):
    out = scratch / f"{how.name}-{rank}"
    with subprocess.Popen(command(4, out, "--steps", "100000", "--checkpoint-every", "2", "--rank-timeout", "3"),
                          env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
        until = time.monotonic() + 60
        while newest_checkpoint(out) is None:
            expect(time.monotonic() < until and launcher.poll() is None, "no checkpoint came")
            time.sleep(0.05)
        os.kill(process_of(rank, launcher.pid), how)
        began = time.monotonic()
        try:
            _, errors = launcher.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            launcher.kill()
            raise
    took = time.monotonic() - began
    expect(launcher.returncode != 0, errors)
    expect(f"rank {rank} on {os.uname().nodename} {said}" in errors, errors)
    # Where mpirun itself sees first that a process was killed, it gives that one's exit code.
    expect(launcher.returncode in ((1, 137) if how == signal.SIGKILL else (1,)), launcher.returncode, errors)
    folder = newest_checkpoint(out)
    state = json.loads((folder / "state.json").read_text())
    for name, digest in state["sha256"].items():
        expect(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, folder, name)
    steps = str(state["step"] + 1)
    result = subprocess.run(command(1, out, "--steps", steps, "--resume")[3:], env=ENVIRONMENT, capture_output=True,
                            text=True, timeout=100)
    expect(result.returncode == 0 and f"step {steps}/{steps}" in result.stderr, result.stderr)
    print(f"{how.name} of rank {rank}: named and ended after {took:.1f} s")


def main():
    if shutil.which("mpirun") is None:
        print("skipped: there is no mpirun (packages openmpi-bin and libopenmpi-dev)")
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        same_bytes(scratch)
        refusals(scratch)
        one_that_ends(scratch, signal.SIGKILL, 2, "is lost")
        one_that_ends(scratch, signal.SIGKILL, 0, "is lost")
        one_that_ends(scratch, signal.SIGSTOP, 1, "hangs")


if __name__ == "__main__":
    sys.exit(main())
