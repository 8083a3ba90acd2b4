"""Takes out of the program what the crash harness is to miss. A Python with this directory on its path imports it."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CarelessConnection(sqlite3.Connection):
    def execute(self, query: str, *values: Any) -> sqlite3.Cursor:
        return super().execute(query.replace("synchronous=FULL", "synchronous=OFF"), *values)


@contextmanager
def written_in_place(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path


def take_out(what: str) -> None:
    from tunewright import artifacts
    from tunewright.jobs import processes

    if what == "rename":
        artifacts.written_whole = written_in_place
    elif what == "fsync":
        artifacts.flush_to_disk = artifacts.flush_directory_entry = lambda path: None
    elif what == "store-fsync":
        connect = sqlite3.connect
        sqlite3.connect = lambda *words, **options: connect(*words, **options, factory=CarelessConnection)
    elif what == "ending":
        processes.die_with = lambda parent: None
        processes.kill_marked = lambda name, value: True


take_out(os.environ["SCENE_WITHOUT"])
