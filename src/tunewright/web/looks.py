"""Looks: short jobs for a page, such as a check of rows, a plan, or a file made ready for its review.

One at a time, each a process of its own.

    STORE/.service/looks/ID/    look.json, recipe.yaml, result.json (its stdout), log.txt (its stderr), what it wrote

A look is no run: nothing is lost with it, none outlives the service, and the oldest are removed. One that was under way
when the service ended says so.
"""

import json
import os
import queue
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tunewright.artifacts import read_json, write_json, write_text
from tunewright.errors import ArtifactError, JobError, JobNotFoundError
from tunewright.jobs.job import message_of
from tunewright.jobs.processes import die_with

ID = r"^[0-9]{13}-[0-9a-f]{8}$"
MOST_KEPT = 100
MOST_WAITING = 20
SECONDS_AT_MOST = 3600.0
DONE_CODES = (0, 3)
Kind = Literal["check", "plan", "doctor", "review"]


@dataclass(frozen=True)
class Look:
    """A look and how far it is.

    Attributes:
        title: what it looks at, in the words of who asked.
        recipe: keys of the recipe that it was asked for, if any.
        state: `waiting`, `running`, `done` or `failed`.
        problem: why it failed, in a sentence.
    """

    id: str
    kind: Kind
    title: str
    recipe: dict[str, Any]
    created: float
    state: str = "waiting"
    problem: str = ""

    @property
    def is_over(self) -> bool:
        return self.state in {"done", "failed"}


class Looks:
    """The looks of one store; a thread of its own does them one after the other."""

    def __init__(self, private: Path) -> None:
        self.root = private / "looks"
        self._lock = threading.Lock()
        self._due: queue.Queue[str] = queue.Queue()
        self._thread: threading.Thread | None = None
        for look in self.all():
            if not look.is_over:
                self._write(replace(look, state="failed", problem="The service was ended meanwhile. Ask again."))

    def begin(self, kind: Kind, title: str, recipe: dict[str, Any] | None = None, recipe_yaml: str = "") -> Look:
        """Queue a look.

        Raises:
            JobError: too many wait already.
        """
        if self._due.qsize() >= MOST_WAITING:
            raise JobError("looks", f"{MOST_WAITING} wait already", mend="Wait for one of them.")
        number = f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(4)}"
        look = Look(number, kind, title, recipe or {}, time.time())
        directory = self.directory(number)
        directory.mkdir(parents=True, mode=0o700)
        write_text(directory / "recipe.yaml", recipe_yaml)
        self._write(look)
        self._remove_oldest()
        self._due.put(number)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._go_on, name="looks", daemon=True)
                self._thread.start()
        return look

    def directory(self, number: str) -> Path:
        if not re.fullmatch(ID, number):
            raise JobNotFoundError(f"look {number[:30]}", "there is no such look")
        return self.root / number

    def look(self, number: str) -> Look:
        try:
            return Look(**read_json(self.directory(number) / "look.json"))
        except (ArtifactError, TypeError):
            raise JobNotFoundError(f"look {number}", "there is no such look, or it is too old to be kept") from None

    def all(self, kind: Kind | None = None) -> list[Look]:
        """Those that are kept, the newest first."""
        names = sorted((path.name for path in self.root.glob("*-*")), reverse=True)
        found = []
        for name in names:
            with suppress(JobNotFoundError):
                found.append(self.look(name))
        return [look for look in found if kind in {None, look.kind}]

    def file(self, number: str, name: str) -> str:
        """A file that a look wrote; empty if it wrote none."""
        with suppress(OSError):
            return (self.directory(number) / name).read_text(encoding="utf-8", errors="replace")
        return ""

    def result(self, number: str) -> dict[str, Any]:
        try:
            found = json.loads(self.file(number, "result.json"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, look: Look) -> None:
        write_json(self.directory(look.id) / "look.json", asdict(look))

    def _remove_oldest(self) -> None:
        for look in self.all()[MOST_KEPT:]:
            if look.is_over:
                shutil.rmtree(self.directory(look.id), ignore_errors=True)

    def _go_on(self) -> None:
        while True:
            number = self._due.get()
            with suppress(JobNotFoundError, OSError):
                look = replace(self.look(number), state="running")
                self._write(look)
                self._write(self._done(look))

    def _done(self, look: Look) -> Look:
        """The look after it was done, one way or the other."""
        code = run_to_end(COMMANDS[look.kind](self.directory(look.id)), self.directory(look.id))
        result = self.result(look.id)
        if code in DONE_CODES and result and "error" not in result:
            return replace(look, state="done")
        return replace(look, state="failed", problem=problem_of(code, result, self.file(look.id, "log.txt")))


def problem_of(code: int, result: dict[str, Any], log: str) -> str:
    if "error" in result:
        return message_of(result)
    if code == -signal.SIGKILL:
        return "It was killed: it took too long, or memory ran out."
    return (log.strip().splitlines() or [f"It ended with exit code {code}."])[-1]


def run_to_end(command: list[str], directory: Path) -> int:
    """Its exit code; what takes too long is killed. It ends with this process at the latest."""
    parent = os.getpid()
    with (directory / "result.json").open("wb") as result, (directory / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=result,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: die_with(parent),
        )
        try:
            return process.wait(SECONDS_AT_MOST)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


PYTHON = (sys.executable, "-m")
COMMANDS: dict[Kind, Callable[[Path], list[str]]] = {
    "check": lambda at: [*PYTHON, "tunewright.web.check_process", str(at / "recipe.yaml"), str(at)],
    "plan": lambda at: [*PYTHON, "tunewright", "plan", str(at / "recipe.yaml"), "--json"],
    "doctor": lambda at: [*PYTHON, "tunewright", "doctor", "--json"],
    "review": lambda at: [*PYTHON, "tunewright.web.review.process", str(at)],
}
