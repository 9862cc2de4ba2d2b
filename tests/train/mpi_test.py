#!/usr/bin/env python3
"""Trains in processes that mpirun starts: the same bytes for 1, 2 and 4 of them, and what happens where one is killed or
stopped. Skipped where there is no mpirun."""
import hashlib
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

QIAO = os.environ["QIAO_BINARY"]
GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden" / "training"
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none",
               "OMPI_MCA_mpi_yield_when_idle": "1"}  # there may be fewer cores than processes, and other work on them


def command(processes, out, *flags, batch="4", mode="pretrain", init=GOLDEN / "llama" / "init", data=GOLDEN / "data.jsonl"):
    return ["mpirun", "-np", str(processes), QIAO, "train", mode, "--init", str(init), "--data", str(data), "--out", str(out),
            "--batch", batch, "--seq", "32", "--threads", "1", "--schedule", "constant", *flags]


def run(processes, out, *flags, **settings):
    return subprocess.run(command(processes, out, *flags, **settings), env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def expect(condition, *what):
    if not condition:
        raise AssertionError(" ".join(map(str, what)))


def contents(folder):
    """The model and the checkpoints: what else a run leaves tells of times and processes."""
    return {str(path.relative_to(folder)): path.read_bytes() for part in ("checkpoints", "model")
            for path in sorted((folder / part).rglob("*")) if path.is_file()}


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


def preferences(scratch):
    """DPO, whose reference every process has, and LoRA, whose matrices are dealt out."""
    pairs = scratch / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"{i} and {i}?", "chosen": f"{2 * i}", "rejected": "no"}) + "\n"
                             for i in range(12)))
    for name, flags in (("dpo", ()), ("dpo-lora", ("--lora-rank", "4", "--lora-dropout", "0.25"))):
        runs = {}
        for processes in (1, 2, 4):
            out = scratch / f"{name}-{processes}"
            result = run(processes, out, "--steps", "3", *flags, mode="dpo", init=GOLDEN.parent / "chat", data=pairs)
            expect(result.returncode == 0, result.stderr)
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            runs[processes] = contents(out), [{key: value for key, value in line.items() if key != "tokens_per_second"}
                                              for line in lines]
        expect(len(runs[1][1]) == 3 and "rewards/margins" in runs[1][1][0], runs[1][1])
        expect(runs[2] == runs[1] and runs[4] == runs[1], name, "leaves other bytes in several processes")


def one_model(scratch):
    """Groups of processes that train one model together: its bytes do not tell how many groups; any number goes on with it."""
    runs = {}
    for processes in (2, 4):
        out = scratch / f"spread-{processes}"
        result = run(processes, out, "--steps", "4", "--checkpoint-every", "2", "--tensor-parallel", "2", "--virtual-ranks", "4")
        expect(result.returncode == 0, result.stderr)
        expect(result.stderr.count("step 4/4") == 1, "only rank 0 prints:", result.stderr)
        runs[processes] = contents(out)
    expect(runs[2] == runs[4], "two groups leave other bytes than one")
    losses = [json.loads(line)["loss"] for line in (scratch / "spread-2" / "metrics.jsonl").read_text().splitlines()]
    expect(run(1, scratch / "unspread", "--steps", "4", "--checkpoint-every", "2").returncode == 0, "one process")
    alone = [json.loads(line)["loss"] for line in (scratch / "unspread" / "metrics.jsonl").read_text().splitlines()]
    expect(len(losses) == 4 and all(abs(a - b) <= 2e-6 * b for a, b in zip(losses, alone)), losses, alone)
    for processes, out, flags in ((1, "spread-2", ("--tensor-parallel", "1")), (4, "spread-4", ("--tensor-parallel", "4"))):
        result = run(processes, scratch / out, "--steps", "6", *flags, "--resume")
        expect(result.returncode == 0 and "step 6/6" in result.stderr, result.stderr)


def joined_steps(scratch):
    """Muon and 8-bit states, whose steps take all of a matrix that is cut."""
    for name, flags in (("muon", ("--optimizer", "muon", "--lr", "0.01")), ("8bit", ("--adam-states", "8bit"))):
        losses = {}
        for processes, groups in ((1, "1"), (2, "2"), (4, "2")):
            out = scratch / f"{name}-{processes}"
            flags_of = (*flags, "--checkpoint-every", "2", "--tensor-parallel", groups, "--virtual-ranks", "4")
            result = run(processes, out, "--steps", "4", *flags_of)
            expect(result.returncode == 0, result.stderr)
            losses[processes] = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        expect(contents(scratch / f"{name}-2") == contents(scratch / f"{name}-4"), name, "two groups leave other bytes than one")
        expect(len(losses[1]) == 4 and all(abs(a - b) <= 2e-6 * b for a, b in zip(losses[2], losses[1])), name, losses)
        result = run(1, scratch / f"{name}-2", "--steps", "6", *flags, "--tensor-parallel", "1", "--resume")
        expect(result.returncode == 0 and "step 6/6" in result.stderr, result.stderr)


def rewards(scratch):
    """GRPO: each process draws and rewards its own prompts."""
    prompts = scratch / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{i} and {i}?"}) + "\n" for i in range(12)))
    timed = {"tokens_per_second", "rollout_seconds", "reward_seconds", "rollout_tokens_per_second", "training_seconds"}
    reward = scratch / "reward.py"
    reward.write_text("def reward(asked):\n"
                      "    text = asked['completion']\n"
                      "    return {'reward': sum(map(ord, text)) % 3, 'length': len(text)}\n")
    for name, flags in (("grpo", ("--kl", "0.1", "--updates", "2")), ("dapo", ("--loss", "dapo"))):
        runs = {}
        for processes in (1, 2, 4):
            out = scratch / f"{name}-{processes}"
            result = run(processes, out, "--steps", "4", "--group", "4", "--max-tokens", "8", "--reward-python", str(reward),
                         "--micro-batch", "3", *flags, mode="grpo", init=GOLDEN.parent / "chat", data=prompts)
            expect(result.returncode == 0, result.stderr)
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            runs[processes] = contents(out), [{key: value for key, value in line.items() if key not in timed} for line in lines]
        expect(len(runs[1][1]) == 4 and runs[1][1][0]["rollout_compared"] > 0 and "reward/length" in runs[1][1][0], runs[1][1])
        for processes in (2, 4):
            expect(runs[processes][1] == runs[1][1], name, processes, runs[processes][1], runs[1][1])
            expect(runs[processes][0] == runs[1][0], name, "leaves other bytes in", processes, "processes")


def one_model_draws(scratch):
    """GRPO where groups of two train one model: the bytes do not tell how many groups, and a program that fails or a process
    that is killed ends all of them."""
    prompts = scratch / "prompts.jsonl"
    flags = ("--group", "4", "--max-tokens", "8", "--tensor-parallel", "2", "--virtual-ranks", "4", "--sample-every", "2",
             "--sample-prompt", "one", "--sample-tokens", "6")
    drawing = {"mode": "grpo", "init": GOLDEN.parent / "chat", "data": prompts}
    by_length = "while read -r line; do echo ${#line}; done"
    runs = {}
    for processes in (2, 4):
        out = scratch / f"drawn-{processes}"
        result = run(processes, out, "--steps", "4", "--reward", by_length, *flags, **drawing)
        expect(result.returncode == 0, result.stderr)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        samples = [json.loads(line)["text"] for line in (out / "samples.jsonl").read_text().splitlines()]
        expect(len(lines) == 4 and all(line["rollout_compared"] > 0 and line["rollout_differing"] == 0 for line in lines), lines)
        expect(len(samples) == 2, samples)
        runs[processes] = contents(out), [(line["loss"], line["reward"]) for line in lines], samples
    expect(runs[2] == runs[4], "two groups leave other bytes than one")

    fails = "n=0; while read -r line; do n=$((n + 1)); [ $n -gt 20 ] && { echo full >&2; exit 3; }; echo $n; done"
    for processes in (2, 4):
        result = run(processes, scratch / f"fails-{processes}", "--steps", "4", "--reward", fails, *flags, **drawing)
        expect(result.returncode == 1 and result.stderr.count("the last words of its stderr: full") == 1, result.stderr)

    out = scratch / "follower"
    with subprocess.Popen(command(2, out, "--steps", "100000", "--checkpoint-every", "2", "--reward", by_length, *flags, **drawing),
                          env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
        ranks = processes_with_a_checkpoint(out, launcher, 2)
        os.kill(ranks[1], signal.SIGKILL)
        _, errors = launcher.communicate(timeout=300)
    expect(launcher.returncode in (1, 137), launcher.returncode, errors)
    expect(f"rank 1 on {os.uname().nodename} is lost" in errors, errors)
    expect_ended(ranks)


def kills(scratch, whole):
    """All processes killed at random moments: the run goes on to the bytes that it would have had."""
    seed = int(os.environ.get("QIAO_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"seed {seed} (QIAO_TEST_SEED)", file=sys.stderr)
    drawn = random.Random(seed)
    flags = ("--steps", "60", "--checkpoint-every", "3")
    began = time.monotonic()
    expect(run(1, whole, *flags).returncode == 0, "the whole run")
    length = time.monotonic() - began
    out, killed = scratch / "killed", 0
    while True:
        resume = ["--resume"] if (out / "lock").exists() else []
        with subprocess.Popen(command(2, out, *flags, *resume), env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
            if killed < 6:
                time.sleep(drawn.uniform(0, min(length, 4)))
                # The launcher first: it would end with another code where it saw one of its ranks go.
                launcher.kill()
                launcher.wait(60)
                end_all_of(out)
            _, errors = launcher.communicate(timeout=600)
        if launcher.returncode != -signal.SIGKILL:
            break
        killed += 1
    expect(launcher.returncode == 0, errors)
    expect(contents(out) == contents(whole), "other bytes after", killed, "kills, seed", seed)
    print(f"killed {killed} times")


def refusals(scratch):
    result = run(2, scratch / "never", "--steps", "6", batch="6")
    expect(result.returncode == 1, result.returncode, result.stderr)
    expect(result.stderr.count("multiple of 4") == 1, result.stderr)
    result = run(3, scratch / "never", "--steps", "6")
    expect("3 processes were started; 1, 2 or 4 were expected" in result.stderr, result.stderr)
    for processes, flags, said in ((3, ("2",), "--tensor-parallel is 2, and 3 processes were started"),
                                   (3, ("3",), "it can be spread over: 1, 2, 4")):
        result = run(processes, scratch / "never", "--steps", "6", "--tensor-parallel", *flags)
        expect(result.returncode == 1 and result.stderr.count(said) == 1, result.stderr)
    result = subprocess.run(command(1, scratch / "never", "--steps", "6", "--tensor-parallel", "2")[3:], env=ENVIRONMENT,
                            capture_output=True, text=True, timeout=600)
    expect(result.returncode == 1 and "1 process was started" in result.stderr and "mpirun -np 2" in result.stderr, result.stderr)


def is_over(process):
    """Whether it has ended, and with it its hold on files."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True


def end_all_of(run):
    """Kills every process that has the run's folder on its command line, and waits until they have ended."""
    until, found = time.monotonic() + 60, set()
    while True:
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if str(run).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
                    found.add(int(entry.name))
            except OSError:  # it has ended meanwhile
                continue
        if all(map(is_over, found)):
            return
        expect(time.monotonic() < until, "processes are left", found)
        time.sleep(0.01)


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


def processes_with_a_checkpoint(out, launcher, count):
    until = time.monotonic() + 300
    while newest_checkpoint(out) is None:
        expect(time.monotonic() < until and launcher.poll() is None, "no checkpoint came")
        time.sleep(0.05)
    return [process_of(rank, launcher.pid) for rank in range(count)]


def expect_ended(processes):
    """mpirun may end before those that it ends."""
    until = time.monotonic() + 180
    while any(pathlib.Path(f"/proc/{process}").exists() for process in processes):
        expect(time.monotonic() < until, "ranks go on")
        time.sleep(0.05)


def one_that_ends(scratch, how, rank, said):
    out = scratch / f"{how.name}-{rank}"
    # Where one ends, nobody waits for the limit; where one is stopped, the limit is what is told.
    patience = "3" if how == signal.SIGSTOP else "60"
    with subprocess.Popen(command(4, out, "--steps", "100000", "--checkpoint-every", "2", "--rank-timeout", patience),
                          env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as launcher:
        ranks = processes_with_a_checkpoint(out, launcher, 4)
        os.kill(ranks[rank], how)
        began = time.monotonic()
        try:
            _, errors = launcher.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            launcher.kill()
            raise
    took = time.monotonic() - began
    expect(launcher.returncode != 0, errors)
    expect_ended(ranks)
    expect(f"rank {rank} on {os.uname().nodename} {said}" in errors, errors)
    # Where mpirun itself sees first that a process was killed, it gives that one's exit code.
    expect(launcher.returncode in ((1, 137) if how == signal.SIGKILL else (1,)), launcher.returncode, errors)
    folder = newest_checkpoint(out)
    state = json.loads((folder / "state.json").read_text())
    for name, digest in state["sha256"].items():
        expect(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, folder, name)
    steps = str(state["step"] + 1)
    result = subprocess.run(command(1, out, "--steps", steps, "--resume")[3:], env=ENVIRONMENT, capture_output=True,
                            text=True, timeout=600)
    expect(result.returncode == 0 and f"step {steps}/{steps}" in result.stderr, result.stderr)
    print(f"{how.name} of rank {rank}: named and ended after {took:.1f} s")


def main():
    if shutil.which("mpirun") is None:
        print("skipped: there is no mpirun (packages openmpi-bin and libopenmpi-dev)")
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        same_bytes(scratch)
        preferences(scratch)
        one_model(scratch)
        joined_steps(scratch)
        rewards(scratch)
        one_model_draws(scratch)
        kills(scratch, scratch / "whole")
        refusals(scratch)
        one_that_ends(scratch, signal.SIGKILL, 2, "is lost")
        one_that_ends(scratch, signal.SIGKILL, 0, "is lost")
        one_that_ends(scratch, signal.SIGSTOP, 1, "hangs")


if __name__ == "__main__":
    sys.exit(main())
