"""A hub on the loopback: the requests that huggingface_hub 2.4 makes to fill a model repository, answered from memory.

Every request is kept. A commit counts only with all of its files there, on top of the commit that it names.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "x" * 34
STORED_APART = (".safetensors", ".gguf")
EMPTY = "0" * 40


@dataclass
class Repository:
    """Its head, what lies there, and the commits that led to it."""

    private: bool = False
    head: str = EMPTY
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class FakeHub:
    """What the hub has, and how it fails.

    Attributes:
        failures: the status that requests with these words in their line get, in the place of an answer.
        changed: files that come to lie there otherwise than they were sent.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    changed: dict[str, bytes] = field(default_factory=dict)

    def sent(self, words: str) -> int:
        return sum(words in line for line in self.requests)

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        line = f"{method} {path}"
        self.requests.append(line)
        if failing := [status for words, status in self.failures.items() if words in line]:
            return failing[0], {"error": f"no, {token} may not: https://upload.example/put?X-Signature=secret"}
        if path.startswith("/upload/"):
            self.objects[path.removeprefix("/upload/")] = body
            return 200, {}
        if token != TOKEN:
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self.wanted(each) for each in json.loads(body)["objects"]]}
        return self.of_repository(path, body)

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.repositories else 200
        if asked["organization"] == "nobody":
            return 404, {"error": "Not found"}
        self.repositories.setdefault(name, Repository(asked.get("visibility") == "private"))
        return status, {"url": f"{self.url}/{name}"}

    def wanted(self, each: dict[str, Any]) -> dict[str, Any]:
        """Where to put an object, unless it is there."""
        action = {"actions": {"upload": {"href": f"{self.url}/upload/{each['oid']}"}}}
        return {**each, **({} if each["oid"] in self.objects else action)}

    def of_repository(self, path: str, body: bytes) -> tuple[int, Any]:
        owner, name, *rest = path.removeprefix("/api/models/").split("?")[0].split("/")
        repository = self.repositories.get(f"{owner}/{name}")
        if repository is None:
            return 404, {"error": "Repository not found"}
        match rest:
            case [] | ["revision", "main"]:
                facts = {"sha": repository.head, "private": repository.private, "tags": [], "siblings": []}
                return 200, {"_id": "1", "id": f"{owner}/{name}", "downloads": 0, "likes": 0, **facts}
            case ["preupload", "main"]:
                return 200, {"files": [self.mode(repository, each["path"]) for each in json.loads(body)["files"]]}
            case ["commit", "main"]:
                return self.commit(f"{owner}/{name}", repository, [json.loads(line) for line in body.splitlines()])
            case ["tree", revision] if revision == repository.head:
                return 200, [self.listed(path, content) for path, content in repository.files.items()]
        return 404, {"error": "No such page"}

    def mode(self, repository: Repository, path: str) -> dict[str, Any]:
        known = repository.files.get(path)
        oid = None if known is None else self.listed(path, known).get("lfs", {}).get("oid") or blob(known)
        mode = "lfs" if path.endswith(STORED_APART) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        header, *operations = lines
        if header["value"].get("parentCommit") != repository.head:
            return 412, {"error": "A commit has happened since. Please refresh and try again."}
        added = {}
        for operation in operations:
            value = operation["value"]
            apart = operation["key"] == "lfsFile"
            if apart and value["oid"] not in self.objects:
                return 400, {"error": f"{value['path']} was never uploaded"}
            added[value["path"]] = self.objects[value["oid"]] if apart else base64.b64decode(value["content"])
        repository.files |= added | self.changed
        repository.head = hashlib.sha1(repository.head.encode() + repr(sorted(added)).encode()).hexdigest()  # noqa: S324
        repository.commits.append({"summary": header["value"]["summary"], "files": sorted(added)})
        url = f"{self.url}/{name}/commit/{repository.head}"
        return 200, {"commitUrl": url, "commitOid": repository.head}

    def listed(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
        if path.endswith(STORED_APART):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, data = hub.answer(self.command, self.path, token, body)
            content = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status >= 400:
                self.send_header("X-Error-Message", data.get("error", "Conflict"))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = respond

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
