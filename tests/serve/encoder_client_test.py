#!/usr/bin/env python3
"""The official openai client's embeddings, and /v1/rerank, against `qiao serve` over the tiny encoders of tests/golden.

  QIAO_BINARY=build/bin/qiao python tests/serve/encoder_client_test.py
"""
import base64
import json
import math
import struct
import unittest

import openai
from openai_client_test import ROOT, Served

ENCODERS = ROOT / "tests" / "golden" / "encoders"
TEXTS = ["The sky is blue.", "A bridge carries people over a river.", "你好，世界！"]


def length(vector):
    return math.sqrt(sum(x * x for x in vector))


class EncoderCase(unittest.TestCase):
    model = ""

    @classmethod
    def setUpClass(cls):
        cls.served = Served(model=str(ENCODERS / cls.model))
        cls.client = cls.served.client()

    @classmethod
    def tearDownClass(cls):
        if cls.served.stop() != 0:
            raise AssertionError("the server did not end with 0")

    def post(self, path, **body):
        status, _, data = self.served.request("POST", path, body)
        return status, json.loads(data)

    def refused(self, path, param, *parts, status=400, **body):
        got, answer = self.post(path, **body)
        self.assertEqual(got, status, answer)
        self.assertEqual(answer["error"]["param"], param)
        for part in parts:
            self.assertIn(part, answer["error"]["message"])


class EmbeddingsTest(EncoderCase):
    model = "bert"

    def embed(self, texts, **more):
        return self.client.embeddings.create(model="bert", input=texts, **more)

    def test_as_transformers(self):
        entries = json.loads((ENCODERS / "bert" / "expected.json").read_text())["texts"]
        answer = self.embed([entry["text"] for entry in entries], extra_body={"truncate": True})
        for entry, got in zip(entries, answer.data, strict=True):
            dot = sum(a * b for a, b in zip(entry["embedding"], got.embedding, strict=True))
            self.assertGreaterEqual(dot, 0.9999)
        self.assertEqual(answer.usage.prompt_tokens, sum(len(entry["ids"]) for entry in entries))
        self.assertEqual([got.index for got in answer.data], list(range(len(entries))))

    def test_formats(self):
        status, floats = self.post("/v1/embeddings", input=TEXTS[0], encoding_format="float")
        self.assertEqual(status, 200)
        encoded = self.post("/v1/embeddings", input=TEXTS[0], encoding_format="base64")[1]["data"][0]["embedding"]
        values = struct.unpack("<32f", base64.b64decode(encoded))
        self.assertEqual([struct.unpack("<f", struct.pack("<f", x))[0] for x in floats["data"][0]["embedding"]], list(values))

    def test_company_changes_nothing(self):
        together = [entry.embedding for entry in self.embed(TEXTS).data]
        self.assertEqual(together, [self.embed(text).data[0].embedding for text in TEXTS])

    def test_ids_are_taken_as_they_are(self):
        entry = json.loads((ENCODERS / "bert" / "expected.json").read_text())["texts"][0]
        self.assertEqual(self.embed(entry["ids"]).data[0].embedding, self.embed(entry["text"]).data[0].embedding)

    def test_dimensions(self):
        whole, cut = self.embed(TEXTS[0]).data[0].embedding, self.embed(TEXTS[0], dimensions=8).data[0].embedding
        self.assertEqual(len(cut), 8)
        self.assertAlmostEqual(length(cut), 1, 5)
        for a, b in zip(whole, cut):
            self.assertAlmostEqual(a / length(whole[:8]), b, 5)
        self.refused("/v1/embeddings", "dimensions", "33", "32", input="a", dimensions=33)
        self.refused("/v1/embeddings", "dimensions", input="a", dimensions=0)

    def test_long_inputs(self):
        long = "word " * 100
        self.refused("/v1/embeddings", "input[1]", "tokens", "the model takes 48", input=["a", long])
        cut = self.embed(long, extra_body={"truncate": True})
        self.assertEqual(cut.usage.prompt_tokens, 48)
        self.assertEqual(self.embed(long, extra_body={"truncate_prompt_tokens": 7}).usage.prompt_tokens, 7)
        self.assertEqual(self.embed(long, extra_body={"truncate_prompt_tokens": -1}).usage.prompt_tokens, 48)
        self.refused("/v1/embeddings", "truncate_prompt_tokens", input="a", truncate_prompt_tokens=49)

    def test_bad_fields(self):
        self.refused("/v1/embeddings", "input", "is required")
        self.refused("/v1/embeddings", "input", input=[])
        self.refused("/v1/embeddings", "input", input=5)
        self.refused("/v1/embeddings", "input[1]", input=["a", 5])
        self.refused("/v1/embeddings", "input[0]", "300", input=[[2, 300]])
        self.refused("/v1/embeddings", "input", "at most 2048", input=["a"] * 2049)
        self.refused("/v1/embeddings", "encoding_format", input="a", encoding_format="int8")
        self.refused("/v1/embeddings", "truncate", input="a", truncate="END")
        self.refused("/v1/embeddings", "colour", "unknown field", input="a", colour=1)
        self.refused("/v1/embeddings", "model", "bert", status=404, input="a", model="other")

    def test_other_paths(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model="bert", messages=[{"role": "user", "content": "hello"}])
        self.assertIn("is an embedding model", str(caught.exception))
        self.refused("/v1/completions", "model", "is an embedding model", prompt="a")
        self.refused("/v1/rerank", "model", "needs a cross-encoder", query="a", documents=["b"])
        self.assertEqual([model.id for model in self.client.models.list()], ["bert"])
        ids = self.post("/tokenize", content="The sky", add_special=True)[1]["tokens"]
        self.assertEqual(ids[0], 2)
        self.assertEqual(self.served.request("GET", "/health")[0], 200)
        self.assertIn(b"prompt_tokens_total", self.served.request("GET", "/metrics")[2])
        self.assertEqual(self.served.request("GET", "/nowhere")[0], 404)


class RerankTest(EncoderCase):
    model = "cross-bert"

    def test_as_transformers(self):
        pairs = json.loads((ENCODERS / "cross-bert" / "expected.json").read_text())["pairs"]
        pairs = [pair for pair in pairs if pair["query"] == pairs[0]["query"]]
        documents = [pair["document"] for pair in pairs]
        status, answer = self.post("/v1/rerank", model="cross-bert", query=pairs[0]["query"], documents=documents)
        self.assertEqual(status, 200, answer)
        scores = [result["relevance_score"] for result in answer["results"]]
        self.assertEqual(scores, sorted(scores, reverse=True))
        for result in answer["results"]:
            self.assertNotIn("document", result)
            self.assertAlmostEqual(result["relevance_score"], 1 / (1 + math.exp(-pairs[result["index"]]["score"])), 4)
        raw = self.post("/rerank", query=pairs[0]["query"], documents=documents, raw_scores=True)[1]["results"]
        for result in raw:
            self.assertAlmostEqual(result["relevance_score"], pairs[result["index"]]["score"], 3)
        self.assertEqual(answer["usage"]["prompt_tokens"], sum(len(pair["ids"]) for pair in pairs))

    def test_fields(self):
        status, answer = self.post("/rerank", query="bridge", documents=["a", {"text": "b"}, "c" * 500], top_n=2,
                                   return_documents=True)
        self.assertEqual(status, 200, answer)
        self.assertEqual(len(answer["results"]), 2)
        for result in answer["results"]:
            self.assertEqual(result["document"]["text"], ["a", "b", "c" * 500][result["index"]])

    def test_bad_fields(self):
        self.refused("/v1/rerank", "query", "is required", documents=["a"])
        self.refused("/v1/rerank", "documents", query="a")
        self.refused("/v1/rerank", "documents", query="a", documents=[])
        self.refused("/v1/rerank", "documents", "at most 2048", query="a", documents=["a"] * 2049)
        self.refused("/v1/rerank", "documents[1]", query="a", documents=["a", {"title": "b"}])
        self.refused("/v1/rerank", "top_n", query="a", documents=["a"], top_n=0)
        self.refused("/v1/rerank", "documents[0]", "64", query="a", documents=["word " * 100], truncate=False)
        self.refused("/v1/embeddings", "model", "cross-encoder", input="a")


if __name__ == "__main__":
    unittest.main()
