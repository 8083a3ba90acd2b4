"""What can be read of the runs of a store, and nothing outside them.

A run is a directory directly below the store. Its name is checked, and every file is opened beneath it without
following a link, so that no name leads anywhere else.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from tunewright.errors import JobNotFoundError

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
STAGES = ("data", "render", "plan", "train", "merge", "export", "verify", "evaluate", "report")
IS_NAME = re.compile(NAME)
MOST_FILE_BYTES = 32 << 20
BYTES_OF_A_PIECE = 1 << 20


@dataclass(frozen=True)
class RunSummary:
    """A run at a glance.

    Attributes:
        last_stage: the last stage that was published; None if none was.
        verdict: of the certificate; `unfinished` without one.
        changed: when something was last published, in seconds since the epoch.
        stages: those that were published, in their order.
    """

    name: str
    last_stage: str | None
    verdict: str
    changed: float
    stages: tuple[str, ...] = ()


class Runs:
    """The runs of one store; what is known of a run is read again when something was published in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, tuple[int, RunSummary]] = {}

    def all(self) -> list[RunSummary]:
        """Every run, the one that changed last first."""
        with os.scandir(self.root) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        found = [self._summary(name) for name in names if IS_NAME.fullmatch(name)]
        return sorted(found, key=lambda run: (-run.changed, run.name))

    def summary(self, name: str) -> RunSummary:
        path = self.root / name
        if not IS_NAME.fullmatch(name) or path.is_symlink() or not path.is_dir():
            raise no_such_run(name)
        return self._summary(name)

    def _summary(self, name: str) -> RunSummary:
        # A stage's manifest is put in its place last, so its directory changes with everything that is published.
        published = _changed_ns(f"{self.root}/{name}/manifests")
        known = self._known.get(name)
        if known is None or known[0] != published:
            known = (published, self._read(name, published or _changed_ns(f"{self.root}/{name}")))
            self._known[name] = known
        return known[1]

    def _read(self, name: str, changed_ns: int) -> RunSummary:
        manifests: set[str] = set()
        with suppress(OSError), os.scandir(self.root / name / "manifests") as entries:
            manifests = {entry.name for entry in entries}
        done = tuple(stage for stage in STAGES if f"{stage}.json" in manifests)
        verdict = "unfinished"
        if "report" in done:
            with suppress(JobNotFoundError, ValueError):
                verdict = str(self.read_json(name, "certificate.json").get("verdict", "damaged"))
        return RunSummary(name, done[-1] if done else None, verdict, changed_ns / 1e9, done)

    def read_json(self, name: str, *parts: str) -> dict[str, Any]:
        with self.opened(name, *parts) as file:
            found = json.loads(file.read(MOST_FILE_BYTES))
        return found if isinstance(found, dict) else {}

    def read_if_there(self, name: str, *parts: str) -> dict[str, Any]:
        """The JSON object in a file of a run; empty where there is none yet, or none that can be read."""
        try:
            return self.read_json(name, *parts)
        except (JobNotFoundError, ValueError, RecursionError):
            return {}

    def recipe(self, name: str) -> dict[str, Any]:
        """The keys of a run's recipe; empty where it cannot be read."""
        try:
            with self.opened(name, "recipe.yaml") as file:
                found = yaml.safe_load(file.read(1 << 20))
        except (JobNotFoundError, yaml.YAMLError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def facts(self, name: str, stage: str) -> dict[str, Any]:
        """What a stage said of itself; empty until it has finished."""
        found = self._manifest(name, stage).get("facts")
        return found if isinstance(found, dict) else {}

    def files_of(self, name: str, stage: str) -> dict[str, Any]:
        """The files that a stage published, each with its `bytes` and `sha256`."""
        found = self._manifest(name, stage).get("files")
        return found if isinstance(found, dict) else {}

    def evidence_of(self, name: str, stage: str) -> list[dict[str, Any]]:
        found = self._manifest(name, stage).get("evidence")
        return found if isinstance(found, list) else []

    def _manifest(self, name: str, stage: str) -> dict[str, Any]:
        return self.read_if_there(name, "manifests", f"{stage}.json")

    def published(self, name: str, path: str) -> dict[str, Any]:
        """The record of a file that some stage published; `JobNotFoundError` for any other."""
        for stage in self.summary(name).stages:
            if isinstance(record := self.files_of(name, stage).get(path), dict):
                return record
        raise no_such_run(f"{name}/{path[:200]}")

    def pieces(self, name: str, path: str) -> Iterator[bytes]:
        """A file's content, a piece at a time; that it is there is known before the first piece is asked for."""
        opened = self.opened(name, *path.split("/"))
        file = opened.__enter__()

        def read() -> Iterator[bytes]:
            try:
                while piece := file.read(BYTES_OF_A_PIECE):
                    yield piece
            finally:
                opened.__exit__(None, None, None)

        return read()

    @contextmanager
    def opened(self, name: str, *parts: str) -> Iterator[IO[bytes]]:
        """A regular file of a run, for reading.

        Raises:
            JobNotFoundError: there is no such run or file, or it is a link or no regular file.
        """
        if not IS_NAME.fullmatch(name) or any(part in {"", ".", ".."} or "/" in part for part in parts):
            raise no_such_run(name)
        descriptor = _open_beneath(self.root, [name, *parts])
        if descriptor is None:
            raise no_such_run(f"{name}/{'/'.join(parts)}")
        with os.fdopen(descriptor, "rb") as file:
            yield file


def _open_beneath(root: Path, parts: list[str]) -> int | None:
    """Open each part below the one before it, none of them by a link."""
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for number, part in enumerate(parts, start=1):
        kind = os.O_NONBLOCK if number == len(parts) else os.O_DIRECTORY
        try:
            below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=here)
        except (OSError, ValueError):
            return None
        finally:
            os.close(here)
        here = below
    if stat.S_ISREG(os.fstat(here).st_mode):
        return here
    os.close(here)
    return None


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_mtime_ns  # noqa: PTH116 - ten thousand times a page
    except OSError:
        return 0


def no_such_run(name: str) -> JobNotFoundError:
    return JobNotFoundError(f"run {name}", "there is no such run or file", mend="`GET /api/v1/runs` lists the runs.")
