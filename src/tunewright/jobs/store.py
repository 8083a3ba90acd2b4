"""The book of all jobs: one SQLite file, in a directory that also holds the runs.

What goes in are jobs, claims of free slots, and what became of attempts; what comes out are jobs with their history.
Every change of a job's state is one transaction that also writes the history, flushed to disk before it is answered.
A slot, a job and a run directory each have at most one owner: the tables forbid more. Nothing is ever deleted.

    STORE/NAME/                run directories, as in `runs/`
    STORE/.service/jobs.sqlite
    STORE/.service/jobs/ID/    recipe.yaml, log-ATTEMPT.txt
    STORE/.service/files/SHA256/    what came through the inbox
"""

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunewright.errors import ArtifactError, JobError, JobNotFoundError
from tunewright.jobs.connection import Connection, connect, named_errors
from tunewright.jobs.job import ACTIVE, CRASHES_ALLOWED, ENDED, Attempt, Job, Outcome, State, Wish
from tunewright.jobs.processes import Identity, monotonic
from tunewright.jobs.schema import TABLES, VERSION

ATTEMPT_COLUMNS = ", ".join(Attempt.__dataclass_fields__)


class Store:
    """The jobs of one directory. Safe to use from several threads and processes.

    Raises:
        EnvironmentLackError: the disk is full or cannot be written.
        ArtifactError: the file is damaged, or was written by a newer version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.private = self.root / ".service"
        self.private.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._connections = threading.local()
        with self.transaction() as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in TABLES.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version={VERSION}")
        if version > VERSION:
            raise ArtifactError(
                str(self.path),
                f"written by a newer version (layout {version})",
                f"layout {VERSION} or less",
                "Update tunewright.",
            )

    @property
    def path(self) -> Path:
        return self.private / "jobs.sqlite"

    def directory_of(self, job: int) -> Path:
        return self.private / "jobs" / str(job)

    def log_path(self, job: int, attempt: int) -> Path:
        return self.directory_of(job) / f"log-{attempt}.txt"

    # -- connections ------------------------------------------------------------------------------------------------

    @property
    def _database(self) -> sqlite3.Connection:
        """This thread's connection; a connection is never carried over a fork."""
        known: Connection | None = getattr(self._connections, "known", None)
        if known is None or known.pid != os.getpid():
            known = Connection(os.getpid(), connect(self.path))
            self._connections.known = known
        return known.database

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """All or nothing; flushed to disk at the end if `durable`."""
        with named_errors(self.path):
            database = self._database
            database.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with named_errors(self.path):
            return self._database.execute(query, values).fetchall()

    # -- adding and looking -----------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        recipe: str,
        run_dir: Path,
        *,
        priority: int = 0,
        needs: Sequence[int] = (),
        arguments: Sequence[str] = (),
        source: str = "",
    ) -> Job:
        """A new job at the end of the queue; once this returns it is not lost any more.

        Raises:
            JobError: another job is at work on the run directory, or a job that it needs does not exist.
        """
        with self.transaction() as database:
            job = insert_job(database, name, recipe, run_dir, priority, needs, arguments, source)
        return self.job(job)

    def job(self, job: int) -> Job:
        found = self.jobs(f"WHERE id = {int(job)}")
        if not found:
            raise JobNotFoundError(f"job {job}", "there is no such job", mend="`tunewright jobs list` shows all.")
        return found[0]

    def jobs(self, where: str = "", values: Sequence[Any] = (), limit: int = -1) -> list[Job]:
        """Jobs, the newest first; `where` is SQL of our own, never words of a user."""
        query = (
            "SELECT *, (SELECT group_concat(needed) FROM needs WHERE job = jobs.id) AS needs"  # noqa: S608 - see above
            f" FROM jobs {where} ORDER BY id DESC LIMIT ?"
        )
        return [job_from_row(row) for row in self.rows(query, [*values, limit])]

    def counts(self) -> dict[str, int]:
        return dict(self.rows("SELECT state, count(*) FROM jobs GROUP BY state"))

    def history(self, job: int) -> list[dict[str, Any]]:
        query = "SELECT id, time, state, reason FROM history WHERE job = ? ORDER BY id"
        return [dict(row) for row in self.rows(query, [job])]

    def changes_since(self, last: int, limit: int = 500) -> list[dict[str, Any]]:
        """Changes of state of all jobs after the one with the number `last`, the oldest first."""
        query = "SELECT id, job, time, state, reason FROM history WHERE id > ? ORDER BY id LIMIT ?"
        return [dict(row) for row in self.rows(query, [last, limit])]

    def newest_change(self) -> int:
        """The number of the last change of state; 0 before the first."""
        return int(self.rows("SELECT coalesce(max(id), 0) FROM history")[0][0])

    def attempts(self, job: int) -> list[Attempt]:
        query = f"SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE job = ? ORDER BY number"  # noqa: S608
        return [Attempt(*row) for row in self.rows(query, [job])]

    def held(self) -> list[Attempt]:
        """The attempts that have not ended."""
        return [
            Attempt(*row)
            for row in self.rows(f"SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE ended IS NULL ORDER BY job")  # noqa: S608
        ]

    # -- what the scheduler does ------------------------------------------------------------------------------------

    def claim(self, slots: Sequence[str]) -> Attempt | None:
        """Take the next job that may start for a free slot; None if there is no job or no slot.

        Higher priority goes first, then the older job. A job waits until all that it needs are done, and after a full
        disk until more is free than there was then.
        """
        with self.transaction() as database:
            taken = {row[0] for row in database.execute("SELECT slot FROM attempts WHERE ended IS NULL")}
            free = [slot for slot in slots if slot not in taken]
            job = next(_startable(database), None) if free else None
            if job is None:
                return None
            number = database.execute("SELECT count(*) + 1 FROM attempts WHERE job = ?", [job]).fetchone()[0]
            database.execute(
                "INSERT INTO attempts (job, number, slot, token, beat, started) VALUES (?, ?, ?, ?, ?, ?)",
                [job, number, free[0], secrets.token_hex(16), monotonic(), time.time()],
            )
            move(database, job, "starting", f"attempt {number} on {free[0]}")
        return self.attempts(job)[-1]

    def abandon(self, attempt: Attempt, reason: str, crashed: bool) -> bool:
        """End an attempt whose processes are gone without a word; its job is queued again, or was to end anyway."""
        wanted = self.job(attempt.job).wanted
        ends: dict[str, State] = {"stop": "stopped", "cancel": "cancelled"}
        return self.finish(attempt, Outcome(ends.get(wanted, "queued"), reason, crashed=crashed))

    # -- what a supervisor does -------------------------------------------------------------------------------------

    def begin(self, job: int, number: int, supervisor: Identity) -> Attempt | None:
        """Take over an attempt that was claimed; None if it has ended or another process has it."""
        with self.transaction() as database:
            taken = database.execute(
                "UPDATE attempts SET supervisor = ?, beat = ?"
                " WHERE job = ? AND number = ? AND ended IS NULL AND supervisor = ''",
                [supervisor.as_json(), monotonic(), job, number],
            ).rowcount
            if not taken:
                return None
            move(database, job, "running")
        return self.attempts(job)[number - 1]

    def beat(self, attempt: Attempt, worker_pid: int) -> None:
        """Show a sign of life. It need not survive a power cut: nor does who gave it."""
        with self.transaction(durable=False) as database:
            database.execute(
                "UPDATE attempts SET beat = ?, worker_pid = ? WHERE job = ? AND number = ? AND ended IS NULL",
                [monotonic(), worker_pid, attempt.job, attempt.number],
            )

    def wanted(self, job: int) -> Wish:
        wish: Wish = self.rows("SELECT wanted FROM jobs WHERE id = ?", [job])[0][0]
        return wish

    def finish(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Set down what the attempt came to, exactly once; whether it had not ended before."""
        with self.transaction() as database:
            ended = database.execute(
                "UPDATE attempts SET ended = ?, exit_code = ? WHERE job = ? AND number = ? AND ended IS NULL",
                [time.time(), outcome.exit_code, attempt.job, attempt.number],
            ).rowcount
            if not ended:
                return False
            database.execute(
                "UPDATE jobs SET crashes = crashes + ?, needs_free_bytes = ?, wanted = '' WHERE id = ?",
                [outcome.crashed, outcome.needs_free_bytes, attempt.job],
            )
            crashes = database.execute("SELECT crashes FROM jobs WHERE id = ?", [attempt.job]).fetchone()[0]
            if outcome.state == "queued" and crashes >= CRASHES_ALLOWED:
                move(
                    database, attempt.job, "failed", f"{outcome.reason}; that was {crashes} times, so it is left alone"
                )
            else:
                move(database, attempt.job, outcome.state, outcome.reason)
        return True

    # -- what a person asks for -------------------------------------------------------------------------------------

    def want(self, job: int, wish: Wish) -> Job:
        """Cancel a job, or stop it so that it can go on later; a job that has ended stays as it is.

        Raises:
            JobError: there is no such job, or it has ended.
        """
        with self.transaction() as database:
            state = _state_of(database, job)
            if state in ENDED:
                raise JobError(f"job {job}", f"it is {state} already", "a job that waits or runs")
            if state == "queued":
                move(database, job, "cancelled" if wish == "cancel" else "stopped", "before it started")
            else:
                # A wish to cancel outdoes one to stop, whichever came first.
                database.execute("UPDATE jobs SET wanted = ? WHERE id = ? AND wanted != 'cancel'", [wish, job])
        return self.job(job)

    def retry(self, job: int, accept: Sequence[str] = ()) -> Job:
        """Queue a job again that has ended; its run goes on where it was.

        Args:
            accept: names of evidence that may fail this time.

        Raises:
            JobError: there is no such job, it has not ended, or another one is at work on its run directory.
        """
        with self.transaction() as database:
            state = _state_of(database, job)
            if state not in ENDED:
                raise JobError(f"job {job}", f"it is {state}", "a job that has ended")
            requeue(database, job, "asked for again", accept)
        return self.job(job)

    def set_priority(self, job: int, priority: int) -> Job:
        with self.transaction() as database:
            _state_of(database, job)
            database.execute("UPDATE jobs SET priority = ? WHERE id = ?", [priority, job])
        return self.job(job)


def insert_job(
    database: sqlite3.Connection,
    name: str,
    recipe: str,
    run_dir: Path,
    priority: int,
    needs: Sequence[int],
    arguments: Sequence[str],
    source: str,
) -> int:
    """Write a queued job within the caller's transaction; its number."""
    _validate_free(database, str(run_dir.resolve()))
    now = time.time()
    cursor = database.execute(
        "INSERT INTO jobs (name, recipe, arguments, run_dir, priority, state, source, created, changed)"
        " VALUES (?, ?, ?, ?, ?, 'queued', ?, ?, ?)",
        [name, recipe, json.dumps(list(arguments)), str(run_dir.resolve()), priority, source, now, now],
    )
    job = int(cursor.lastrowid or 0)
    for needed in dict.fromkeys(needs):
        _state_of(database, needed)
        database.execute("INSERT INTO needs VALUES (?, ?)", [job, needed])
    move(database, job, "queued")
    return job


def requeue(database: sqlite3.Connection, job: int, reason: str, accept: Sequence[str] = ()) -> None:
    """Queue an ended job again within the caller's transaction."""
    row = database.execute("SELECT run_dir, arguments FROM jobs WHERE id = ?", [job]).fetchone()
    _validate_free(database, row["run_dir"])
    words = json.loads(row["arguments"]) + [word for name in accept for word in ("--accept", name)]
    database.execute(
        "UPDATE jobs SET crashes = 0, needs_free_bytes = 0, wanted = '', arguments = ? WHERE id = ?",
        [json.dumps(words), job],
    )
    database.execute("UPDATE arrivals SET state = 'working' WHERE job = ?", [job])
    move(database, job, "queued", reason)


def move(database: sqlite3.Connection, job: int, state: State, reason: str = "") -> None:
    """Change a job's state, and write the history in the same transaction."""
    now = time.time()
    database.execute("UPDATE jobs SET state = ?, reason = ?, changed = ? WHERE id = ?", [state, reason, now, job])
    database.execute("INSERT INTO history (job, time, state, reason) VALUES (?, ?, ?, ?)", [job, now, state, reason])


def _state_of(database: sqlite3.Connection, job: int) -> str:
    row = database.execute("SELECT state FROM jobs WHERE id = ?", [job]).fetchone()
    if row is None:
        raise JobNotFoundError(f"job {job}", "there is no such job", mend="`tunewright jobs list` shows all.")
    return str(row[0])


def _validate_free(database: sqlite3.Connection, run_dir: str) -> None:
    marks = ", ".join("?" * len(ACTIVE))
    query = f"SELECT id FROM jobs WHERE run_dir = ? AND state IN ({marks})"  # noqa: S608 - question marks only
    row = database.execute(query, [run_dir, *ACTIVE]).fetchone()
    if row is not None:
        raise JobError(run_dir, f"job {row[0]} is at work on this run", mend="Wait for it, cancel it, or name another.")


def _startable(database: sqlite3.Connection) -> Iterator[int]:
    """The queued jobs that may start now, the first to start first."""
    query = (
        "SELECT id, run_dir, needs_free_bytes FROM jobs WHERE state = 'queued' AND NOT EXISTS ("
        " SELECT 1 FROM needs JOIN jobs AS other ON other.id = needs.needed"
        " WHERE needs.job = jobs.id AND other.state != 'done') ORDER BY priority DESC, id"
    )
    for job, run_dir, needed in database.execute(query):
        if not needed or free_bytes(Path(run_dir)) >= needed:
            yield job


def free_bytes(path: Path) -> int:
    """What is free on the disk that holds `path`, or will hold it."""
    while not path.exists():
        path = path.parent
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def job_from_row(row: sqlite3.Row) -> Job:
    fields = dict(row)
    needs = tuple(int(number) for number in (fields.pop("needs") or "").split(",") if number)
    fields["arguments"] = json.loads(fields["arguments"])
    fields["run_dir"] = Path(fields["run_dir"])
    return Job(**fields, needs=needs)
