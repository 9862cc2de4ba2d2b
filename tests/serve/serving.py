"""A `qiao serve` process and plain HTTP to it, for the tests beside this file; needs nothing but Python."""
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("QIAO_BINARY", str(ROOT / "build" / "bin" / "qiao"))
MODEL = str(ROOT / "tests" / "golden" / "chat")


class Serving:
    """A server on a free port; its stderr is kept."""

    def __init__(self, *flags, model=MODEL, context=512, command=None, **more):
        command = command or [BINARY, "serve", "-m", model, "--port", "0", "-c", str(context), "-q"]
        self.process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, **more)
        self.lines, self.news = [], threading.Condition()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        try:
            self.port = int(self.wait_for(r"http://\S+:(\d+) ")[1])
        except AssertionError:
            self.stop()
            raise

    def _read(self):
        for line in self.process.stderr:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()
        with self.news:
            self.lines.append(None)
            self.news.notify_all()

    def wait_for(self, pattern, occurrence=1, seconds=60):
        """The match of the pattern in the occurrence-th line of stderr that has it."""
        def found():
            matches = [m for m in (re.search(pattern, line) for line in self.lines if line is not None) if m]
            return matches[occurrence - 1] if len(matches) >= occurrence else None
        with self.news:
            self.news.wait_for(lambda: found() or None in self.lines, seconds)
            match = found()
        if match is None:
            raise AssertionError(f"no {pattern!r} on stderr: {self.lines}")
        return match

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body if isinstance(body, (bytes, str, type(None))) else json.dumps(body),
                               headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def complete(self, **fields):
        status, _, body = self.request("POST", "/v1/completions", fields)
        if status != 200:
            raise AssertionError(f"{status}: {body[:300]}")
        return json.loads(body)["choices"][0]["text"]

    def metric(self, name):
        text = self.request("GET", "/metrics")[2].decode()
        return float(re.search(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.M)[1])

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.reader.join(10)  # a successor may hold the pipe open
        if not self.reader.is_alive():
            self.process.stderr.close()
        return code


def raw_request(path, body, *, chunked=False):
    data = json.dumps(body).encode()
    if chunked:
        head, data = "transfer-encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    else:
        head = f"content-length: {len(data)}"
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n".encode() + data


def connect(port, receive_buffer=None, timeout=300):
    peer = socket.socket()
    if receive_buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    peer.settimeout(timeout)
    peer.connect(("127.0.0.1", port))
    return peer
