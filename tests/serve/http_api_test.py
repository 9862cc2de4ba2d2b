"""HTTP as it is spoken, and requests as they should not be: each a 4xx that says what is wrong, at once."""
import http.client
import json
import socket
import time
import unittest

from serving import Serving, connect, raw_request

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
TEXT = {"prompt": "hi", "max_tokens": 1}
EMBED = {"input": "hi"}


class HttpTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.served = Serving("--max-body", "1")

    @classmethod
    def tearDownClass(cls):
        assert cls.served.stop() == 0

    def talk(self, data, until=b"", wait=20):
        """What comes back for raw bytes, until it holds `until` or the server closes."""
        with connect(self.served.port, timeout=wait) as peer:
            peer.sendall(data)
            got = b""
            while not until or until not in got:
                piece = peer.recv(65536)
                if not piece:
                    break
                got += piece
            return got

    def error(self, path, body, headers=None, method="POST"):
        begun = time.monotonic()
        status, answered, content = self.served.request(method, path, body, headers)
        self.assertLess(time.monotonic() - begun, 30)
        error = json.loads(content)["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        self.assertTrue(answered["x-request-id"])
        return status, error, answered

    def test_methods_and_paths(self):
        for method, path, allow in (("GET", "/v1/completions", "POST, OPTIONS"), ("DELETE", "/v1/models", "GET, HEAD, OPTIONS"),
                                    ("HEAD", "/v1/chat/completions", "POST, OPTIONS"), ("PUT", "/", "GET, HEAD, OPTIONS"),
                                    ("TRACE", "/health", "GET, HEAD, OPTIONS")):
            status, headers, _ = self.served.request(method, path)
            self.assertEqual((status, headers["allow"]), (405, allow), path)
        status, headers, body = self.served.request("OPTIONS", "/v1/completions")
        self.assertEqual((status, headers["allow"], body), (204, "POST, OPTIONS", b""))
        self.assertNotIn("content-length", headers)
        for path in ("/v2/models", "/v1", "/v1/models/", "//", "/%00", "/v1/completions%20"):
            self.assertEqual(self.error(path, None, method="GET")[0], 404, path)
        status, headers, body = self.served.request("HEAD", "/health")
        self.assertEqual((status, body), (200, b""))
        self.assertEqual(int(headers["content-length"]), len(self.served.request("GET", "/health")[2]))
        self.assertEqual(self.served.request("GET", "/health?x=1&y")[0], 200)

    def test_content_types(self):
        body = json.dumps(TEXT)
        for kind in ("application/json", "application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json",
                     "text/plain", "application/x-www-form-urlencoded", ""):
            self.assertEqual(self.served.request("POST", "/v1/completions", body, {"content-type": kind})[0], 200, kind)
        for kind in ("multipart/form-data; boundary=x", "application/xml", "text/html", "image/png", "json"):
            status, error, _ = self.error("/v1/completions", body, {"content-type": kind})
            self.assertEqual((status, error["param"]), (415, "content-type"), kind)
        status, error, _ = self.error("/v1/completions", body, {"content-encoding": "gzip"})
        self.assertEqual((status, error["param"]), (415, "content-encoding"))

    def test_bodies_over_the_limit(self):
        status, error, _ = self.error("/v1/completions", json.dumps({"prompt": "x" * (1 << 20)}))
        self.assertEqual(status, 413)
        self.assertIn("1048576", error["message"])
        # A client that sends all of a large body before it listens still gets to read why.
        self.assertIn(b"413", self.talk(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 33554432\r\n\r\n" + b" " * (1 << 25)))
        self.assertIn(b" 431 ", self.talk(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 100_000 + b"\r\n\r\n"))

    def test_chunked_continued_kept_and_pipelined(self):
        answer = self.talk(raw_request("/v1/completions", TEXT, chunked=True), b'"usage"')
        self.assertIn(b" 200 ", answer)
        data = json.dumps(TEXT).encode()
        with connect(self.served.port) as peer:
            peer.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(data))
            self.assertTrue(peer.recv(100).startswith(b"HTTP/1.1 100 "))
            peer.sendall(data)
            self.assertIn(b" 200 ", peer.recv(65536))
        # Refused before the body is sent.
        self.assertIn(b" 413 ", self.talk(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9999999\r\n\r\n", b"413"))
        three = raw_request("/tokenize", {"content": "a"}) + raw_request("/v1/completions", TEXT) + b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        answers = self.talk(three)
        self.assertEqual(answers.count(b"HTTP/1.1 200 OK"), 3)
        self.assertLess(answers.index(b"tokens"), answers.index(b"text_completion"))
        self.assertLess(answers.index(b"text_completion"), answers.index(b'"status":"ok"'))
        kept = http.client.HTTPConnection("127.0.0.1", self.served.port, timeout=20)
        for _ in range(50):
            kept.request("GET", "/health")
            self.assertEqual(kept.getresponse().read(), b'{"status":"ok"}')
        kept.close()

    def test_what_is_not_json(self):
        for body, field in ((b'{"prompt": "\xff\xfe"}', "prompt"), (b'{"prompt": "a", "temperature": NaN}', "temperature"),
                            (b'{"prompt": "a", "temperature": 1e999}', "temperature"), (b'{"prompt": "a", "seed": -Infinity}', "seed"),
                            (b'{"prompt": "a", "stop": ["x", \'y\']}', "stop[1]"), (b'{"prompt": "a\n"}', "prompt"),
                            (b'{"prompt": "\\ud800"}', "prompt"), (b'{"logit_bias": {"5": 01}}', "logit_bias.5"),
                            (b'{"prompt": ' + b"[" * 100_000, None), (b'{"a":' * 100_000, None)):
            status, error, _ = self.error("/v1/completions", body)
            self.assertEqual((status, error["code"]), (400, "invalid_json"), body[:40])
            if field is None:
                self.assertIn("nested", error["message"])
            else:
                self.assertEqual(error["param"], field)
                self.assertTrue(error["message"].startswith(field))
            self.assertLess(len(error["message"]), 800)
        for body in (b"", b"{", b"[]", b"null", b'"x"', b"\x00", b"{}{}", b"{'a': 1}", b'{"prompt": "a",}'):
            status, error, _ = self.error("/v1/completions", body)
            self.assertEqual(status, 400, body)
        # As Python's json does: the last of two fields of a name counts.
        self.assertEqual(self.served.request("POST", "/v1/completions", b'{"prompt": 5.5, "prompt": "a", "max_tokens": 1}')[0], 200)

    def test_each_field_of_each_wrong_type_and_size(self):
        number = ["x", [], {}, True, 1e300, -1e300, -12345678901234567890, [1]]
        integer = [*number, 1.5, 1 << 70, -(1 << 70)]
        flag = ["true", 1, 0, [], {}]
        text = [5, 1.5, True, [], {}]
        texts = [5, True, {}, [5], ["a", None], [["a"]]]
        common = {"temperature": number, "top_p": number, "min_p": number, "frequency_penalty": number, "presence_penalty": number,
                  "repetition_penalty": number, "top_k": integer, "seed": integer, "n": integer, "max_tokens": integer, "stream": flag,
                  "stop": texts, "logit_bias": [5, "x", [], True, {"x": 1}, {"1": "x"}, {"1": 1e9}, {"-1": 1}, {"1": None}, {"1 ": 1}],
                  "stream_options": [5, "x", [], True], "ignore_eos": flag, "model": text}
        cases = [("/v1/chat/completions", CHAT, {**common, "max_completion_tokens": integer, "logprobs": flag, "top_logprobs": integer,
                                                 "messages": [5, "x", True, {}, [], [5], [[]], [{}], [None]]}),
                 ("/v1/completions", TEXT, {**common, "echo": flag, "logprobs": ["x", [], {}, 1.5, -1, 1 << 70],
                                            "prompt": [5, True, {}, [], [True], [1.5], [None], [[]], ["a", 5], [1 << 70], [-1]]}),
                 ("/v1/embeddings", EMBED, {"input": [5, True, {}, [], [{}], [[]], ["a", None]], "encoding_format": text + ["hex"],
                                            "dimensions": integer, "model": text}),
                 ("/tokenize", {"content": "a"}, {"content": text, "add_special": flag, "parse_special": flag, "with_pieces": flag}),
                 ("/detokenize", {"tokens": [1]}, {"tokens": [5, "x", {}, True, ["a"], [1.5], [-1], [1 << 70], [None], [[]]]})]
        for path, base, fields in cases:
            for field, values in fields.items():
                for value in values:
                    with self.subTest(path=path, field=field, value=value):
                        status, error, _ = self.error(path, {**base, field: value})
                        self.assertEqual(status, 400, error)
                        self.assertRegex(error["param"], rf"^{field}(\b|\[|\.)")
                        self.assertIn(field, error["message"])
        self.assertEqual(self.served.request("GET", "/health")[0], 200)

    def test_who_begins_and_vanishes_leaves_nothing(self):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", self.served.port)) as peer:
                peer.sendall(raw_request("/v1/completions", TEXT)[:-3])
        end = time.monotonic() + 60
        while self.served.metric("qiao:http_connections") > 1:
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)


if __name__ == "__main__":
    unittest.main()
