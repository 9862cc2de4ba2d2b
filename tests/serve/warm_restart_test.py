#!/usr/bin/env python3
"""`qiao serve --kv-cache-dir`: a server that is started again still knows its prompts, and only their own key's.

  QIAO_BINARY=build/bin/qiao python3 tests/serve/warm_restart_test.py
"""
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import unittest

from restart_test import wait_until_gone

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("QIAO_BINARY", str(ROOT / "build" / "bin" / "qiao"))
MODEL = str(ROOT / "tests" / "golden" / "chat")
PROMPT = "A long first message, that is worth keeping in the cache. " * 3


class Served:
    def __init__(self, *flags):
        command = [BINARY, "serve", "-m", MODEL, "--port", "0", "-c", "512", "-q", "--page-tokens", "8",
                   "--api-key", "one", "--api-key", "two", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines = [self.process.stderr.readline(), self.process.stderr.readline()]  # the address, the cache
        self.port = int(re.search(r"http://[^:]+:(\d+)", self.lines[0])[1])

    def ask(self, key):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        body = {"model": "chat", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Authorization": f"Bearer {key}"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.lines += self.process.stderr.readlines()
        code = self.process.wait(60)
        self.process.stderr.close()
        return code


class WarmRestartTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def serve(self, *flags):
        return Served("--kv-cache-dir", self.folder.name, *flags)

    def test_a_restart_keeps_prompts_for_their_key(self):
        server = self.serve()
        text, cached = server.ask("one")
        self.assertEqual(cached, 0)
        self.assertEqual(server.stop(), 0)
        self.assertIn("Saved", server.lines[-1])
        server = self.serve()
        self.assertEqual(server.ask("two"), (text, 0))
        again, cached = server.ask("one")
        self.assertEqual(again, text)
        self.assertGreater(cached, 50)
        self.assertEqual(server.stop(), 0)
        self.assertTrue(any("Restored" in line for line in server.lines), server.lines)

    def test_a_signal_saves_at_once(self):
        server = self.serve()
        text, _ = server.ask("one")
        server.process.send_signal(signal.SIGUSR1)
        self.assertIn("Saved", server.process.stderr.readline())
        server.process.kill()
        server.process.wait(60)
        server.process.stderr.close()
        server = self.serve()
        again, cached = server.ask("one")
        self.assertEqual(again, text)
        self.assertGreater(cached, 50)
        self.assertEqual(server.stop(), 0)

    def test_a_successor_is_warm(self):
        server = self.serve()
        text, _ = server.ask("one")
        server.process.send_signal(signal.SIGUSR2)
        for line in iter(server.process.stderr.readline, ""):
            server.lines.append(line)
            if "The new server serves" in line:
                break
        self.assertEqual(server.process.wait(60), 0)
        (successor,) = (int(found[1]) for line in server.lines if (found := re.search(r"a new server \(process (\d+)\)", line)))
        try:
            again, cached = server.ask("one")
            self.assertEqual(again, text)
            self.assertGreater(cached, 50)
        finally:
            os.kill(successor, signal.SIGTERM)
            server.lines += server.process.stderr.readlines()
            server.process.stderr.close()
            wait_until_gone(successor)
        self.assertEqual([line.split()[0] for line in server.lines if "cached prompts" in line],
                         ["Saved", "Restored", "Saved"], server.lines)

    def test_a_damaged_file_is_named_and_left_out(self):
        server = self.serve()
        text, _ = server.ask("one")
        self.assertEqual(server.stop(), 0)
        (file,) = pathlib.Path(self.folder.name).iterdir()
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
        server = self.serve()
        self.assertEqual(server.ask("one"), (text, 0))
        self.assertEqual(server.stop(), 0)
        named = [line for line in server.lines if "ignored" in line]
        self.assertEqual(len(named), 1, server.lines)
        self.assertIn(file.name, named[0])

    def test_nothing_is_kept_without_a_prefix_cache(self):
        done = subprocess.run([BINARY, "serve", "-m", MODEL, "--kv-cache-dir", self.folder.name, "--no-prefix-cache"],
                              capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("--no-prefix-cache", done.stderr)


if __name__ == "__main__":
    unittest.main()
