"""A connection to the store's SQLite file, and its errors in words."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunewright.errors import ArtifactError, EnvironmentLackError

SECONDS_TO_WAIT_FOR_THE_LOCK = 20.0
SECONDS_BETWEEN_TRIES = 0.01


@dataclass
class Connection:
    """A thread's connection, closed with the thread; not in a fork of its process, whose locks it would touch."""

    pid: int
    database: sqlite3.Connection

    def __del__(self) -> None:
        if self.pid == os.getpid():
            self.database.close()


def connect(path: Path) -> sqlite3.Connection:
    with named_errors(path):
        # Each thread uses its own; but which thread closes it is up to the collection of what is left over.
        database = sqlite3.connect(
            path, timeout=SECONDS_TO_WAIT_FOR_THE_LOCK, isolation_level=None, check_same_thread=False
        )
        database.row_factory = sqlite3.Row
        write_ahead(database)
        database.execute("PRAGMA foreign_keys=ON")
        return database


def write_ahead(database: sqlite3.Connection) -> None:
    """Switch to WAL. Where others open a new file at this moment, SQLite does not wait, but says that it is locked."""
    deadline = time.monotonic() + SECONDS_TO_WAIT_FOR_THE_LOCK
    while True:
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(SECONDS_BETWEEN_TRIES)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """What SQLite could not do, as an error that names the file and what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        mend = "Free some space; nothing that was answered is lost." if "full" in str(error) else "Check the disk."
        raise EnvironmentLackError(str(path), f"the store cannot be used ({error})", mend=mend) from None
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError):
            raise
        raise ArtifactError(str(path), f"the store is damaged ({error})", mend="Put back a copy.") from None
