#!/usr/bin/env python3
"""Sentences a second of `qiao serve -m minilm` (over HTTP) and of PyTorch, with the same model, sentences and threads.

The sentences are those of this project's own docs. PyTorch runs as sentence-transformers runs it: sorted by length, batches
of 32 padded to their longest, the tokenizers library, mean pooling. Each is measured in turn, best of --runs; the vectors
are compared too.

  qiao pull minilm; python bench/embed_versus_pytorch.py --threads 2      (needs torch, transformers)
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
import time

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


class PyTorch:
    def __init__(self, folder, threads):
        import torch
        import transformers
        from tokenizers import Tokenizer
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self.torch = torch
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(256)
        self.tokenizer.enable_padding()
        self.model = transformers.BertModel.from_pretrained(folder, attn_implementation="sdpa").float().eval()

    def embed(self, texts):
        torch, order = self.torch, sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        result = [None] * len(texts)
        with torch.inference_mode():
            for begin in range(0, len(order), 32):
                batch = order[begin:begin + 32]
                encoded = self.tokenizer.encode_batch([texts[i] for i in batch])
                mask = torch.tensor([e.attention_mask for e in encoded])
                hidden = self.model(input_ids=torch.tensor([e.ids for e in encoded]), attention_mask=mask).last_hidden_state
                summed = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
                for i, vector in zip(batch, torch.nn.functional.normalize(summed).tolist()):
                    result[i] = vector
        return result


def best(embed, texts, runs):
    embed(texts[:32])
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        vectors = embed(texts)
        seconds.append(time.perf_counter() - start)
    return min(seconds), vectors


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
    torch_seconds, expected = best(PyTorch(arguments.model, arguments.threads).embed, texts, arguments.runs)
    served = Qiao(arguments.binary, str(arguments.model), arguments.threads)
    try:
        qiao_seconds, vectors = best(served.embed, texts, arguments.runs)
    finally:
        served.stop()
    worst = min(sum(a * b for a, b in zip(x, y)) for x, y in zip(vectors, expected))
    print(f"{len(texts)} sentences, {arguments.threads} threads; worst cosine between the two {worst:.7f}")
    print(f"PyTorch  {len(texts) / torch_seconds:8.1f} sentences/s")
    print(f"Qiao     {len(texts) / qiao_seconds:8.1f} sentences/s   {torch_seconds / qiao_seconds:.2f} x")


if __name__ == "__main__":
    main()
