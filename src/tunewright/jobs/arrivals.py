"""What the store knows of files that came through the inbox.

    working → archived | rejected         (working again when its job is retried)

An arrival is set down before its file is moved, so that a service that is killed between the two goes on with the move.
"""

import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.jobs.job import ENDED
from tunewright.jobs.store import Store, insert_job, requeue

# A former result answers for the same file again; after these, the same file is a wish to try again.
TRY_AGAIN_AFTER = ("failed", "stopped", "cancelled")


@dataclass(frozen=True)
class Found:
    """A file in the inbox as it was last seen: if any of this changes, it is another file."""

    name: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Arrival:
    """A file that was taken out of the inbox.

    Attributes:
        name: its name in the inbox, with characters that no file should have replaced.
        job: the job that trains on it; None for what was rejected at the door.
        first: whether the job was made for it; otherwise it is one more copy of what the job trains on.
        reason: why it was rejected.
    """

    id: int
    name: str
    sha256: str
    bytes: int
    modified_ns: int
    recipe_sha256: str
    job: int | None
    first: bool
    state: str
    reason: str
    received: float

    @property
    def kept_name(self) -> str:
        """Its name outside the inbox: unique, and in the order of arrival."""
        return f"{self.id:06d}-{self.name}"


@dataclass(frozen=True)
class NewJob:
    """What a job is made of, if the content has none yet."""

    name: str
    recipe: str
    run_dir: Path
    recipe_sha256: str
    arguments: list[str] = field(default_factory=list)


def arrivals(store: Store, where: str = "", values: tuple[Any, ...] = ()) -> list[Arrival]:
    return [Arrival(**dict(row)) for row in store.rows(f"SELECT * FROM arrivals {where} ORDER BY id", values)]  # noqa: S608


def add_arrival(store: Store, found: Found, name: str, sha256: str, new: NewJob) -> None:
    """Set down a file and, in the same transaction, the job that trains on its content if there is none yet."""
    with store.transaction() as database:
        job = _job_of(database, sha256, new.recipe_sha256)
        first = job is None
        if job is None:
            job = insert_job(database, new.name, new.recipe, new.run_dir, 0, (), new.arguments, f"inbox: {name}")
        elif database.execute("SELECT state FROM jobs WHERE id = ?", [job]).fetchone()[0] in TRY_AGAIN_AFTER:
            requeue(database, job, "the same file arrived again")
        _insert(database, found, name, (sha256, new.recipe_sha256, job, first), "working", "")


def add_rejected(store: Store, found: Found, name: str, reason: str) -> None:
    """Set down what is no file to train on."""
    with store.transaction() as database:
        _insert(database, found, name, ("", "", None, True), "working", reason)


def settle(store: Store, arrival: Arrival, state: str, reason: str) -> None:
    """Its file lies where it belongs; unless its job was asked for again meanwhile."""
    with store.transaction() as database:
        marks = ", ".join("?" * len(ENDED))
        database.execute(
            "UPDATE arrivals SET state = ?, reason = ? WHERE id = ?"  # noqa: S608 - question marks only
            f" AND (job IS NULL OR EXISTS (SELECT 1 FROM jobs WHERE id = job AND state IN ({marks})))",
            [state, reason, arrival.id, *ENDED],
        )


def _job_of(database: sqlite3.Connection, sha256: str, recipe_sha256: str) -> int | None:
    query = "SELECT job FROM arrivals WHERE sha256 = ? AND recipe_sha256 = ? AND first"
    row = database.execute(query, [sha256, recipe_sha256]).fetchone()
    return None if row is None else int(row[0])


def _insert(
    database: sqlite3.Connection,
    found: Found,
    name: str,
    content: tuple[str, str, int | None, bool],
    state: str,
    reason: str,
) -> None:
    database.execute(
        "INSERT INTO arrivals (name, bytes, modified_ns, sha256, recipe_sha256, job, first, state, reason, received)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [name, found.bytes, found.modified_ns, *content, state, reason, time.time()],
    )
