"""Tokens/s of `qiao serve` with many clients at once: serve_throughput.py QIAO MODEL [--clients N] [--input N] [--output N] [--requests N] [--quantize fp8] [--kv-type TYPE]

Each client asks, reads its streamed answer and asks again, until all requests are answered. Prompts are random token
ids, new for each request; answers have --output tokens. Prints one JSON object: output tokens/s of all together, times
to the first token and between tokens, and how long the server took from its start to its first "ready".
"""
import argparse
import asyncio
import json
import pathlib
import random
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from load_client import ServerProcess, complete, quantile  # noqa: E402
from versus_llama_cpp import free_port  # noqa: E402


async def ask_all(port, arguments, vocabulary):
    draw, left, outcomes = random.Random(1), list(range(arguments.requests)), []

    async def client():
        while left:
            left.pop()
            prompt = [draw.randrange(vocabulary) for _ in range(arguments.input)]
            outcome = await complete(port, {"prompt": prompt, "max_tokens": arguments.output, "temperature": 1, "ignore_eos": True})
            if outcome.status != 200 or outcome.usage is None:
                raise RuntimeError(f"an answer was {outcome.status}, or cut short")
            outcomes.append(outcome)

    begin = time.monotonic()
    await asyncio.gather(*(client() for _ in range(arguments.clients)))
    return time.monotonic() - begin, outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qiao")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--input", type=int, default=1000)
    parser.add_argument("--output", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quantize", choices=["fp8"])
    parser.add_argument("--kv-type", default="f16")
    arguments = parser.parse_args()
    port = free_port()
    vocabulary = json.loads((pathlib.Path(arguments.model) / "config.json").read_text())["vocab_size"]
    command = [arguments.qiao, "serve", "-m", arguments.model, "--device", arguments.device, "-q", "--port", str(port), "-np", str(arguments.clients), "-b",
               str(arguments.batch), "-c", str(arguments.input + arguments.output + 32), "--kv-type", arguments.kv_type]
    if arguments.quantize:
        command += ["--quantize", arguments.quantize]
    started = time.monotonic()
    with ServerProcess(command, port):
        start_seconds = time.monotonic() - started
        seconds, outcomes = asyncio.run(ask_all(port, arguments, vocabulary))
    gaps = [b - a for o in outcomes for a, b in zip(o.times, o.times[1:])]
    tokens = sum(o.usage["completion_tokens"] for o in outcomes)
    print(json.dumps({"what": "serve", "model": pathlib.Path(arguments.model).name, "quantize": arguments.quantize, "kv_type": arguments.kv_type, "clients": arguments.clients, "requests": len(outcomes),
                      "input": arguments.input, "output": arguments.output, "start_seconds": start_seconds, "output_tokens_per_second": tokens / seconds,
                      "first_token_seconds": quantile([o.times[0] - o.sent for o in outcomes], 0.5),
                      "gap_seconds": quantile(gaps, 0.5) if gaps else None}))


main()
