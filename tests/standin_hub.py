"""A stand-in for the Hugging Face Hub on the loopback: enough of its interface for downloads to be the real ones."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandInHub:
    """Serves folders as repositories: `hub.repos["org/name"] = folder`; all have the same `revisions`.

    `gated` holds names that want the first of the `tokens`; others than these are unknown. A hub that is `busy` refuses
    everything. The file `breaks`, of any repository, is cut off after half its bytes as long
    as `breaks_left` is not used up. `asked` lists the paths of all requests, in order.
    """

    def __init__(self):
        self.repos: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.tokens = ["hf_accepted", "hf_other"]
        self.busy = False
        self.revisions = {"main", "v1", COMMIT}
        self.breaks, self.breaks_left = None, 0
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request, body):
        self.asked.append(f"{request.command} {request.path}")
        parts = [unquote(part) for part in request.path.partition("?")[0].strip("/").split("/")]
        if parts[0] == "datasets":
            name, rest = "/".join(parts[1:3]), parts[3:]
        elif parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
        else:
            name, rest = "/".join(parts[:2]), parts[2:]
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.busy:
            return self.refuse(request, 429, "", "too many requests")
        if sent and sent not in self.tokens:
            return self.refuse(request, 401, "", "Invalid credentials in Authorization header")
        if name not in self.repos:
            return self.refuse(request, 401, "RepoNotFound")
        if name in self.gated and sent != self.tokens[0]:
            return self.refuse(request, 403 if sent else 401, "GatedRepo")
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in self.revisions:
            return self.refuse(request, 404, "RevisionNotFound")
        folder = self.repos[name]
        if parts[0] == "api":
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            names = [str(path.relative_to(folder)) for path in paths]
            if rest[0] == "tree":
                told = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": name}
                    for name, path in zip(names, paths, strict=True)
                ]
            else:
                told = {"id": name, "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": each} for each in names]}
            return self.send(request, json.dumps(told).encode(), {"Content-Type": "application/json"}, body)
        file = folder.joinpath(*rest[2:])
        if not file.is_file():
            return self.refuse(request, 404, "EntryNotFound")
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return self.send(request, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body, file.name)

    def send(self, request, content, headers, body, name=None):
        wanted = request.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        request.send_response(206 if start else 200)
        for key, value in headers.items():
            request.send_header(key, value)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        if body and name == self.breaks and self.breaks_left:
            self.breaks_left -= 1
            request.wfile.write(content[start : (start + len(content)) // 2])
            request.close_connection = True
        elif body:
            request.wfile.write(content[start:])

    def refuse(self, request, status, code, message="refused by the stand-in"):
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
        request.send_header("X-Error-Message", message)
        request.send_header("Content-Length", "0")
        request.end_headers()
