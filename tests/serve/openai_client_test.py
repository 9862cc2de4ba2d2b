#!/usr/bin/env python3
"""The official openai client against `qiao serve`, every endpoint, over the tiny model of tests/golden/chat.

  QIAO_BINARY=build/bin/qiao python tests/serve/openai_client_test.py
"""
import base64
import http.client
import json
import math
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import threading
import time
import unittest

import openai

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("QIAO_BINARY", str(ROOT / "build" / "bin" / "qiao"))
MODEL = str(ROOT / "tests" / "golden" / "chat")
GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}
HELLO = [{"role": "user", "content": "Why is the sky blue?"}]


class Served:
    """A server process on a free port."""

    def __init__(self, *flags, model=MODEL, context=512):
        self.process = subprocess.Popen([BINARY, "serve", "-m", model, "--port", "0", "-c", str(context), "-q", *flags],
                                        stderr=subprocess.PIPE, text=True)
        line = self.process.stderr.readline()
        found = re.search(r"http://[^:]+:(\d+)", line)
        if not found:
            raise RuntimeError(f"the server did not start: {line}{self.process.stderr.read()}")
        self.port = int(found[1])

    def client(self, key="none"):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, timeout=300)

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        data = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
        connection.request(method, path, data, headers or {})
        response = connection.getresponse()
        return response.status, dict((k.lower(), v) for k, v in response.getheaders()), response.read()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.process.stderr.close()
        return code


class ServeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.served = Served("-np", "4")
        cls.client = cls.served.client()

    @classmethod
    def tearDownClass(cls):
        if cls.served.stop() != 0:
            raise AssertionError("the server did not end with 0")

    # --- models, health, metrics, page

    def test_models(self):
        models = list(self.client.models.list())
        self.assertEqual([model.id for model in models], ["chat"])
        self.assertEqual(models[0].object, "model")
        self.assertEqual(self.client.models.retrieve("chat"), models[0])
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.models.retrieve("another/one")
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_health_and_metrics(self):
        self.assertEqual(json.loads(self.served.request("GET", "/health")[2]), {"status": "ok"})
        self.client.completions.create(model="chat", prompt="a", max_tokens=3, **GREEDY)
        status, headers, body = self.served.request("GET", "/metrics")
        self.assertEqual(status, 200)
        self.assertTrue(headers["content-type"].startswith("text/plain; version=0.0.4"))
        text = body.decode()
        for line in text.splitlines():
            self.assertRegex(line, r'^(# (HELP|TYPE) \S+ .+|[a-z0-9_:]+(\{.*\})? [-+.e0-9]+)$')
        self.assertGreaterEqual(float(re.search(r"^vllm:generation_tokens_total\{.*\} (\S+)", text, re.M)[1]), 3)

    def test_page(self):
        status, headers, body = self.served.request("GET", "/")
        self.assertEqual(status, 200)
        self.assertIn("text/html", headers["content-type"])
        self.assertIn("default-src 'none'", headers["content-security-policy"])
        self.assertNotRegex(body.decode(), r'(src|href)="https?://')

    def test_request_id(self):
        headers = self.served.request("GET", "/health", headers={"x-request-id": "abc-1"})[1]
        self.assertEqual(headers["x-request-id"], "abc-1")
        made = [self.served.request("GET", "/health")[1]["x-request-id"] for _ in range(2)]
        self.assertNotEqual(made[0], made[1])
        answer = self.client.chat.completions.with_raw_response.create(model="chat", messages=HELLO, max_tokens=1)
        self.assertTrue(answer.headers["x-request-id"])
        self.assertTrue(self.served.request("GET", "/nowhere")[1]["x-request-id"])

    # --- chat

    def chat(self, **more):
        return self.client.chat.completions.create(**{**dict(model="chat", messages=HELLO, max_tokens=16), **GREEDY, **more})

    def test_chat(self):
        answer = self.chat()
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertTrue(answer.choices[0].message.content)
        self.assertEqual(answer.usage.completion_tokens, 16)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + 16)
        rendered = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
        tokens = json.loads(self.served.request("POST", "/tokenize", {"content": rendered})[2])["tokens"]
        self.assertEqual(answer.usage.prompt_tokens, len(tokens))

    def test_chat_stream_is_the_plain_answer(self):
        plain = self.chat(max_tokens=40)
        chunks = list(self.chat(max_tokens=40, stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, plain.choices[0].message.content)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "length")
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, 40)
        self.assertTrue(all(c.usage is None for c in chunks[:-1]))
        self.assertEqual(len({c.id for c in chunks}), 1)

    def test_chat_choices_and_seed(self):
        many = self.chat(n=3, temperature=1.5, seed=11, top_p=1)
        self.assertEqual([choice.index for choice in many.choices], [0, 1, 2])
        texts = [choice.message.content for choice in many.choices]
        self.assertEqual(len(set(texts)), 3)
        again = self.chat(n=3, temperature=1.5, seed=11, top_p=1)
        self.assertEqual([choice.message.content for choice in again.choices], texts)
        self.assertEqual(self.chat(temperature=1.5, seed=11, top_p=1).choices[0].message.content, texts[0])
        streamed = ["", "", ""]
        for chunk in self.chat(n=3, temperature=1.5, seed=11, top_p=1, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        self.assertEqual(streamed, texts)

    def test_chat_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=5, max_tokens=6)
        content = answer.choices[0].logprobs.content
        self.assertEqual(len(content), 6)
        for entry in content:
            self.assertLessEqual(entry.logprob, 0)
            self.assertEqual(len(entry.top_logprobs), 5)
            self.assertEqual(entry.top_logprobs[0].logprob, entry.logprob)
        self.assertEqual(bytes(b for entry in content for b in entry.bytes).decode("utf-8", "replace"),
                         answer.choices[0].message.content)
        streamed = [entry for chunk in self.chat(logprobs=True, top_logprobs=5, max_tokens=6, stream=True)
                    if chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content]
        self.assertEqual([e.logprob for e in streamed], [e.logprob for e in content])

    def test_chat_stop_and_limits(self):
        text = self.chat(max_tokens=40).choices[0].message.content
        middle = len(text) // 2
        stop = text[middle:middle + 2]
        stopped = self.chat(max_tokens=40, stop=[stop, "never said"])
        self.assertEqual(stopped.choices[0].message.content, text[:text.index(stop)])
        self.assertEqual(stopped.choices[0].finish_reason, "stop")
        self.assertEqual(self.chat(max_tokens=openai.NOT_GIVEN, max_completion_tokens=3).usage.completion_tokens, 3)

    def test_chat_bias_and_end(self):
        # Token 2 ends a turn: a bias that nothing outweighs ends the answer at once.
        answer = self.client.chat.completions.create(model="chat", messages=HELLO, temperature=0, logit_bias={"2": 100})
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertEqual(answer.choices[0].message.content, "")

    def test_chat_message_forms(self):
        parts = [{"role": "user", "content": [{"type": "text", "text": "Why is the sky blue?"}]}]
        self.assertEqual(self.chat(messages=parts).choices[0].message.content, self.chat().choices[0].message.content)
        system = [{"role": "system", "content": "Be brief."}] + HELLO
        developer = [{"role": "developer", "content": "Be brief."}] + HELLO
        self.assertEqual(self.chat(messages=system).choices[0].message.content,
                         self.chat(messages=developer).choices[0].message.content)

    def test_second_turn_is_cached(self):
        messages = [{"role": "user", "content": "A long first message, that is worth keeping in the cache. " * 3}]
        first = self.chat(messages=messages)
        again = self.chat(messages=messages)
        self.assertGreater(again.usage.prompt_tokens_details.cached_tokens, 50)
        self.assertEqual(again.choices[0].message.content, first.choices[0].message.content)

    # --- completions

    def complete(self, **more):
        return self.client.completions.create(**{**dict(model="chat", prompt="The sky", max_tokens=8), **GREEDY, **more})

    def test_completion_prompt_forms(self):
        one = self.complete().choices[0].text
        ids = json.loads(self.served.request("POST", "/tokenize", {"content": "The sky", "add_special": True})[2])["tokens"]
        self.assertEqual(self.complete(prompt=ids).choices[0].text, one)
        several = self.complete(prompt=["The sky", "A bridge", "The sky"])
        self.assertEqual([c.index for c in several.choices], [0, 1, 2])
        self.assertEqual(several.choices[0].text, one)
        self.assertEqual(several.choices[2].text, one)
        self.assertNotEqual(several.choices[1].text, one)
        self.assertEqual(self.complete(prompt=[ids, ids]).choices[1].text, one)
        self.assertEqual(len(self.complete(prompt=["The sky", "A bridge"], n=2).choices), 4)

    def test_completion_stream(self):
        text = "".join(chunk.choices[0].text for chunk in self.complete(stream=True, max_tokens=30))
        self.assertEqual(text, self.complete(max_tokens=30).choices[0].text)

    def test_completion_echo_and_logprobs(self):
        echoed = self.complete(echo=True, logprobs=2)
        self.assertTrue(echoed.choices[0].text.startswith("The sky"))
        logprobs = echoed.choices[0].logprobs
        prompt_tokens = echoed.usage.prompt_tokens
        self.assertEqual(len(logprobs.tokens), prompt_tokens + 8)
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertTrue(all(value <= 0 for value in logprobs.token_logprobs[1:]))
        self.assertEqual(logprobs.text_offset[0], 0)
        self.assertEqual(logprobs.text_offset[1], len(logprobs.tokens[0].encode()))
        # Reading the whole text back gives its tokens the log-probabilities that they were made with.
        plain = self.complete(logprobs=0)
        self.assertEqual(plain.choices[0].logprobs.token_logprobs, logprobs.token_logprobs[prompt_tokens:])
        only = self.complete(echo=True, max_tokens=0, logprobs=0)
        self.assertEqual(only.choices[0].text, "The sky")
        self.assertEqual(only.choices[0].logprobs.token_logprobs, logprobs.token_logprobs[:prompt_tokens])

    def test_completion_default_length_is_16(self):
        self.assertEqual(self.complete(max_tokens=openai.NOT_GIVEN).usage.completion_tokens, 16)

    # --- embeddings

    def test_embeddings(self):
        answer = self.client.embeddings.create(model="chat", input=["The sky is blue.", "A bridge"], encoding_format="float")
        self.assertEqual([d.index for d in answer.data], [0, 1])
        for entry in answer.data:
            self.assertEqual(len(entry.embedding), 48)
            self.assertAlmostEqual(math.hypot(*entry.embedding), 1, places=5)
        # The client's default is base64.
        other = self.client.embeddings.create(model="chat", input="The sky is blue.")
        self.assertEqual(list(other.data[0].embedding), list(answer.data[0].embedding))
        raw = json.loads(self.served.request("POST", "/v1/embeddings", {"input": "A bridge", "encoding_format": "base64"})[2])
        self.assertEqual(list(struct.unpack("<48f", base64.b64decode(raw["data"][0]["embedding"]))),
                         [struct.unpack("<f", struct.pack("<f", v))[0] for v in answer.data[1].embedding])

    # --- tokenize

    def test_tokenize_round_trip(self):
        text = "桥 means bridge. <|im_end|> 你好\n"
        tokens = json.loads(self.served.request("POST", "/tokenize", {"content": text})[2])["tokens"]
        self.assertIn(2, tokens)
        self.assertEqual(json.loads(self.served.request("POST", "/detokenize", {"tokens": tokens})[2])["content"], text)
        pieces = json.loads(self.served.request("POST", "/tokenize", {"content": text, "with_pieces": True})[2])["tokens"]
        joined = b"".join(bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces)
        self.assertEqual(joined.decode(), text)
        plain = json.loads(self.served.request("POST", "/tokenize", {"content": "<|im_end|>", "parse_special": False})[2])
        self.assertNotIn(2, plain["tokens"])

    # --- what is wrong is named

    def test_errors_name_the_field(self):
        base = {"model": "chat", "messages": HELLO, "max_tokens": 2}
        cases = [
            ("messages", {"messages": []}), ("messages", {"messages": "hi"}), ("messages", {"messages": None}),
            ("messages[0].role", {"messages": [{"content": "x"}]}),
            ("messages[0].role", {"messages": [{"role": "robot", "content": "x"}]}),
            ("messages[0].content", {"messages": [{"role": "user"}]}),
            ("messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
            ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            ("messages[0].mood", {"messages": [{"role": "user", "content": "x", "mood": "good"}]}),
            ("messages[0]", {"messages": ["hi"]}),
            ("temperature", {"temperature": -1}), ("temperature", {"temperature": 2.5}), ("temperature", {"temperature": "hot"}),
            ("top_p", {"top_p": 1.01}), ("top_k", {"top_k": -2}), ("min_p", {"min_p": 2}), ("n", {"n": 0}), ("n", {"n": 129}),
            ("n", {"n": 1.5}), ("max_tokens", {"max_tokens": 0}), ("max_tokens", {"max_tokens": -5}),
            ("max_tokens", {"max_tokens": 1e30}), ("seed", {"seed": "x"}), ("seed", {"seed": 1 << 70}),
            ("stop", {"stop": 5}), ("stop[1]", {"stop": ["a", 5]}), ("stop", {"stop": ["a"] * 17}),
            ("frequency_penalty", {"frequency_penalty": 3}), ("presence_penalty", {"presence_penalty": -3}),
            ("logit_bias", {"logit_bias": {"x": 1}}), ("logit_bias", {"logit_bias": {"99999": 1}}),
            ("logit_bias", {"logit_bias": {"5": 101}}), ("logit_bias", {"logit_bias": [1]}),
            ("logprobs", {"logprobs": "yes"}), ("top_logprobs", {"top_logprobs": 5}),
            ("top_logprobs", {"logprobs": True, "top_logprobs": 21}), ("stream", {"stream": "yes"}),
            ("stream_options", {"stream_options": {}}), ("stream_options.loud", {"stream": True, "stream_options": {"loud": True}}),
            ("tools[0].function", {"tools": [{"type": "function"}]}), ("response_format.type", {"response_format": {"type": "xml"}}),
            ("model", {"model": 5}), ("no_such_field", {"no_such_field": 1}),
        ]
        for field, change in cases:
            with self.subTest(field=field, change=change):
                status, _, body = self.served.request("POST", "/v1/chat/completions", {**base, **change})
                error = json.loads(body)["error"]
                self.assertEqual(status, 400, error)
                self.assertEqual(error["param"], field, error)
                self.assertIn(field, error["message"])
        completion = {"model": "chat", "max_tokens": 2}
        for field, change in [("prompt", {}), ("prompt", {"prompt": []}), ("prompt[0]", {"prompt": [[]]}), ("prompt", {"prompt": {}}),
                              ("prompt", {"prompt": [1, "a"]}), ("prompt", {"prompt": [-1]}), ("prompt", {"prompt": [99999]}),
                              ("prompt", {"prompt": [1.5]}), ("suffix", {"prompt": "a", "suffix": "b"}), ("best_of", {"prompt": "a", "best_of": 3}),
                              ("logprobs", {"prompt": "a", "logprobs": 21}), ("echo", {"prompt": "a", "echo": 1}),
                              ("max_tokens", {"prompt": "a", "max_tokens": 0})]:
            with self.subTest(field=field, change=change):
                status, _, body = self.served.request("POST", "/v1/completions", {**completion, **change})
                self.assertEqual((status, json.loads(body)["error"]["param"]), (400, field), body)
        for field, change in [("input", {}), ("input", {"input": []}), ("encoding_format", {"input": "a", "encoding_format": "hex"}),
                              ("dimensions", {"input": "a", "dimensions": 49}), ("input[1]", {"input": ["a", 5]})]:
            with self.subTest(field=field, change=change):
                status, _, body = self.served.request("POST", "/v1/embeddings", {"model": "chat", **change})
                self.assertEqual((status, json.loads(body)["error"]["param"]), (400, field), body)

    def test_errors_of_the_client(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model="chat", messages=HELLO, temperature=9)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.chat.completions.create(model="another", messages=HELLO)
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model="chat", prompt=[5] * 600)
        self.assertEqual(caught.exception.code, "context_length_exceeded")

    def test_bad_bodies(self):
        for body in [b"", b"{", b"[]", b"5", b'"x"', b"\xff\xfe", b'{"messages": ' + b"[" * 5000, b'{"a":1}' * 2, b'{"prompt": "\xff"}']:
            with self.subTest(body=body[:20]):
                status, _, answer = self.served.request("POST", "/v1/completions", body)
                self.assertEqual(status, 400)
                self.assertTrue(json.loads(answer)["error"]["message"])
        self.assertEqual(self.served.request("GET", "/v1/completions")[0], 405)
        self.assertEqual(self.served.request("POST", "/v1/nothing", {})[0], 404)
        self.assertEqual(json.loads(self.served.request("POST", "/v1/nothing", {})[2])["error"]["type"], "not_found_error")

    def test_foreign_pages_are_refused(self):
        origin = {"origin": "https://elsewhere.example"}
        self.assertEqual(self.served.request("POST", "/v1/completions", {"prompt": "a"}, origin)[0], 403)
        own = {"origin": f"http://127.0.0.1:{self.served.port}"}
        status, headers, _ = self.served.request("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1}, own)
        self.assertEqual(status, 200)
        self.assertNotIn("access-control-allow-origin", headers)

    def test_a_hang_up_stops_the_work(self):
        body = json.dumps({"prompt": "a", "max_tokens": 400, "stream": True, "ignore_eos": True, "n": 4})
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", self.served.port)) as peer:
                peer.sendall(f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
                peer.recv(100)
        for _ in range(1200):
            text = self.served.request("GET", "/metrics")[2].decode()
            if re.search(r"^vllm:num_requests_running\{.*\} 0$", text, re.M) and re.search(r"^vllm:num_requests_waiting\{.*\} 0$", text, re.M):
                return
            time.sleep(0.05)
        self.fail("requests still run after their clients have gone")

    def test_many_at_once_answer_as_alone(self):
        alone = self.complete(max_tokens=20).choices[0].text
        answers = []

        def ask():
            answers.append(self.served.client().completions.create(model="chat", prompt="The sky", max_tokens=20, **GREEDY).choices[0].text)

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(answers, [alone] * 16)


class KeyTest(unittest.TestCase):
    def test_keys_and_cors(self):
        served = Served("--api-key", "first", "--api-key", "second", "--cors-origin", "https://friend.example", "-a", "org/tiny:x")
        try:
            for key in ("first", "second"):
                self.assertEqual(list(served.client(key).models.list())[0].id, "org/tiny:x")
                self.assertEqual(served.client(key).models.retrieve("org/tiny:x").id, "org/tiny:x")
            for key in ("third", "firs", "firstfirst", ""):
                with self.assertRaises(openai.AuthenticationError):
                    list(served.client(key or "x").models.list())
            self.assertEqual(served.request("GET", "/health")[0], 200)
            self.assertEqual(served.request("GET", "/")[0], 200)
            for path in ("/metrics", "/v1/models", "/nowhere"):
                self.assertEqual(served.request("GET", path)[0], 401, path)
            self.assertEqual(served.request("GET", "/v1/models", headers={"x-api-key": "first"})[0], 200)
            friend = {"origin": "https://friend.example", "authorization": "Bearer first"}
            headers = served.request("GET", "/v1/models", headers=friend)[1]
            self.assertEqual(headers["access-control-allow-origin"], "https://friend.example")
            status, headers, _ = served.request("OPTIONS", "/v1/chat/completions", headers={
                "origin": "https://friend.example", "access-control-request-method": "POST"})
            self.assertEqual(status, 204)
            self.assertIn("authorization", headers["access-control-allow-headers"])
            self.assertEqual(served.request("OPTIONS", "/v1/models", headers={"origin": "https://foe.example"})[0], 403)
        finally:
            served.stop()


class QueueTest(unittest.TestCase):
    def test_a_full_queue_is_429_and_says_when_to_try_again(self):
        # The running answer is one of seconds, and is hung up on once all have answered but the one that waits.
        served = Served("-np", "1", "--max-queued", "1", context=32768)
        try:
            stream = served.client().completions.create(model="chat", prompt="a", max_tokens=32000, stream=True, **GREEDY)
            next(iter(stream))
            answers = []

            def ask():
                answers.append(served.request("POST", "/v1/completions", {"prompt": "b", "max_tokens": 1, "n": 1}))

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for _ in range(600):
                if len(answers) >= 7:
                    break
                time.sleep(0.05)
            stream.close()
            for thread in threads:
                thread.join()
            self.assertEqual(sorted(status for status, _, _ in answers), [200] + [429] * 7)
            refused = [(headers, body) for status, headers, body in answers if status == 429]
            for headers, body in refused:
                self.assertGreaterEqual(int(headers["retry-after"]), 1)
                self.assertEqual(json.loads(body)["error"]["type"], "rate_limit_error")
        finally:
            served.stop()

    def test_few_pages_preempt_and_change_no_byte(self):
        served = Served("--kv-pages", "16", "--page-tokens", "16", "-t", "1")
        try:
            prompts = [f"Request {i}: tell me about bridges." for i in range(8)]

            def complete(prompt):
                answer = served.client().completions.create(model="chat", prompt=prompt, max_tokens=120, **GREEDY)
                return [choice.text for choice in answer.choices]

            alone = [complete(prompt)[0] for prompt in prompts]
            together = complete(prompts)  # queued at once, however fast the machine is
            self.assertEqual(together, alone)
            metrics = served.request("GET", "/metrics")[2].decode()
            self.assertGreater(int(re.search(r"^vllm:num_preemptions_total\{.*\} (\d+)$", metrics, re.M)[1]), 0)
            self.assertRegex(metrics, r"(?m)^qiao:kv_pages_total\{.*\} 16$")
        finally:
            served.stop()


class AdapterTest(unittest.TestCase):
    """LoRA adapters beside the model, each under a name of its own."""

    @classmethod
    def setUpClass(cls):
        folder = ROOT / "tests" / "golden" / "lora"
        cls.served = Served("-np", "4", "--lora", f"one={folder}/chat-one", "--lora", f"two={folder}/chat-two",
                            "--page-tokens", "4")
        cls.client = cls.served.client()

    @classmethod
    def tearDownClass(cls):
        if cls.served.stop() != 0:
            raise AssertionError("the server did not end with 0")

    def text(self, model, **options):
        answer = self.client.completions.create(model=model, prompt="A bridge carries", max_tokens=20, **options, **GREEDY)
        self.assertEqual(answer.model, model)
        return answer.choices[0].text

    def test_models_lists_them_with_their_base(self):
        models = {model.id: model for model in self.client.models.list()}
        self.assertEqual(list(models), ["chat", "one", "two"])
        self.assertIsNone(models["chat"].parent)
        self.assertEqual(models["chat"].root, "chat")
        self.assertEqual(models["two"].parent, "chat")
        self.assertTrue(models["two"].root.endswith("chat-two"))

    def test_each_answers_in_its_own_way_and_alike_in_company(self):
        alone = {model: self.text(model) for model in ("chat", "one", "two")}
        self.assertEqual(len(set(alone.values())), 3)
        together = {}

        def ask(i):
            model = ("chat", "one", "two")[i % 3]
            together[i] = (model, self.text(model))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for model, text in together.values():
            self.assertEqual(text, alone[model])

    def test_chat_streamed_and_plain(self):
        plain = {}
        for model in ("chat", "one"):
            answer = self.client.chat.completions.create(model=model, messages=HELLO, max_tokens=12, **GREEDY)
            self.assertEqual(answer.model, model)
            plain[model] = answer.choices[0].message.content
            chunks = list(self.client.chat.completions.create(model=model, messages=HELLO, max_tokens=12, stream=True,
                                                              **GREEDY))
            self.assertEqual({chunk.model for chunk in chunks}, {model})
            self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in chunks), plain[model])
        self.assertNotEqual(plain["chat"], plain["one"])

    def test_embeddings(self):
        vectors = {model: self.client.embeddings.create(model=model, input="A bridge") for model in ("chat", "one")}
        self.assertEqual(vectors["one"].model, "one")
        self.assertNotEqual(vectors["chat"].data[0].embedding, vectors["one"].data[0].embedding)

    def test_cached_prompts_are_of_one_adapter(self):
        def cached(model):
            prompt = "Numbers: 0 1 2 3 4 5 6 7 8 9 10 42 100 1000. " * 2
            usage = self.client.completions.create(model=model, prompt=prompt, max_tokens=1, **GREEDY).usage
            return usage.prompt_tokens_details.cached_tokens

        for model in ("chat", "one", "two"):
            self.assertEqual(cached(model), 0)
        for model in ("chat", "one", "two"):
            self.assertGreater(cached(model), 0)

    def test_an_unknown_name_is_a_404(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.text("three")
        self.assertEqual(caught.exception.code, "model_not_found")
        self.assertIn("'chat' and 'one', 'two' are", str(caught.exception))

    def test_what_does_not_load_is_one_line(self):
        folder = ROOT / "tests" / "golden"
        for flag, expected in [("one", "expected NAME=PATH"), (f"one={folder}", "no LoRA adapter"),
                               (f"a={folder}/lora/qwen3", "was expected"), (f"chat={folder}/lora/chat-one", "is the model's own")]:
            run = subprocess.run([BINARY, "serve", "-m", MODEL, "--port", "0", "-q", "--lora", flag], capture_output=True,
                                 text=True, timeout=300)
            self.assertNotEqual(run.returncode, 0)
            self.assertIn(expected, run.stderr)


class DrainTest(unittest.TestCase):
    def test_sigterm_lets_the_answer_finish(self):
        served = Served()
        stream = served.client().completions.create(model="chat", prompt="a", max_tokens=400, stream=True, **GREEDY)
        chunks = [next(iter(stream))]
        served.process.send_signal(signal.SIGTERM)
        chunks += list(stream)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")
        self.assertEqual(served.process.wait(60), 0)
        served.stop()


if __name__ == "__main__":
    unittest.main(verbosity=1)
