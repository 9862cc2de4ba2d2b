"""A restart under load loses no request: the new process inherits the listening socket, the old one drains."""
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import tempfile
import threading
import time
import unittest

from serving import BINARY, MODEL, Serving

FIELDS = {"prompt": "The sky", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


def ask(connection, stream):
    """One completion's text over a connection that may be kept; whether it may be used again."""
    connection.request("POST", "/v1/completions", json.dumps({**FIELDS, "stream": stream}))
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise AssertionError(f"{response.status}: {body[:200]}")
    if not stream:
        return json.loads(body)["choices"][0]["text"], not response.will_close
    events = [line[6:] for line in body.decode().split("\n\n") if line]
    if events[-1] != "[DONE]":
        raise AssertionError(f"the stream ends with {events[-1][:200]}")
    text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
    return text, not response.will_close


class Hammer:
    """Threads that ask without a pause, over kept and over new connections; what failed, and what was answered."""

    def __init__(self, port, threads=8):
        self.port, self.over = port, threading.Event()
        self.failures, self.answers = [], []
        self.threads = [threading.Thread(target=self._run, args=(i % 2 == 0, i % 4 < 2), daemon=True) for i in range(threads)]
        for thread in self.threads:
            thread.start()

    def _run(self, keep, stream):
        connection = None
        while not self.over.is_set():
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
                text, usable = ask(connection, stream)
                self.answers.append(text)
                if not keep or not usable:
                    connection.close()
                    connection = None
            except Exception as problem:  # whatever it is, a request was lost
                self.failures.append(f"keep={keep} stream={stream}: {problem!r}")
                connection = None
        if connection is not None:
            connection.close()

    def wait_for_more(self, count, seconds=60):
        """Until so many more have been answered; failures are for the end to tell."""
        wanted, end = len(self.answers) + count, time.monotonic() + seconds
        while len(self.answers) < wanted and not self.failures:
            if time.monotonic() > end:
                raise AssertionError(f"{len(self.answers)} answers, {wanted} were expected")
            time.sleep(0.02)

    def finish(self):
        self.over.set()
        for thread in self.threads:
            thread.join(60)


def children_of(pid):
    found = []
    for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in children.read_text().split()]
        except OSError:  # a thread that has ended since
            pass
    return found


def wait_until_gone(pid, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} is still there")


class RestartTest(unittest.TestCase):
    def test_sigusr2_under_load_loses_no_request(self):
        served = Serving("-np", "4")
        pids = [served.process.pid]
        hammer = None
        try:
            expected = served.complete(**FIELDS)
            hammer = Hammer(served.port)
            for generation in range(1, 4):
                hammer.wait_for_more(20)
                os.kill(pids[-1], signal.SIGUSR2)
                pids.append(int(served.wait_for(r"Starting a new server \(process (\d+)\)", generation)[1]))
                served.wait_for("The new server serves", generation)
                wait_until_gone(pids[generation - 1])
            hammer.wait_for_more(20)
            self.assertEqual(served.process.wait(60), 0)
            hammer.finish()
            self.assertEqual(hammer.failures, [])
            self.assertEqual(set(hammer.answers), {expected})
            self.assertEqual(served.complete(**FIELDS), expected)
            self.assertEqual(len(set(pids)), 4)
        finally:
            if hammer:
                hammer.finish()
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    pass
            wait_until_gone(pids[-1])
            served.stop()

    def test_a_successor_that_cannot_start_changes_nothing(self):
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder, "model")
            shutil.copytree(MODEL, model)
            served = Serving(model=str(model))
            try:
                expected = served.complete(**FIELDS)
                shutil.rmtree(model)
                for occurrence in (1, 2):
                    served.process.send_signal(signal.SIGUSR2)
                    served.wait_for("did not start; this one goes on", occurrence)
                    self.assertEqual(served.complete(**FIELDS), expected)
                self.assertEqual(children_of(served.process.pid), [])
            finally:
                self.assertEqual(served.stop(), 0)

    def test_a_socket_unit_keeps_the_socket_between_two_servers(self):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(1024)
            port = listening.getsockname()[1]

            def start():
                # As systemd does: the socket as descriptor 3, its variables for this process alone.
                script = f'exec 3<&{listening.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" serve -m "$1" -c 512 -q'
                return Serving(command=["bash", "-c", script, BINARY, MODEL], pass_fds=[listening.fileno()])

            served = start()
            self.assertEqual(served.port, port)
            hammer = Hammer(port)
            try:
                for _ in range(2):
                    hammer.wait_for_more(20)
                    self.assertEqual(served.stop(), 0)
                    served = start()
                hammer.wait_for_more(20)
                hammer.finish()
                self.assertEqual(hammer.failures, [])
                self.assertEqual(len(set(hammer.answers)), 1)
            finally:
                hammer.finish()
                served.stop()

    def test_what_is_passed_must_be_one_listening_socket(self):
        for variables, said in (("LISTEN_FDS=2", "LISTEN_FDS is '2', expected one socket"),
                                ("LISTEN_FDS=1", "descriptor 3: is no listening TCP socket")):
            script = f'exec 3</dev/null; {variables} LISTEN_PID=$$ exec "$0" serve -m "$1" -q'
            with self.assertRaises(AssertionError) as caught:
                Serving(command=["bash", "-c", script, BINARY, MODEL])
            self.assertIn(said, str(caught.exception))

    def test_variables_for_another_process_are_ignored(self):
        served = Serving(env={**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": "1"})
        self.assertEqual(served.stop(), 0)


if __name__ == "__main__":
    unittest.main()
