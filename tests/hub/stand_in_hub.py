#!/usr/bin/env python3
"""A stand-in for Hugging Face and ModelScope compatible hubs, on 127.0.0.1: good repositories and hostile ones.

Prints "PORT OTHER_PORT PID" (two origins, one server), serves until it is ended. A repository's name says how it
behaves; see `trees` below. GET /__log gives what was asked so far, one request a line: METHOD PATH RANGE AUTHORIZATION.
"""

import email.utils
import hashlib
import http.server
import json
import os
import threading
import time
import urllib.parse

BIG = bytes(range(256)) * 800  # 204,800 bytes
SMALL = b'{"model_type": "llama"}'
log = []
seen = {}  # how often each path was asked for
ports = []


def entry(path, content, **changes):
    lfs = path.endswith((".gguf", ".safetensors"))
    made = {"type": "file", "path": path, "size": len(content),
            "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    if lfs:
        made["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return {**made, **changes}


MODEL = entry("model-Q4_K_M.gguf", BIG)
trees = {
    "org/gguf": [entry("README.md", SMALL), MODEL, entry("model-Q8_0.gguf", SMALL)],
    "org/directory": [entry("config.json", SMALL), entry("tokenizer.json", SMALL), entry("model.safetensors", BIG),
                      {"type": "directory", "path": "onnx", "size": 0, "oid": "0" * 40}],
    "org/split": [entry(f"x-Q4_K_M-0000{i}-of-00002.gguf", BIG) for i in (1, 2)],
    "org/odd-name": [entry("with space & ü?#%.gguf", BIG)],
    "evil/traversal": [entry("../../../evil.gguf", BIG)],
    "evil/absolute": [entry("/tmp/evil.gguf", BIG)],
    "evil/backslash": [entry("a\\..\\evil.gguf", BIG)],
    "evil/newline": [entry("a\nb.gguf", BIG)],
    "evil/no-size": [{"type": "file", "path": "x.gguf"}],
    "evil/negative-size": [entry("x.gguf", BIG, size=-1)],
    "evil/float-size": [entry("x.gguf", BIG, size=1e300)],
    "evil/huge-size": [entry("x.gguf", BIG, size=1 << 62)],
    "evil/sum-overflow": [entry(f"x-0000{i}-of-00002.gguf", BIG, size=(1 << 63) - 1) for i in (1, 2)],
    "evil/wrong-sha": [entry("x.gguf", BIG, lfs={"oid": "0" * 64, "size": len(BIG)})],
    "evil/wrong-blob": [entry("config.json", SMALL, oid="0" * 40), entry("model.safetensors", BIG)],
    "evil/malformed-sha": [entry("x.gguf", BIG, lfs={"oid": "../../x", "size": len(BIG)})],
    "evil/object": {"files": []},
    "evil/numbers": [1, None, "x", []],
    "evil/nothing": [],
}
# These have the good file; their way of sending it is in send_file.
for name in ("resume", "changed", "flaky", "retry-after", "retry-at", "short", "weak-etag", "no-etag", "ignores-range"):
    trees["slow/" + name] = [MODEL]
for name in ("endless", "too-short", "wrong-range", "redirect-loop", "redirect-file", "redirect-nowhere", "always-503", "retry-tomorrow", "retry-forever",
             "forbidden", "many-headers", "redirect-other"):
    trees["evil/" + name] = [MODEL]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, value, **headers):
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def do_GET(self):
        address = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(address.path)
        query = urllib.parse.parse_qs(address.query)
        if path == "/__log":
            return self.answer(200, "".join(line + "\n" for line in log).encode())
        log.append(f"{self.server.server_port} {self.path} {self.headers.get('Range', '-')} "
                   f"{self.headers.get('Authorization', '-')}")
        seen[path] = seen.get(path, 0) + 1
        parts = path.strip("/").split("/")
        if path.startswith("/api/models/") and parts[4:6] == ["tree", "main"]:
            return self.list_hugging_face("/".join(parts[2:4]), query)
        if path.startswith("/api/v1/models/") and parts[5:7] == ["repo", "files"]:
            return self.list_model_scope("/".join(parts[3:5]))
        if path.startswith("/api/v1/models/") and parts[5:] == ["repo"]:
            return self.send_file("/".join(parts[3:5]), query["FilePath"][0], path)
        if parts[2:4] == ["resolve", "main"]:
            return self.send_file("/".join(parts[:2]), "/".join(parts[4:]), path)
        if path == "/elsewhere":
            return self.answer(200, BIG, ETag='"v1"')
        return self.answer(404, b"Not Found")

    def list_hugging_face(self, repository, query):
        if repository == "evil/html":
            return self.answer(200, b"<!doctype html><title>Log in</title>", Content_Type="text/html")
        if repository == "evil/broken-json":
            return self.answer(200, b'[{"type": "file", "path": ')
        if repository == "evil/deep-json":
            return self.answer(200, b"[" * 100000)
        if repository == "evil/endless-list":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            try:
                for _ in range(100):
                    self.wfile.write(b"[" + b" " * (1 << 20))
            except OSError:
                return None
            return None
        if repository == "evil/endless-pages":
            return self.answer_json([entry("x.bin", SMALL)], Link=f'<{self.path}>; rel="next"')
        if repository == "evil/foreign-page":
            return self.answer_json([], Link=f'<http://127.0.0.1:{ports[1]}/api/models/x/y/tree/main>; rel="next"')
        if repository == "org/paged":
            if "page" in query:
                return self.answer_json([MODEL])
            return self.answer_json([entry("README.md", SMALL)],
                                    Link=f'</api/models/org/paged/tree/main?page=2>; rel="next", <x>; rel="last"')
        if repository == "org/gated" and self.headers.get("Authorization") != "Bearer secret":
            return self.answer(401, b'{"error": "Repository is gated"}')
        if repository == "org/gated":
            return self.answer_json([MODEL])
        if repository not in trees:
            return self.answer(404, b'{"error": "Repository not found"}')
        if repository == "slow/retry-after" and seen["/api/models/slow/retry-after/tree/main"] == 1:
            return self.answer(429, b"not so fast", Retry_After="1")
        return self.answer_json(trees[repository])

    def list_model_scope(self, repository):
        if repository not in trees:
            return self.answer_json({"Code": 10010205001, "Message": "no such repository", "Success": False})
        files = [{"Name": file["path"].rsplit("/", 1)[-1], "Path": file["path"], "Size": file["size"],
                  "Type": "blob" if file["type"] == "file" else "tree",
                  "Sha256": file.get("lfs", {}).get("oid", "")} for file in trees[repository]]
        return self.answer_json({"Code": 200, "Success": True, "Message": "success", "Data": {"Files": files}})

    def send_file(self, repository, name, path):
        kind = repository.split("/")[1]
        content = SMALL if name.endswith(".json") or name == "model-Q8_0.gguf" else BIG
        etag = {"weak-etag": 'W/"v1"', "no-etag": None}.get(kind, '"v1"')
        first = seen[path] == 1
        if kind == "changed" and not first:
            etag = '"v2"'
        if kind == "flaky" and seen[path] <= 2:
            return self.answer(503, b"busy")
        if kind == "retry-after" and first:
            return self.answer(503, b"busy", Retry_After="1")
        if kind == "retry-at" and first:
            return self.answer(503, b"busy", Retry_After=email.utils.formatdate(time.time() + 2, usegmt=True))
        if kind == "retry-tomorrow":
            return self.answer(429, b"not so fast", Retry_After="86400")
        if kind == "retry-forever":
            return self.answer(429, b"not so fast", Retry_After="9" * 30)
        if kind == "always-503":
            return self.answer(503, b"busy")
        if kind == "forbidden":
            return self.answer(403, b"no")
        if kind == "redirect-loop":
            return self.answer(302, b"", Location=self.path)
        if kind == "redirect-file":
            return self.answer(302, b"", Location="file:///etc/passwd")
        if kind == "redirect-nowhere":
            return self.answer(302, b"")
        if kind in ("redirect-other", "gated"):
            return self.answer(302, b"", Location=f"http://127.0.0.1:{ports[1]}/elsewhere")
        if kind == "many-headers":
            return self.answer(200, b"", **{f"X-{i}": "y" * 1000 for i in range(90)})
        begin = 0
        wanted = self.headers.get("Range")
        if wanted and kind != "ignores-range" and self.headers.get("If-Range") == etag:
            begin = int(wanted[len("bytes="):].rstrip("-"))
        self.send_response(206 if begin else 200)
        if begin:
            shift = 1 if kind == "wrong-range" else 0
            self.send_header("Content-Range", f"bytes {begin + shift}-{len(content) - 1}/{len(content)}")
        if etag:
            self.send_header("ETag", etag)
        if kind == "endless":
            self.end_headers()
            self.close_connection = True
            try:
                for _ in range(100):
                    self.wfile.write(BIG)
            except OSError:
                return None
            return None
        if kind == "too-short":
            self.send_header("Content-Length", "10")
            self.end_headers()
            return self.wfile.write(content[:10])
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        cut_off = first and kind in ("resume", "changed", "short", "weak-etag", "no-etag", "ignores-range", "wrong-range")
        if cut_off:
            self.wfile.write(content[:100000])
            self.wfile.flush()
            self.close_connection = True
            return None
        return self.wfile.write(content[begin:])


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """A client that hangs up on a hostile answer is what the tests want."""


def main():
    servers = [Server(("127.0.0.1", 0), Handler) for _ in range(2)]
    ports.extend(server.server_port for server in servers)
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    print(*ports, os.getpid(), flush=True)
    parent = os.getppid()
    while os.getppid() == parent:  # ends with the test, also where that is killed
        time.sleep(0.2)


if __name__ == "__main__":
    main()
