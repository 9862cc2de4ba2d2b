#!/usr/bin/env python3
"""A model spread over processes that mpirun starts: the same texts, one server, and what happens where one process is
killed or stopped. Skipped where there is no mpirun."""
import array
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

QIAO = os.environ["QIAO_BINARY"]
GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "golden"
CHAT = GOLDEN / "chat"
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none",
               "OMPI_MCA_mpi_yield_when_idle": "1"}  # there may be fewer cores than processes, and other work on them
PROMPT = "A bridge carries people over a river; this one carries words."


def expect(condition, *what):
    if not condition:
        raise AssertionError(" ".join(map(str, what)))


def command(processes, *arguments):
    launcher = [] if processes == 0 else ["mpirun", "-np", str(processes)]
    return [*launcher, QIAO, *map(str, arguments)]


def run(processes, *arguments, typed=None):
    return subprocess.run(command(processes, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
                          input=typed)


def write_model(folder, width=256, ffn=1024, heads=8, kv_heads=4, layers=2):
    """A model whose matrices are whole blocks of 256, with drawn weights."""
    folder.mkdir()
    config = {**json.loads((CHAT / "config.json").read_text()), "hidden_size": width, "intermediate_size": ffn, "head_dim": 64,
              "num_attention_heads": heads, "num_key_value_heads": kv_heads, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(CHAT / name, folder / name)
    drawn, header, data = random.Random(7), {}, bytearray()

    def add(name, *shape, mean=0.0, scale=0.06):
        count = 1
        for size in shape:
            count *= size
        begin = len(data)
        data.extend(array.array("f", (mean + drawn.gauss(0, scale) for _ in range(count))).tobytes())
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}

    add("model.embed_tokens.weight", config["vocab_size"], width, scale=0.3)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        add(at + "input_layernorm.weight", width, mean=1.0)
        add(at + "self_attn.q_proj.weight", heads * 64, width)
        add(at + "self_attn.k_proj.weight", kv_heads * 64, width)
        add(at + "self_attn.v_proj.weight", kv_heads * 64, width)
        add(at + "self_attn.o_proj.weight", width, heads * 64)
        add(at + "post_attention_layernorm.weight", width, mean=1.0)
        add(at + "mlp.gate_proj.weight", ffn, width)
        add(at + "mlp.up_proj.weight", ffn, width)
        add(at + "mlp.down_proj.weight", width, ffn)
    add("model.norm.weight", width, mean=1.0)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def generated(processes, model, *flags):
    result = run(processes, "generate", "-m", model, "-p", PROMPT, "--temp", "0", "-n", "24", "--ignore-eos", "--json",
                 "--logprobs", "2", "-t", "1", "--kv-type", "f32", *flags)
    expect(result.returncode == 0, processes, model, result.stderr)
    expect(processes == 0 or result.stderr == "", "only rank 0 prints:", result.stderr)
    return json.loads(result.stdout)  # of one process: two objects are no JSON


def log_probabilities(answer):
    return [token["logprob"] for token in answer["logprobs"]]


def same_texts(scratch):
    """Blocks are cut where they end: with activations that are not rounded the texts and log-probabilities of one process,
    as logits are held to Transformers'. Rounded to 8 bits, as block formats compute by default, a sum's last bit may round
    a number the other way, and only the bits within one number of processes are the same."""
    wide = scratch / "wide"
    write_model(wide)
    models = [CHAT]
    for kind in ("Q8_0", "Q4_K_M"):
        models.append(scratch / f"{kind}.gguf")
        result = run(0, "export", "-m", wide, "--type", kind, "--gguf", models[-1])
        expect(result.returncode == 0, result.stderr)
    for model in models:
        alone = generated(0, model, "--compute", "f32")
        # Four heads of 64 are a block of 256: there are two of those.
        for processes in (1, 2) if "Q4_K" in model.name else (1, 2, 4):
            spread = generated(processes, model, "--compute", "f32")
            worst = max(abs(a - b) for a, b in zip(log_probabilities(alone), log_probabilities(spread)))
            expect(worst <= 1e-4, model, processes, "log-probabilities are", worst, "apart")
            expect(spread["text"] == alone["text"], model, processes, spread["text"], alone["text"])
        if model == CHAT:
            changed = ("--lora", GOLDEN / "lora" / "chat-one", "--compute", "f32")
            one, two = generated(0, model, *changed), generated(2, model, *changed)
            expect(one["text"] == two["text"] != alone["text"], "with an adapter", one["text"], two["text"])
        whole, chunks = generated(2, model), generated(2, model, "-b", "3")
        expect(log_probabilities(whole) == log_probabilities(chunks), model, "chunks change bits")
        expect(whole["text"] == chunks["text"], model, "chunks change a text")


def piped():
    """mpirun gives standard input to the first process alone."""
    for name in ("chat", "generate"):
        flags = (name, "-m", CHAT, "--temp", "0", "-n", "8", "--ignore-eos", "--compute", "f32", "--kv-type", "f32", "-q")
        alone, spread = run(0, *flags, typed=PROMPT), run(2, *flags, typed=PROMPT)
        expect(spread.returncode == 0, name, spread.stderr)
        expect(spread.stdout == alone.stdout != "", name, spread.stdout, alone.stdout)


class Served:
    """A server of several processes, on a port of its own."""

    def __init__(self, processes, *flags, model=CHAT):
        self.launcher = subprocess.Popen(
            command(processes, "serve", "-m", model, "--port", "0", "-c", "256", "--parallel", "8", "-t", "1",
                    "--kv-type", "f32", *flags),
            env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = ""
        while (found := re.search(r"http://127\.0\.0\.1:(\d+)", self.said)) is None:
            line = self.launcher.stderr.readline()
            expect(line, "no server:", self.said)
            self.said += line
        self.port = int(found[1])

    def ask(self, **body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("POST", "/v1/completions", json.dumps({"max_tokens": 16, "temperature": 0, "logprobs": 1, **body}),
                           {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        expect(answer.status == 200, answer.status, text)
        choice = json.loads(text)["choices"][0]
        return choice["text"], choice["logprobs"]["token_logprobs"]

    def metric(self, name):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("GET", "/metrics")
        said = connection.getresponse().read().decode()
        return float(re.search(rf"^{name}(?:{{.*}})? (\S+)$", said, re.MULTILINE)[1])

    def wait(self, seconds=120):
        try:
            out, errors = self.launcher.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.launcher.kill()
            raise
        expect(out == "", out)
        return self.said + errors


def processes_of(launcher):
    """Rank to process, of all of the launcher's."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            rank = re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", (entry / "environ").read_bytes())
        except (OSError, ValueError, IndexError):
            continue
        if parent == launcher and rank:
            found[int(rank[1])] = int(entry.name)
    return found


def gone(processes):
    until = time.monotonic() + 60
    while any(pathlib.Path(f"/proc/{process}/stat").exists() for process in processes.values()):
        expect(time.monotonic() < until, "processes are left", processes)
        time.sleep(0.05)


def one_server():
    alone = Served(0)
    prompts = [PROMPT[: 5 + 4 * i] for i in range(8)]
    expected = [alone.ask(prompt=prompt) for prompt in prompts]
    alone.launcher.send_signal(signal.SIGTERM)
    alone.wait()
    for processes, flags in ((2, ()), (2, ("--run-ahead", "-b", "20")), (4, ("--run-ahead",))):
        server = Served(processes, *flags)
        ranks = processes_of(server.launcher.pid)
        expect(sorted(ranks) == list(range(processes)), ranks)
        first = [server.ask(prompt=prompt) for prompt in prompts]
        for (text, numbers), (other, others) in zip(first, expected):
            expect(text == other, processes, text, other)
            expect(max(abs(a - b) for a, b in zip(numbers, others)) <= 1e-4, numbers, others)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda prompt: server.ask(prompt=prompt), prompts))
        expect(together == first, "company changes an answer")
        expect((server.metric("qiao:ahead_steps_total") > 0) == ("--run-ahead" in flags), flags)
        os.kill(ranks[0], signal.SIGTERM)  # as a service's end: what runs is finished
        errors = server.wait()
        expect(server.launcher.returncode == 0, server.launcher.returncode, errors)
        expect(errors.count("Serving ") == 1 and "error" not in errors, errors)
        gone(ranks)


def interrupted():
    server = Served(2)
    ranks = processes_of(server.launcher.pid)
    server.launcher.send_signal(signal.SIGINT)  # Ctrl-C at mpirun
    errors = server.wait()
    expect("lost" not in errors and "hangs" not in errors, errors)
    gone(ranks)


def one_that_ends(how, rank, said):
    # Where one ends, nobody waits for the limit; where one is stopped, the limit is what is told.
    server = Served(4, "--rank-timeout", "3" if how == signal.SIGSTOP else "60")
    ranks = processes_of(server.launcher.pid)
    server.ask(prompt=PROMPT)
    os.kill(ranks[rank], how)
    began = time.monotonic()
    errors = server.wait()
    took = time.monotonic() - began
    expect(f"rank {rank} on {os.uname().nodename} {said}" in errors and "the server ends here" in errors, errors)
    expect(server.launcher.returncode in ((1, 137) if how == signal.SIGKILL else (1,)), server.launcher.returncode, errors)
    gone(ranks)
    print(f"{how.name} of rank {rank}: named and ended after {took:.1f} s")


def refusals(scratch):
    def refused(said, processes, *arguments):
        result = run(processes, *arguments)
        expect(result.returncode == 1, arguments, result.returncode, result.stderr)
        expect(result.stderr.count(said) == 1, arguments, result.stderr)

    refused("numbers of processes that it can be spread over: 1, 2, 4", 3, "generate", "-m", CHAT, "-p", "x")
    refused("an embedding model runs in one process, and 2 were started", 2, "serve", "-m", GOLDEN / "encoders" / "bert",
            "--port", "0")
    # As the launcher of another MPI would start it.
    for rank in "01":
        result = subprocess.run(command(0, "generate", "-m", CHAT, "-p", "x"), capture_output=True, text=True, timeout=600,
                                env={**ENVIRONMENT, "PMI_RANK": rank, "PMI_SIZE": "2"})
        expect(result.returncode == 1 and "2 processes were started, and MPI finds 1" in result.stderr, result)


def main():
    if shutil.which("mpirun") is None:
        print("skipped: there is no mpirun (packages openmpi-bin and libopenmpi-dev)")
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        same_texts(scratch)
        piped()
        one_server()
        interrupted()
        refusals(scratch)
        one_that_ends(signal.SIGKILL, 2, "is lost")
        one_that_ends(signal.SIGKILL, 0, "is lost")
        one_that_ends(signal.SIGSTOP, 1, "hangs")


if __name__ == "__main__":
    sys.exit(main())
