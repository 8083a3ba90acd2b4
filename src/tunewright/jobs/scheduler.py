"""Starts what waits, and notices within a second what has died. One per store, held by a lock.

`tick` does one round: attempts whose supervisor is gone are ended (after the last of their processes is killed) and
their jobs queued again, and free slots get the next jobs. It keeps nothing in memory that a restart would miss, and can
be killed anywhere.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tunewright.errors import JobError, TunewrightError
from tunewright.jobs.job import MARK, Attempt
from tunewright.jobs.processes import LEASE_SECONDS, boot_id, identity_from_json, is_dead, kill_marked, monotonic
from tunewright.jobs.store import Store
from tunewright.jobs.supervisor import SLOT_OF_NO_GPU

SECONDS_BETWEEN_ROUNDS = 0.25
RUN_COMMAND = (sys.executable, "-m", "tunewright")


class Scheduler:
    """Keeps the slots of this machine at work on the jobs of one store.

    Args:
        slots: what one job takes as a whole: `gpu0`, `gpu1`, ..., or `cpu`.
        command: what runs a job; `run RECIPE --run-dir DIR --json` is added.
    """

    def __init__(self, store: Store, slots: Sequence[str], command: Sequence[str] = RUN_COMMAND) -> None:
        self.store = store
        self.slots = tuple(slots)
        self.command = tuple(command)
        self.problem = ""
        self._children: dict[tuple[int, int], int] = {}
        self._ended: set[tuple[int, int]] = set()

    def tick(self) -> None:
        """One round. What the disk does not take now is left for the next."""
        try:
            self._reap()
            for attempt in self.store.held():
                self._look_after(attempt)
            while (claimed := self.store.claim(self.slots)) is not None:
                self._start(claimed)
            self.problem = ""
        except TunewrightError as error:
            self.problem = str(error)
        except OSError as error:
            self.problem = f"A process could not be started: {error.strerror}. It is tried again."

    def run_until(self, over: threading.Event) -> None:
        """Round after round until `over` is set."""
        self.tick()
        while not over.wait(SECONDS_BETWEEN_ROUNDS):
            self.tick()

    def _start(self, attempt: Attempt) -> None:
        words = [str(self.store.root), str(attempt.job), str(attempt.number), *self.command]
        log = str(self.store.private / "supervisors.log")
        # Not a Popen: it is to outlive this process, which is no accident that Python would have to warn of.
        self._children[attempt.job, attempt.number] = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "tunewright.jobs.supervisor", *words],
            {**os.environ, MARK: attempt.token},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )

    def _reap(self) -> None:
        for key, child in list(self._children.items()):
            if os.waitpid(child, os.WNOHANG)[0]:
                del self._children[key]
                self._ended.add(key)

    def _look_after(self, attempt: Attempt) -> None:
        """End an attempt that nobody stands over any more."""
        key = attempt.job, attempt.number
        if attempt.supervisor:
            who = identity_from_json(attempt.supervisor)
            if not is_dead(who, attempt.beat):
                return
            crashed = who.boot == boot_id()
        elif key in self._children:
            return
        else:
            # If it was not started here, a service claimed it that died before it started anything: nobody's fault.
            crashed = key in self._ended
        if kill_marked(MARK, attempt.token):
            self._ended.discard(key)
            reason = "its supervisor was killed" if crashed else "the machine or the service was restarted"
            self.store.abandon(attempt, reason, crashed)


def silent_attempts(store: Store) -> list[Attempt]:
    """Attempts whose supervisor lives but gives no sign, as if it were frozen. Nothing is done about them."""
    return [item for item in store.held() if item.supervisor and monotonic() - item.beat > LEASE_SECONDS]


def gpu_slots() -> list[str]:
    """One slot for each NVIDIA GPU that this process may use, or the one slot of a machine without."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else _gpu_indices()
    return [f"gpu{name.strip()}" for name in names if name.strip()] or [SLOT_OF_NO_GPU]


def _gpu_indices() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip().isdecimal()]


@contextmanager
def sole_service(store: Store) -> Iterator[Callable[..., None]]:
    """Be the only service of the store for as long as this lasts; yields what sets down facts for a second one to read.

    Raises:
        JobError: there is one already; the message names it.
    """
    with (store.private / "service.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(
                str(store.root),
                f"it is served already, by {service_of(store)}",
                mend="Use that one, stop it, or name another --store.",
            ) from None

        def announce(**facts: object) -> None:
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), **facts}))
            file.flush()

        announce()
        yield announce


def service_of(store: Store) -> str:
    """The service that holds the store, as far as it has said who it is."""
    try:
        facts = json.loads((store.private / "service.lock").read_text(encoding="utf-8"))
        return f"process {facts['pid']}" + (f" at {facts['url']}" if "url" in facts else "")
    except (OSError, ValueError, KeyError):
        return "another process"
