#!/usr/bin/env python3
"""Sentences a second of `qiao serve -m minilm` (over HTTP), of PyTorch and of ONNX Runtime: same model, sentences, threads.

The sentences are those of this project's own docs. The peers run as sentence-transformers runs them: sorted by length, batches
of 32 padded to their longest, the tokenizers library, mean pooling. ONNX Runtime gets the model that PyTorch exports, with its
own optimizations on. Each is measured in turn, --runs rounds, and the best of each counts; the vectors are compared too.

  qiao pull minilm; python bench/embed_versus_pytorch.py --threads 2   (needs torch, transformers, onnx, onnxscript, onnxruntime)
"""
import argparse
import base64
import http.client
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import tempfile
import time

import numpy

ROOT = pathlib.Path(__file__).resolve().parents[1]


def sentences(count):
    found = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        for sentence in re.split(r"(?<=[.:])\s+|\n\n|\n[-|] ?", path.read_text(encoding="utf-8")):
            sentence = " ".join(sentence.split())
            if len(sentence) >= 20:
                found.append(sentence)
    return found[:count]


class Qiao:
    def __init__(self, binary, model, threads):
        self.process = subprocess.Popen([binary, "serve", "-m", model, "--port", "0", "-t", str(threads), "-q"],
                                        stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        self.port = int(re.search(r"http://[^:]+:(\d+)", line)[1])

    def embed(self, texts):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("POST", "/v1/embeddings", json.dumps(
            {"input": texts, "encoding_format": "base64", "truncate": True}))
        answer = json.loads(connection.getresponse().read())
        return [struct.unpack("<384f", base64.b64decode(entry["embedding"])) for entry in answer["data"]]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


class Peer:
    """What both peers share; a subclass gives the last hidden state of a padded batch."""

    def __init__(self, folder):
        from tokenizers import Tokenizer
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(256)
        self.tokenizer.enable_padding()

    def embed(self, texts):
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        result = [None] * len(texts)
        for begin in range(0, len(order), 32):
            batch = order[begin:begin + 32]
            encoded = self.tokenizer.encode_batch([texts[i] for i in batch])
            ids, mask = (numpy.array([getattr(e, name) for e in encoded], dtype=numpy.int64) for name in ("ids", "attention_mask"))
            hidden = self.hidden(ids, mask)
            summed = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
            for i, vector in zip(batch, summed / numpy.linalg.norm(summed, axis=1, keepdims=True)):
                result[i] = vector.tolist()
        return result


def bert(folder, attention):
    import transformers
    transformers.logging.set_verbosity_error()
    return transformers.BertModel.from_pretrained(folder, attn_implementation=attention).float().eval()


class PyTorch(Peer):
    def __init__(self, folder, threads):
        import torch
        super().__init__(folder)
        torch.set_num_threads(threads)
        self.torch, self.model = torch, bert(folder, "sdpa")

    def hidden(self, ids, mask):
        with self.torch.inference_mode():
            ids, mask = self.torch.from_numpy(ids), self.torch.from_numpy(mask)
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()


class OnnxRuntime(Peer):
    def __init__(self, folder, threads):
        import onnxruntime
        import torch
        super().__init__(folder)

        class Hidden(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = bert(folder, "eager")

            def forward(self, input_ids, attention_mask):
                return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

        ids, mask = torch.arange(100, 116).reshape(2, 8), torch.ones(2, 8, dtype=torch.int64)
        batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=512)
        with tempfile.TemporaryDirectory() as place:
            path = os.path.join(place, "model.onnx")
            torch.onnx.export(Hidden(), (ids, mask), path, input_names=["input_ids", "attention_mask"], dynamo=True, verbose=False,
                              dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}))
            session = onnxruntime.SessionOptions()
            session.intra_op_num_threads = threads
            session.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            self.session = onnxruntime.InferenceSession(path, session, providers=["CPUExecutionProvider"])

    def hidden(self, ids, mask):
        return self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def seconds(embed, texts):
    start = time.perf_counter()
    vectors = embed(texts)
    return time.perf_counter() - start, vectors


def main():
    home = os.environ.get("QIAO_HOME") or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "qiao"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build" / "bin" / "qiao"))
    parser.add_argument("--model", type=pathlib.Path, default=pathlib.Path(home) / "models" / "minilm")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=400)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    texts = sentences(arguments.sentences)
    peers = {"PyTorch": PyTorch(arguments.model, arguments.threads), "ONNX Runtime": OnnxRuntime(arguments.model, arguments.threads)}
    served = Qiao(arguments.binary, str(arguments.model), arguments.threads)
    try:
        programs = {"Qiao": served, **peers}
        for program in programs.values():
            program.embed(texts[:32])
        times, vectors = {name: [] for name in programs}, {}
        for _ in range(arguments.runs):
            for name, program in programs.items():
                took, vectors[name] = seconds(program.embed, texts)
                times[name].append(took)
    finally:
        served.stop()
    print(f"{len(texts)} sentences, {arguments.threads} threads, best of {arguments.runs} rounds")
    ours = min(times["Qiao"])
    print(f"Qiao          {len(texts) / ours:8.1f} sentences/s")
    for name in peers:
        worst = min(sum(a * b for a, b in zip(x, y)) for x, y in zip(vectors["Qiao"], vectors[name]))
        print(f"{name:13} {len(texts) / min(times[name]):8.1f} sentences/s   Qiao {min(times[name]) / ours:.2f} x; worst cosine {worst:.7f}")


if __name__ == "__main__":
    main()
