#!/usr/bin/env python3
"""Ten times more requests than `qiao serve` can answer, for half an hour: only 200 and 429, memory flat.

  bench/serve_soak.py                          smollm2, 30 minutes
  bench/serve_soak.py --seconds 120 -m tests/golden/chat

First the capacity: as many clients as slots, each asking again when it is answered, until the cache is full. Then requests come at --times that
rate, whether or not they are answered. Each must be a 200 whose stream ends with its usage, or a 429 with Retry-After;
a lost connection, any other status or an answer cut short fails the run, and so does resident memory that in the last
tenth of the time is more than 2% (and 4 MiB) above that of the second tenth. Afterwards the server must answer one
request as it did before. Exit code 1 where something does not hold.
"""
import argparse
import asyncio
import os
import random
import statistics
import sys
import time

from load_client import ServerProcess, complete, quantile, words
from versus_llama_cpp import ROOT, free_port


def fields_of(seed, tokens):
    return {"prompt": words(40, seed), "max_tokens": tokens, "temperature": 1, "ignore_eos": True}


async def capacity(port, options, server):
    """Requests answered a second with every slot busy, measured while the cache fills: its memory is taken as it is used."""
    begun, answered, full = time.monotonic(), [], False

    async def client(index):
        while not full:
            await complete(port, fields_of(f"capacity {index} {len(answered)}", options.tokens))
            answered.append(time.monotonic())

    clients = asyncio.gather(*(client(i) for i in range(options.slots)))
    while not full and time.monotonic() < begun + 20 * options.calibrate:
        await asyncio.sleep(0.5)
        used = server.metric("qiao:kv_pages_cached") + server.metric("qiao:kv_pages_used")
        full = time.monotonic() >= begun + options.calibrate and used >= 0.9 * server.metric("qiao:kv_pages_total")
    full = True
    await clients
    return len(answered) / (time.monotonic() - begun)


async def overload(port, rate, options, server):
    draw, tasks, counts, problems, memory, first = random.Random(1), set(), {}, {}, [], []

    def note(what):
        problems[what] = problems.get(what, 0) + 1

    async def one(index):
        try:
            outcome = await complete(port, fields_of(f"soak {index}", options.tokens))
        except (OSError, asyncio.IncompleteReadError) as problem:
            return note(f"connection: {problem!r}"[:100])
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
        if outcome.status == 200:
            first.append(outcome.times[0] - outcome.sent if outcome.times else float("nan"))
            if not outcome.usage or outcome.usage["completion_tokens"] != options.tokens:
                note("a 200 whose answer is cut short")
        elif outcome.status == 429:
            if int(outcome.headers.get("retry-after", 0)) < 1:
                note("a 429 without Retry-After")
        else:
            note(f"status {outcome.status}")

    begun = time.monotonic()
    due, sample_at, index = begun, begun, 0
    while (now := time.monotonic()) < begun + options.seconds:
        if now >= sample_at:
            memory.append(server.resident_mib())
            sample_at += options.seconds / 200
        if due > now:
            await asyncio.sleep(min(due, sample_at) - now if min(due, sample_at) > now else 0)
            continue
        if len(tasks) < options.most_open:
            task = asyncio.create_task(one(index))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            index += 1
        else:
            note("the client had too many open")
        due += draw.expovariate(rate)
    sent_for = time.monotonic() - begun
    while tasks:
        await asyncio.sleep(0.1)
    return counts, problems, memory, first, index / sent_for


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--times", type=float, default=10, help="of the capacity")
    parser.add_argument("--calibrate", type=float, default=10, help="seconds for measuring the capacity")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("--most-open", type=int, default=2000, help="requests that this client may have open")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--qiao", default=str(ROOT / "build" / "bin" / "qiao"))
    options = parser.parse_args()
    port = free_port()
    command = [options.qiao, "serve", "-m", options.model, "--port", str(port), "-c", "192", "-q", "-t", str(options.threads),
               "-np", str(options.slots), "--max-queued", str(options.queue)]
    with ServerProcess(command, port) as server:
        rate = asyncio.run(capacity(port, options, server))
        print(f"capacity {rate:.1f} requests/s; {options.times * rate:.1f} requests/s for {options.seconds:.0f} s", flush=True)
        counts, problems, memory, first, sent = asyncio.run(overload(port, options.times * rate, options, server))
        after = asyncio.run(complete(port, fields_of("after", options.tokens)))
    tenth = max(1, len(memory) // 10)
    early, late = statistics.median(memory[tenth:2 * tenth] or memory), statistics.median(memory[-tenth:])
    flat = late <= early * 1.02 + 4
    answered = ", ".join(f"{count} × {status}" for status, count in sorted(counts.items()))
    print(f"sent {sent:.1f} requests/s ({sent / rate:.1f} times the capacity): {answered}")
    print(f"first token of those answered: median {quantile(first, 0.5):.3f} s, p99 {quantile(first, 0.99):.3f} s")
    print(f"resident memory: {early:.1f} MiB in the second tenth, {late:.1f} MiB in the last "
          f"({'flat' if flat else 'NOT FLAT'}; {min(memory):.1f} to {max(memory):.1f})")
    for what, count in problems.items():
        print(f"PROBLEM: {count} × {what}")
    well = flat and not problems and set(counts) <= {200, 429} and counts.get(429, 0) > 0 and after.status == 200
    print("well" if well else "FAILED")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
