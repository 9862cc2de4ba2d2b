"""What the load benches share: a server as a process, and completions over plain sockets, streamed and timed."""
import asyncio
import http.client
import json
import os
import random
import signal
import subprocess
import tempfile
import time

WORDS = ("river bridge stone market teacher window garden engine letter island summer winter morning captain "
         "library mountain village harbour painter journey kitchen thunder silver forest station machine story "
         "people answer question number colour reason music doctor farmer question evening history language").split()


def words(count, seed):
    """`count` words that another seed draws differently: text that no earlier request has been asked."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(count))


class ServerProcess:
    """Started, waited for until /health says 200, and ended with the block."""

    def __init__(self, command, port):
        self.command, self.port = command, port

    def __enter__(self):
        self.said = tempfile.TemporaryFile()
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=self.said)
        end = time.monotonic() + 120
        while True:
            if self.process.poll() is not None:
                self.said.seek(0)
                last = self.said.read()[-2000:].decode(errors="replace").strip()
                raise RuntimeError(f"{self.command[0]} ended with {self.process.returncode}: {last}")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return self
            except OSError:
                pass
            if time.monotonic() > end:
                raise RuntimeError(f"{self.command[0]} did not come up in 120 s")
            time.sleep(0.02)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cpu_seconds(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def metric(self, name):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + "{", name + " ")))

    def resident_mib(self):
        fields = open(f"/proc/{self.process.pid}/statm").read().split()
        return int(fields[1]) * os.sysconf("SC_PAGESIZE") / 2**20


class Outcome:
    """One request: its status, when it was sent, and when each piece of its answer came (time.monotonic())."""

    def __init__(self):
        self.status, self.headers, self.sent, self.times, self.done, self.usage = 0, {}, 0.0, [], 0.0, None


async def complete(port, fields):
    """Asks /v1/completions for a stream, over a connection of its own. OSError where the connection fails."""
    body = json.dumps({"stream": True, "stream_options": {"include_usage": True}, **fields}).encode()
    outcome = Outcome()
    outcome.sent = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                     b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        outcome.status = int(head.split(b" ", 2)[1])
        outcome.headers = dict(line.decode().lower().split(": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        rest = b""
        while piece := await reader.read(1 << 16):
            now = time.monotonic()
            rest += piece
            events = rest.split(b"\n\n")
            rest = events.pop()
            for event in events:
                at = event.find(b"data: {")
                if at < 0:
                    continue
                if b'"usage":{' in event:
                    found = json.loads(event[at + 6:])
                    outcome.usage = found.get("usage") or outcome.usage
                    if not found.get("choices"):
                        continue
                outcome.times.append(now)
    finally:
        writer.close()
    outcome.done = time.monotonic()
    return outcome


def quantile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")
