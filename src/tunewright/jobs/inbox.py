"""The inbox: a directory whose files are trained on, each once.

    INBOX/rows.jsonl                        put here, best by renaming it when it is whole
    INBOX/working/000007-rows.jsonl         while it is trained on, from a copy in the store
    INBOX/archive/000007-rows.jsonl         afterwards, with 000007-rows.jsonl.receipt.json, as beside the result
    INBOX/rejected/000007-rows.jsonl        if it cannot be trained on, with 000007-rows.jsonl.reason.txt

Every round reads the directory, so that network mounts work, which tell nobody of new files. A file is taken when its
size and time have been at rest, nobody on this machine has it open for writing, and both are the same after it was
copied. Its content is known by its SHA-256: the same content under the same recipe is answered with the former result.
No file is ever deleted, and none is trained on unseen.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tunewright.artifacts import flush_directory_entry, flush_to_disk, sha256_of_json, write_json, write_text
from tunewright.errors import RecipeError, TunewrightError, environment_error
from tunewright.jobs.arrivals import Arrival, Found, NewJob, add_arrival, add_rejected, arrivals, settle
from tunewright.jobs.job import ENDED, Job
from tunewright.jobs.processes import monotonic
from tunewright.jobs.store import Store
from tunewright.recipe import Recipe, read_recipe

SECONDS_AT_REST = 2.0
PATIENCE_WITH_EMPTY = 10  # A program that has made a file may take its time to write into it.
BYTES_AT_ONCE = 1 << 20
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".download", ".filepart", "~", ".swp")
PLACES = ("working", "archive", "rejected")
# `tunewright run` ends so when the rows are at fault, and not the recipe or the machine.
FAULT_OF_THE_ROWS = (1, 3)


class ChangedError(Exception):
    """The file became another one while it was read: it is looked at again later."""


@dataclass
class Seen:
    found: Found
    since: float


class Inbox:
    """Files that arrive in one directory, trained by one recipe.

    Args:
        recipe: a recipe in which `data` is left out, or is replaced.
        seconds_at_rest: for how long a file must not have changed.
    """

    def __init__(self, store: Store, directory: Path, recipe: Path, seconds_at_rest: float = SECONDS_AT_REST) -> None:
        self.store = store
        self.directory = directory.resolve()
        self.recipe = recipe.resolve()
        self.seconds_at_rest = seconds_at_rest
        self.problem = ""
        self._seen: dict[str, Seen] = {}

    def tick(self) -> None:
        """One round. What the disk does not take now, or a recipe that is broken, is tried again in the next."""
        self.problem = ""
        try:
            for place in PLACES:
                (self.directory / place).mkdir(parents=True, exist_ok=True)
            for arrival in arrivals(self.store, "WHERE state = 'working'"):
                self._go_on_with(arrival)
            self._look()
        except TunewrightError as error:
            self.problem = str(error)
        except OSError as error:
            self.problem = str(environment_error(error))

    # -- what arrives -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        names = {entry.name for entry in os.scandir(self.directory) if not is_left_alone(entry)}
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        for name in sorted(names):
            with suppress(FileNotFoundError, ChangedError):
                self._consider(name)

    def _consider(self, name: str) -> None:
        """Take the file if it has been at rest."""
        status = os.lstat(self.directory / name)
        found = found_file(name, status)
        seen = self._seen.get(name)
        if seen is None or seen.found != found:
            self._seen[name] = Seen(found, monotonic())
        elif monotonic() - seen.since >= self.seconds_at_rest * (1 if found.bytes else PATIENCE_WITH_EMPTY):
            self._take(name, found, stat.S_IFMT(status.st_mode))

    def _take(self, name: str, found: Found, kind: int) -> None:
        safe = safe_name(name)
        reason = reason_against(kind, found)
        if not reason:
            recipe = read_recipe(self.recipe, {"data": [str(self.directory / name)], "name": safe})
            try:
                with self._copied(name, found) as (sha256, copy):
                    reason = reason_of_half_file(copy)
                    if not reason:
                        add_arrival(self.store, found, safe, sha256, self._new_job(recipe, safe, sha256, copy))
            except PermissionError:
                reason = "It may not be read. Change its permissions and put it back."
        if reason:
            add_rejected(self.store, found, safe, reason)
        del self._seen[name]
        self._go_on_with(arrivals(self.store, "WHERE id = (SELECT max(id) FROM arrivals)")[0], name)

    @contextmanager
    def _copied(self, name: str, found: Found) -> Iterator[tuple[str, Path]]:
        """The SHA-256 of the file and a copy of it in the store, flushed."""
        files = self.store.private / "files"
        files.mkdir(exist_ok=True)
        temporary = files / ".arriving"
        sha256 = copy_at_rest(self.directory / name, temporary, found)
        yield sha256, keep_by_content(files, temporary, sha256, name)

    def _new_job(self, recipe: Recipe, safe: str, sha256: str, copy: Path) -> NewJob:
        same_for_all = recipe.model_dump(mode="json", exclude={"data", "name"})
        run_name = f"{safe.split('.')[0]}-{sha256[:8]}"
        own = recipe.model_copy(update={"data": [str(copy)], "name": run_name})
        recipe_sha256 = sha256_of_json(same_for_all)
        run_dir = self.store.root / f"{run_name}-{recipe_sha256[:4]}"
        return NewJob(run_name, own.as_yaml(), run_dir, recipe_sha256)

    # -- what was taken ---------------------------------------------------------------------------------------------

    def _go_on_with(self, arrival: Arrival, name: str | None = None) -> None:
        """Bring the arrival as far as it can be brought now; doing it again changes nothing."""
        self._move_out(arrival, name or arrival.name)
        if arrival.job is None:
            self._settle(arrival, "rejected", arrival.reason)
            return
        job = self.store.job(arrival.job)
        if job.state not in ENDED:
            return
        if self._rows_are_at_fault(job):
            self._settle(arrival, "rejected", job.reason)
            return
        receipt = {**asdict(arrival), "same_as_before": not arrival.first, "result": str(job.run_dir)}
        receipt = {**receipt, "state": job.state, "reason": job.reason}
        if job.run_dir.is_dir():
            write_json(job.run_dir / f"receipt-{arrival.kept_name}.json", receipt)
        write_json(self.directory / "archive" / f"{arrival.kept_name}.receipt.json", receipt)
        self._settle(arrival, "archived", "")

    def _move_out(self, arrival: Arrival, name: str) -> None:
        """Move the file out of the inbox, unless it was moved before or another one has taken its name."""
        if self._place_of(arrival) is not None:
            return
        for path in (self.directory / name, *self._named_like(arrival)):
            with suppress(FileNotFoundError):
                found = found_file(path.name, os.lstat(path))
                if (found.bytes, found.modified_ns) == (arrival.bytes, arrival.modified_ns):
                    move_file(path, self.directory / "working" / arrival.kept_name)
                    return

    def _named_like(self, arrival: Arrival) -> list[Path]:
        """Files of the inbox whose safe name is that of the arrival."""
        return [Path(item.path) for item in os.scandir(self.directory) if safe_name(item.name) == arrival.name]

    def _place_of(self, arrival: Arrival) -> Path | None:
        places = (self.directory / place / arrival.kept_name for place in PLACES)
        return next((path for path in places if os.path.lexists(path)), None)

    def _rows_are_at_fault(self, job: Job) -> bool:
        """Whether the run ended before there were tokens, and not for want of something on this machine."""
        attempts = self.store.attempts(job.id)
        ended_so = bool(attempts) and attempts[-1].exit_code in FAULT_OF_THE_ROWS
        return ended_so and job.state in {"failed", "gate"} and not (job.run_dir / "manifests/render.json").exists()

    def _settle(self, arrival: Arrival, state: str, reason: str) -> None:
        place = {"archived": "archive", "rejected": "rejected"}[state]
        if state == "rejected":
            write_text(self.directory / place / f"{arrival.kept_name}.reason.txt", reason + "\n")
        now = self._place_of(arrival)
        if now is not None and now.parent.name != place:
            move_file(now, self.directory / place / arrival.kept_name)
        settle(self.store, arrival, state, reason)


def is_left_alone(entry: os.DirEntry[str]) -> bool:
    """Hidden files and those that a program has not finished writing; and our own directories."""
    return entry.name.startswith(".") or entry.name in PLACES or entry.name.lower().endswith(UNFINISHED)


def found_file(name: str, status: os.stat_result) -> Found:
    return Found(name, status.st_size, status.st_mtime_ns)


def safe_name(name: str) -> str:
    """The name with nothing in it that a shell, a terminal, a page or a file system takes for something else."""
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII)[-100:].lstrip(".-") or "file"


def keep_by_content(files: Path, temporary: Path, sha256: str, name: str) -> Path:
    """Give a flushed file its place by its content; one that was there before stays."""
    final = files / sha256 / f"rows{known_suffixes(name)}"
    if final.exists():
        temporary.unlink()
        return final
    final.parent.mkdir(exist_ok=True)
    flush_directory_entry(files)
    temporary.replace(final)
    flush_directory_entry(final.parent)
    return final


def known_suffixes(name: str) -> str:
    """What the end of the name says of the content, such as `.jsonl.gz`."""
    return "".join(re.findall(r"\.[a-z][a-z0-9]{1,7}(?=\.|$)", safe_name(name).lower())[-2:])


def reason_against(kind: int, found: Found) -> str:
    """Why this is no file to train on; empty if it is one."""
    if kind == stat.S_IFLNK:
        return "It is a symbolic link. Put the file itself here."
    if kind == stat.S_IFDIR:
        return "It is a directory. Put the files themselves here, one by one."
    if kind != stat.S_IFREG:
        return "It is no regular file, but a pipe, a socket or a device. Put a file with rows here."
    if found.bytes == 0:
        return "It is empty. Put a file with rows here."
    return ""


def copy_at_rest(path: Path, copy: Path, found: Found) -> str:
    """Copy a file that must not change meanwhile, and flush the copy; its SHA-256.

    Raises:
        ChangedError: it is not the file that was found, somebody writes to it, or it changed while it was read.
    """
    descriptor = open_unless_link(path)
    digest = hashlib.sha256()
    with os.fdopen(descriptor, "rb") as source, copy.open("wb") as target:
        if found_file(found.name, os.fstat(descriptor)) != found or is_written_to(descriptor):
            raise ChangedError
        while block := source.read(BYTES_AT_ONCE):
            digest.update(block)
            target.write(block)
        if {found_file(found.name, status) for status in (os.fstat(descriptor), os.lstat(path))} != {found}:
            raise ChangedError
    flush_to_disk(copy)
    return digest.hexdigest()


def open_unless_link(path: Path) -> int:
    """Open for reading what is a regular file at this moment; `ChangedError` if it is one no more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise ChangedError from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise ChangedError


def is_written_to(descriptor: int) -> bool:
    """Whether some process of this machine has the file open for writing; False where the file system cannot tell."""
    try:
        # Who opens it for writing while the lease is held makes the kernel send a signal: one that nobody minds.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def reason_of_half_file(copy: Path) -> str:
    """Whether a file of JSON lines breaks off within its last line, as one does that was copied by halves."""
    if copy.suffix not in {".jsonl", ".ndjson"}:
        return ""
    with copy.open("rb") as file:
        file.seek(max(0, copy.stat().st_size - BYTES_AT_ONCE))
        last = file.read().rpartition(b"\n")[2]
    try:
        json.loads(last or b"{}")
    except (ValueError, RecursionError):
        return "Its last line breaks off, as in a file that was copied by halves. Put the whole file here."
    return ""


def move_file(path: Path, target: Path) -> None:
    """Rename, and have both directories know it after a power cut."""
    path.rename(target)
    flush_directory_entry(target.parent)
    flush_directory_entry(path.parent)


def validate_inbox(directory: Path, recipe: Path) -> None:
    """Refuse a recipe that cannot train anything before the service starts.

    Raises:
        RecipeError: it is missing or broken.
    """
    read_recipe(recipe, {"data": ["rows.jsonl"]})
    if directory.exists() and not directory.is_dir():
        raise RecipeError(str(directory), "it is no directory", "the directory of an inbox", "Name a directory.")
