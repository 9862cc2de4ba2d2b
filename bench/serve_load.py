#!/usr/bin/env python3
"""Measures `qiao serve` beside llama-server under load: the same GGUF, threads, slots and requests, in turn A B A B.

  bench/serve_load.py                                   smollm2, 1, 4, 16 and 64 clients
  bench/serve_load.py -m qwen2.5-coder-1.5b --clients 1,16 --tokens 64
  bench/serve_load.py --open 2,4 --seconds 30           also an open loop, of 2 and of 4 requests a second

Closed loop: each client asks, reads its answer, asks again. Open loop: requests come at random times (a Poisson process
of the given rate), whether or not earlier ones have been answered. Prompts are unshared (every one is new) or shared
(the same 1,000 tokens or so before a question of its own). Every answer has --tokens tokens, streamed. Figures: tokens/s
of all clients together; time to the first token and gap between two pieces of an answer, median and 99th percentile;
then, on a fresh server, the time to first token of a second request with the same 1,000-token beginning beside the
first's, and the share of a core that the idle server takes. llama.cpp is built as bench/versus_llama_cpp.py builds it.
"""
import argparse
import asyncio
import json
import os
import pathlib
import random
import statistics
import sys
import time

from load_client import ServerProcess, complete, quantile, words
from versus_llama_cpp import PEER, ROOT, build_peer, free_port, qiao_model_path

SHARED_WORDS = 800  # about 1,000 tokens of most vocabularies
CONTEXT = 2048      # of each slot


class Prompts:
    """New ones for every run: a server that kept those of an earlier one could not answer from them."""

    def __init__(self, shared, seed):
        self.beginning = words(SHARED_WORDS, f"shared {seed}") + "\n" if shared else ""
        self.seed, self.count = seed, 0

    def next(self):
        self.count += 1
        return self.beginning + words(20 if self.beginning else 100, f"{self.seed} {self.count}")


def fields_of(prompt, tokens):
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


async def checked(port, prompt, tokens):
    outcome = await complete(port, fields_of(prompt, tokens))
    if outcome.status != 200 or not outcome.times:
        raise RuntimeError(f"the server answered {outcome.status}")
    if outcome.usage and outcome.usage.get("completion_tokens") not in (None, tokens):
        raise RuntimeError(f"{outcome.usage} instead of {tokens} tokens")
    return outcome


async def closed_loop(port, clients, seconds, prompts, tokens):
    """Outcomes of requests sent within `seconds`; clients start in a second's time."""
    outcomes, end = [], time.monotonic() + seconds

    async def client(index):
        await asyncio.sleep(index / max(clients, 1) * min(1.0, seconds / 10))
        while time.monotonic() < end:
            outcomes.append(await checked(port, prompts.next(), tokens))

    await asyncio.gather(*(client(i) for i in range(clients)))
    return outcomes


async def open_loop(port, rate, seconds, prompts, tokens):
    draw, tasks, end = random.Random(f"{rate}"), [], time.monotonic() + seconds
    due = time.monotonic()
    while due < end:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(checked(port, prompts.next(), tokens)))
        due += draw.expovariate(rate)
    return await asyncio.gather(*tasks)


def figures(outcomes, tokens):
    begun, ended = min(o.sent for o in outcomes), max(o.done for o in outcomes)
    first = [o.times[0] - o.sent for o in outcomes]
    gaps = [b - a for o in outcomes for a, b in zip(o.times, o.times[1:])]
    return {"throughput": len(outcomes) * tokens / (ended - begun), "first_p50": quantile(first, 0.5),
            "first_p99": quantile(first, 0.99), "gap_p50": quantile(gaps, 0.5), "gap_p99": quantile(gaps, 0.99),
            "requests": len(outcomes)}


async def second_request_ratio(port, tries, tokens, round_seed):
    """The first token's time of a request that begins like an earlier one, over that of the earlier one."""
    ratios = []
    for index in range(tries):
        prompts = Prompts(True, f"{round_seed} prefix {index}")
        outcomes = [await checked(port, prompts.next(), tokens) for _ in range(2)]
        ratios.append((outcomes[1].times[0] - outcomes[1].sent) / (outcomes[0].times[0] - outcomes[0].sent))
    return statistics.median(ratios)


def command_of(side, options, model, port, programs):
    if side == "qiao":
        return [options.qiao, "serve", "-m", model, "--port", str(port), "-c", str(CONTEXT), "-np", str(options.slots),
                "-t", str(options.threads), "-q"]
    return [str(programs / "llama-server"), "-m", model, "--port", str(port), "-c", str(CONTEXT * options.slots), "-np",
            str(options.slots), "-t", str(options.threads), "--no-webui"]


def measure(side, options, model, programs, round_index):
    results = {}
    cases = [("closed", clients, shared) for shared in (False, True) for clients in options.clients]
    cases += [("open", rate, False) for rate in options.open]
    for kind, load, shared in cases:
        port = free_port()
        seed = f"{round_index} {kind} {load} {shared}"
        with ServerProcess(command_of(side, options, model, port, programs), port):
            asyncio.run(checked(port, "Once upon a time", 4))  # what is done once is not measured
            prompts = Prompts(shared, seed)
            loop = closed_loop if kind == "closed" else open_loop
            outcomes = asyncio.run(loop(port, load, options.seconds, prompts, options.tokens))
        name = f"{load} clients" if kind == "closed" else f"{load} requests/s"
        results[f"{name}, {'shared' if shared else 'unshared'}"] = figures(outcomes, options.tokens)
        print(f"    {name}, {'shared' if shared else 'unshared'}: {len(outcomes)} requests", file=sys.stderr)
    port = free_port()
    with ServerProcess(command_of(side, options, model, port, programs), port) as server:
        asyncio.run(checked(port, "Once upon a time", 4))
        ratio = asyncio.run(second_request_ratio(port, 5, 4, round_index))
        time.sleep(1)
        before, begun = server.cpu_seconds(), time.monotonic()
        time.sleep(options.idle)
        idle = (server.cpu_seconds() - before) / (time.monotonic() - begun)
    return results, {"second_first_token_ratio": ratio, "idle_core_share": idle}


ROWS = [("throughput", "tokens/s", "{:.0f}", 1), ("first_p50", "first token, median, ms", "{:.0f}", 1000),
        ("first_p99", "first token, p99, ms", "{:.0f}", 1000), ("gap_p50", "gap, median, ms", "{:.1f}", 1000),
        ("gap_p99", "gap, p99, ms", "{:.1f}", 1000)]


def print_tables(options, model, rounds):
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    print(f"{model} on {cpu}, {options.threads} threads, {options.slots} slots; answers of {options.tokens} tokens; "
          f"llama.cpp of {PEER}; median of {len(rounds)} rounds of {options.seconds:g} s, {time.strftime('%Y-%m-%d')}\n")
    print("| load | what | Qiao | llama-server | ratio |\n| --- | --- | --- | --- | --- |")
    for case in rounds[0]["qiao"][0]:
        for key, title, form, scale in ROWS:
            ours, theirs = ([r[side][0][case][key] * scale for r in rounds] for side in ("qiao", "llama"))
            ratio = statistics.median(a / b for a, b in zip(ours, theirs))
            print(f"| {case} | {title} | {form.format(statistics.median(ours))} | {form.format(statistics.median(theirs))} "
                  f"| {ratio:.2f} |")
    print("\n| what | Qiao | llama-server |\n| --- | --- | --- |")
    for key, title, form in (("second_first_token_ratio", "first token of a second request with the same 1,000-token "
                              "beginning ÷ of the first", "{:.3f}"),
                             ("idle_core_share", "share of a core, idle", "{:.2%}")):
        sides = [form.format(statistics.median(r[side][1][key] for r in rounds)) for side in ("qiao", "llama")]
        print(f"| {title} | {sides[0]} | {sides[1]} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda kind: lambda text: [kind(part) for part in text.split(",") if part]
    parser.add_argument("-m", "--model", default="smollm2", help="catalogue name or GGUF file")
    parser.add_argument("--clients", type=numbers(int), default=[1, 4, 16, 64], help="closed loops: 1,4,16,64")
    parser.add_argument("--open", type=numbers(float), default=[], help="open loops: requests a second, as 2,4")
    parser.add_argument("--seconds", type=float, default=20, help="of each case")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--slots", type=int, default=16, help="requests that run at once, for both")
    parser.add_argument("--idle", type=float, default=10, help="seconds for which the idle server is watched")
    parser.add_argument("-r", "--rounds", type=int, default=2)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--qiao", default=str(ROOT / "build" / "bin" / "qiao"))
    parser.add_argument("--llama-bin", type=pathlib.Path, help="folder with llama-server")
    parser.add_argument("--json", action="store_true", help="print every round as JSON")
    options = parser.parse_args()
    programs = options.llama_bin or build_peer()
    model = qiao_model_path(options.qiao, options.model)
    rounds = []
    for index in range(options.rounds):
        sides = {}
        for side in ("qiao", "llama"):
            print(f"  round {index + 1} of {options.rounds}: {side}", file=sys.stderr)
            sides[side] = measure(side, options, model, programs, index)
        rounds.append(sides)
    if options.json:
        print(json.dumps(rounds, indent=2))
    else:
        print_tables(options, options.model, rounds)


if __name__ == "__main__":
    main()
