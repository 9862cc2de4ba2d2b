#!/usr/bin/env python3
"""Peers that misbehave: 10,000 hang-ups in mid-stream, readers that do not read, requests that never end. What they
held is given back, and their neighbours' answers are the same bytes in about the same time.

  QIAO_BINARY=build/bin/qiao python tests/serve/faults_client_test.py
"""
import os
import queue
import re
import socket
import statistics
import struct
import threading
import time
import unittest

from serving import Serving, connect, raw_request

HANG_UPS = int(os.environ.get("QIAO_HANG_UPS", "10000"))
CONTEXT = 8192
NEIGHBOUR = {"prompt": "A bridge is", "max_tokens": 48, "temperature": 0, "ignore_eos": True}
SEEDED = {"prompt": "A river is", "max_tokens": 48, "temperature": 1.2, "seed": 7, "ignore_eos": True}


class Neighbours:
    """Well-behaved clients that ask the same thing again and again while others misbehave."""

    def __init__(self, served, requests):
        self.served, self.over, self.problems, self.seconds = served, threading.Event(), [], []
        self.threads = [threading.Thread(target=self._run, args=(fields, served.complete(**fields))) for fields in requests]

    def _run(self, fields, expected):
        while not self.over.is_set():
            begun = time.monotonic()
            try:
                text = self.served.complete(**fields)
            except Exception as problem:
                self.problems.append(repr(problem))
                continue
            self.seconds.append(time.monotonic() - begun)
            if text != expected:
                self.problems.append(f"{text!r}, expected {expected!r}")

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join(60)


def hang_up(port, kind):
    """Begins a stream and goes away: before, at or after its first token, with FIN or RST, plain or pipelining."""
    body = {"prompt": f"Tell me about {kind}", "max_tokens": CONTEXT - 100, "temperature": 1, "ignore_eos": True,
            "stream": kind % 4 != 3, "n": 1 + kind % 2}
    with connect(port) as peer:
        peer.sendall(raw_request("/v1/completions", body, chunked=kind % 8 == 1))
        if kind % 16 == 5:  # the next request is on its way already
            peer.sendall(raw_request("/v1/completions", body))
        if body["stream"]:
            wanted, got = (0, 1, 3)[kind % 3], b""
            while got.count(b"data: ") < wanted:
                piece = peer.recv(4096)
                if not piece:
                    raise AssertionError(f"the server closed first: {got[-300:]}")
                got += piece
        if kind % 2:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST


class FaultsTest(unittest.TestCase):
    def setUp(self):
        # Answers may be so long that none of those that are left is near its end when the hang-up is noticed.
        self.served = Serving("-np", "16", "--max-queued", "65536", context=CONTEXT)

    def tearDown(self):
        self.assertEqual(self.served.stop(), 0)

    def settled(self):
        """Waits until nothing runs; then what must be zero is."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            left = {name: self.served.metric(name) for name in
                    ("vllm:num_requests_running", "vllm:num_requests_waiting", "qiao:kv_pages_used")}
            left["qiao:http_connections"] = self.served.metric("qiao:http_connections") - 1  # the asking one
            if not any(left.values()):
                return
            time.sleep(0.05)
        self.fail(f"not given back: {left}")

    def test_hang_ups_in_mid_stream(self):
        served = self.served
        served.complete(**NEIGHBOUR)
        work = queue.SimpleQueue()
        for kind in range(HANG_UPS):
            work.put(kind)
        problems, done = [], []

        def run():
            while True:
                try:
                    hang_up(served.port, work.get_nowait())
                    done.append(1)
                except queue.Empty:
                    return
                except Exception as problem:
                    problems.append(repr(problem))

        begun = time.monotonic()
        with Neighbours(served, [NEIGHBOUR, SEEDED]) as neighbours:
            threads = [threading.Thread(target=run) for _ in range(12)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        print(f"{len(done)} hang-ups in {time.monotonic() - begun:.1f} s, {len(neighbours.seconds)} answers to neighbours",
              flush=True)
        self.assertEqual(problems, [])
        self.assertEqual(len(done), HANG_UPS)
        self.assertEqual(neighbours.problems, [])
        self.assertGreater(len(neighbours.seconds), 10)
        self.settled()
        aborted = re.search(r'request_success_total\{.*finished_reason="abort"\} (\d+)', served.request("GET", "/metrics")[2].decode())
        self.assertGreater(int(aborted[1]), HANG_UPS / 2)
        # What was computed is a small share of what was asked for, since the work stopped.
        self.assertLess(served.metric("vllm:generation_tokens_total"), HANG_UPS * CONTEXT / 10)

    def test_readers_that_do_not_read_hold_nobody_up(self):
        served = self.served
        body = {"prompt": "The sky", "max_tokens": 400, "temperature": 0, "ignore_eos": True, "stream": True, "logprobs": 20}
        alone = statistics.median(self.timed() for _ in range(5))
        peers = [connect(served.port, receive_buffer=4096) for _ in range(64)]
        try:
            for peer in peers:
                peer.sendall(raw_request("/v1/completions", body))
            # Their answers are computed and wait in memory; nobody reads them.
            end = time.monotonic() + 300
            while served.metric("vllm:num_requests_running") + served.metric("vllm:num_requests_waiting") > 0:
                self.assertLess(time.monotonic(), end, "the answers are not computed")
                time.sleep(0.05)
            with Neighbours(served, [NEIGHBOUR, SEEDED]) as neighbours:
                time.sleep(1)
            self.assertEqual(neighbours.problems, [])
            self.assertLess(statistics.median(neighbours.seconds), 30 * alone + 2)
            while served.metric("qiao:kv_pages_used") > 0:  # of the last answer the pages are given back behind it
                self.assertLess(time.monotonic(), end, "pages are kept")
                time.sleep(0.05)
            # One that reads after all finds its answer whole.
            text = b""
            while not text.endswith(b"0\r\n\r\n"):
                piece = peers[0].recv(65536)
                self.assertTrue(piece, text[-200:])
                text += piece
            self.assertIn(b"data: [DONE]", text)
        finally:
            for peer in peers:
                peer.close()
        self.settled()

    def timed(self):
        begun = time.monotonic()
        self.served.complete(**NEIGHBOUR)
        return time.monotonic() - begun

    def test_half_open_peers_hold_nobody_up(self):
        served = self.served
        whole = raw_request("/v1/completions", {**NEIGHBOUR, "stream": True})
        alone = statistics.median(self.timed() for _ in range(5))
        peers = [connect(served.port) for _ in range(600)]
        try:
            for i, peer in enumerate(peers):  # nothing, half a request line, half the headers, half the body
                peer.sendall(whole[:(0, 7, 50, len(whole) - 5)[i % 4]])
            with Neighbours(served, [NEIGHBOUR, SEEDED]) as neighbours:
                time.sleep(1)
            self.assertEqual(neighbours.problems, [])
            self.assertLess(statistics.median(neighbours.seconds), 30 * alone + 2)
            self.assertGreaterEqual(served.metric("qiao:http_connections"), 600)
            peers[3].sendall(whole[-5:])  # who goes on in time is served
            self.assertIn(b"200 OK", peers[3].recv(4096))
        finally:
            for peer in peers:
                peer.close()
        self.settled()


if __name__ == "__main__":
    unittest.main(verbosity=2)
