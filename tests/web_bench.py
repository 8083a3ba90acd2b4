"""What the tests of the service share: the application behind its guard, and a real service as a process."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from jobs_bench import scheduler_of, wait_until
from tunewright.jobs.store import Store
from tunewright.web.access import Access, hosts_of, read_token
from tunewright.web.api import guarded, make_app
from tunewright.web.guard import Guard
from tunewright.web.runs import Runs
from tunewright.web.status import StatusBoard
from tunewright.web.streams import Streams

PORT = 7860
URL = f"http://127.0.0.1:{PORT}"


@dataclass
class Site:
    """The application of a store, and who may ask it."""

    store: Store
    access: Access
    board: StatusBoard
    app: Guard

    @property
    def token(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.access.token}"}

    def ask(self, method: str, path: str, token: bool = True, **options: Any) -> httpx.Response:
        """One request, with the token unless it is told otherwise."""
        headers = {**(self.token if token else {}), **options.pop("headers", {})}
        return asyncio.run(self._ask(method, path, headers, options))

    async def _ask(self, method: str, path: str, headers: dict[str, str], options: dict[str, Any]) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            return await client.request(method, path, headers=headers, **options)


def site_of(root: Path) -> Site:
    store = Store(root)
    access = Access(read_token(store.private / "token"), hosts_of(PORT, []))
    board = StatusBoard(scheduler_of(store), None)
    runs = Runs(store.root)
    board.update()
    return Site(store, access, board, guarded(make_app(store, access, board, Streams(store, runs), runs), access))


SERVICE = """
import sys
from pathlib import Path
from jobs_bench import FAKE_RUN
from tunewright.web.service import Options, serve
store, port = sys.argv[1:]
serve(Options(Path(store), port=int(port), command=FAKE_RUN, slots=("cpu",)), lambda url, _: print(url, flush=True))
"""


def start_service(store: Path, port: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SERVICE, str(store), str(port)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)


@contextmanager
def service(store: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A real service of fake runs, and a client that has its token."""
    with start_service(store, port) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        token = (store / ".service/token").read_text()
        headers = {"authorization": f"Bearer {token}"}
        try:
            with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
                yield process, client
        finally:
            process.kill()


def events_of(client: httpx.Client, path: str, count: int, after: int = 0) -> list[tuple[int, Any]]:
    """The first `count` events of a stream after an id: their ids and what they say."""
    found: list[tuple[int, Any]] = []
    number = 0
    with client.stream("GET", path, headers={"Last-Event-ID": str(after)}) as response:
        for line in response.iter_lines():
            if line.startswith("id: "):
                number = int(line[4:])
            elif line.startswith("data: "):
                found.append((number, json.loads(line[6:])))
            if len(found) == count:
                break
    return found


def wait_for_state(client: httpx.Client, job: int, state: str) -> None:
    wait_until(lambda: client.get(f"/api/v1/jobs/{job}").json()["state"] == state)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
