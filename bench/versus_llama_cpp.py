#!/usr/bin/env python3
"""Measures Qiao beside llama.cpp: the same GGUF, the same threads, in turn A B A B.

  bench/versus_llama_cpp.py                         the catalogue's three models
  bench/versus_llama_cpp.py -m smollm2 -r 3         one of them, three rounds
  bench/versus_llama_cpp.py -m path/to/model.gguf   any other file

For each model it prints prefill of 512 tokens and decode of 128 (tokens/s, by each program's own bench), time to the
first token from a cold start (a server is started, asked at once, and timed until its first streamed token), and peak
memory (proportional set size of that server while it reads 512 tokens and writes 128, same context and slots). A ratio
is Qiao's figure over llama.cpp's in the same round; the median of the rounds is shown.

llama.cpp comes from the source archive of llama-cpp-python in the Python index: it is fetched and built once, some
minutes, in the cache folder ($QIAO_HOME or ~/.cache/qiao); --llama-bin names a folder with llama-bench and llama-server
to use instead.
"""
import argparse
import http.client
import json
import os
import pathlib
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tarfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEER = "llama-cpp-python==0.3.36"
MODELS = ["smollm2", "gemma3-270m", "qwen2.5-coder-1.5b"]
CONTEXT = 4096
PROMPT = "The bridge over the river was old, and the people of the town told many stories about it. " * 24


def cache_home():
    home = os.environ.get("QIAO_HOME")
    if home:
        return pathlib.Path(home)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "qiao"


def build_peer():
    """Fetches and builds llama.cpp in the cache; returns the folder of its programs."""
    folder = cache_home() / "bench" / PEER.replace("==", "-")
    programs = folder / "build" / "bin"
    if (programs / "llama-bench").exists() and (programs / "llama-server").exists():
        return programs
    print(f"Building llama.cpp from {PEER} in {folder} (once, some minutes)", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                    "-d", str(folder), PEER], check=True)
    archive = next(folder.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(folder)
    source = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    subprocess.run(["cmake", "-S", str(source), "-B", str(folder / "build"), "-G", "Ninja",
                    "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF"],
                   check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder / "build"), "--target", "llama-bench", "llama-server"],
                   check=True, stdout=subprocess.DEVNULL)
    return programs


def qiao_model_path(qiao, model):
    if os.path.exists(model):
        return os.path.abspath(model)
    subprocess.run([qiao, "pull", model], check=True)
    listed = json.loads(subprocess.run([qiao, "list", "--json"], check=True, capture_output=True, text=True).stdout)
    entries = listed["models"] if isinstance(listed, dict) else listed
    return next(entry["path"] for entry in entries if entry["name"] == model)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def bench_qiao(qiao, model, threads):
    out = subprocess.run([qiao, "bench", "-m", model, "-p", "512", "-n", "128", "-r", "1", "-t", str(threads), "--json", "-q"],
                         check=True, capture_output=True, text=True).stdout
    result = json.loads(out)
    return {"prefill": result["prefill_tokens_per_second"]["median"],
            "decode": result["decode_tokens_per_second"]["median"],
            "prefill_share": result["prefill_share_of_peak"],
            "decode_share": result["decode_share_of_bandwidth"],
            "peak": result["peak"]["operations_per_second"], "bandwidth": result["read_bytes_per_second"]}


def bench_peer(programs, model, threads):
    out = subprocess.run([str(programs / "llama-bench"), "-m", model, "-p", "512", "-n", "128", "-r", "1", "-t",
                          str(threads), "-o", "json"], check=True, capture_output=True, text=True).stdout
    rows = json.loads(out)
    return {"prefill": next(row["avg_ts"] for row in rows if row["n_prompt"] == 512 and row["n_gen"] == 0),
            "decode": next(row["avg_ts"] for row in rows if row["n_gen"] == 128 and row["n_prompt"] == 0)}


class PeakMemory(threading.Thread):
    """The largest proportional set size of a process while it runs, in MiB."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.path, self.peak, self.done = f"/proc/{pid}/smaps_rollup", 0, threading.Event()

    def run(self):
        while not self.done.is_set():
            try:
                with open(self.path) as rollup:
                    for line in rollup:
                        if line.startswith("Pss:"):
                            self.peak = max(self.peak, int(line.split()[1]) / 1024)
                            break
            except OSError:
                return
            self.done.wait(0.02)


def stream(port, prompt, tokens):
    """Sends a completion; yields the time of each streamed event."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True})
    connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"the server answered {response.status}: {response.read()[:300]}")
    for line in response:
        if line.startswith(b"data: {"):
            yield time.monotonic()
    connection.close()


def serve(command, port, prompt, tokens):
    """Starts a server and asks at once: (seconds to the first token, peak memory in MiB)."""
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    memory = PeakMemory(process.pid)
    memory.start()
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with {process.returncode}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            if time.monotonic() - begun > 120:
                raise RuntimeError(f"{command[0]} did not come up in 120 s")
            time.sleep(0.002)
        first = next(stream(port, "Once upon a time", 8)) - begun
        for _ in stream(port, prompt, tokens):
            pass
        return first, memory.peak
    finally:
        memory.done.set()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def measure(qiao, programs, model, threads, rounds):
    ours, theirs = [], []
    for index in range(rounds):
        print(f"  round {index + 1} of {rounds}", file=sys.stderr)
        a, b = bench_qiao(qiao, model, threads), bench_peer(programs, model, threads)
        port = free_port()
        a["first"], a["memory"] = serve([qiao, "serve", "-m", model, "--port", str(port), "-c", str(CONTEXT), "-np", "1",
                                         "-t", str(threads), "-q"], port, PROMPT, 128)
        port = free_port()
        b["first"], b["memory"] = serve([str(programs / "llama-server"), "-m", model, "--port", str(port), "-c",
                                         str(CONTEXT), "-np", "1", "-t", str(threads), "--no-webui"], port, PROMPT, 128)
        ours.append(a)
        theirs.append(b)
    return ours, theirs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", action="append", help="catalogue name or GGUF file; may be repeated")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--qiao", default=str(ROOT / "build" / "bin" / "qiao"))
    parser.add_argument("--llama-bin", type=pathlib.Path, help="folder with llama-bench and llama-server")
    parser.add_argument("--json", action="store_true", help="print every round as JSON")
    options = parser.parse_args()
    programs = options.llama_bin or build_peer()
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
               platform.processor())
    results = {}
    for model in options.model or MODELS:
        path = qiao_model_path(options.qiao, model)
        print(f"{model}", file=sys.stderr)
        results[model] = measure(options.qiao, programs, path, options.threads, options.rounds)
    if options.json:
        print(json.dumps({name: {"qiao": a, "llama.cpp": b} for name, (a, b) in results.items()}, indent=2))
        return
    print(f"{cpu}, {options.threads} threads; llama.cpp of {PEER}; median of {options.rounds} rounds, "
          f"{time.strftime('%Y-%m-%d')}")
    print("\n| model | what | Qiao | llama.cpp | ratio (min to max) | share of the machine |\n| --- | --- | --- | --- | --- | --- |")
    rows = [("prefill", "prefill 512, tokens/s", "{:.1f}"), ("decode", "decode 128, tokens/s", "{:.1f}"),
            ("first", "first token from a cold start, s", "{:.3f}"), ("memory", "peak memory, MiB", "{:.0f}")]
    for name, (ours, theirs) in results.items():
        for key, title, form in rows:
            ratios = sorted(a[key] / b[key] for a, b in zip(ours, theirs))
            middle = [statistics.median(row[key] for row in side) for side in (ours, theirs)]
            share = ""
            if key == "prefill":
                share = f"{statistics.median(a['prefill_share'] for a in ours):.0%} of {ours[0]['peak'] / 1e9:.0f} G/s"
            elif key == "decode":
                share = f"{statistics.median(a['decode_share'] for a in ours):.0%} of {ours[0]['bandwidth'] / 1e9:.1f} GB/s"
            print(f"| {name} | {title} | {form.format(middle[0])} | {form.format(middle[1])} | "
                  f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {share} |")


if __name__ == "__main__":
    main()
