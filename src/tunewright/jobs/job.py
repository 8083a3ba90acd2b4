"""A job: a recipe, a run directory, and how far it came.

    queued → starting → running → done | gate | failed | stopped | cancelled
       ↑__________________↓____________________________↓ (retry; and by itself after a crash, a reboot, a full disk)

An attempt is one start of a job. It holds its slot (a GPU) and the job from the moment it is claimed until it has
ended, and is never deleted: it is the lease.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["queued", "starting", "running", "done", "gate", "failed", "stopped", "cancelled"]
ACTIVE: tuple[State, ...] = ("queued", "starting", "running")
ENDED: tuple[State, ...] = ("done", "gate", "failed", "stopped", "cancelled")
STATES = ACTIVE + ENDED
Wish = Literal["", "stop", "cancel"]

CRASHES_ALLOWED = 3
# Marks every process of an attempt, so that none outlives it unseen.
MARK = "TUNEWRIGHT_ATTEMPT"


@dataclass(frozen=True)
class Job:
    """What the store knows of a job.

    Attributes:
        recipe: the recipe as YAML, its paths absolute.
        arguments: further words for `tunewright run`.
        reason: why it is in its state, in words for a person; often empty.
        wanted: what was asked of it while it runs.
        crashes: how often it died since it was last queued by a person.
        needs_free_bytes: what has to be free on the run's disk before it is started again.
        source: what it was made from, such as the file in the inbox.
    """

    id: int
    name: str
    recipe: str
    arguments: list[str]
    run_dir: Path
    priority: int
    state: State
    reason: str
    wanted: Wish
    crashes: int
    needs_free_bytes: int
    source: str
    created: float
    changed: float
    needs: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything but the recipe's text."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "recipe"}
        return {**fields, "run_dir": str(self.run_dir), "needs": list(self.needs)}


@dataclass(frozen=True)
class Attempt:
    """One start of a job; a lease on its slot until `ended` is set.

    Attributes:
        token: names this attempt in the environment of its processes.
        supervisor: the process that stands over it, as JSON; empty until that process has taken the attempt over.
        worker_pid: `tunewright run`, which is also the number of its process group.
        beat: when the supervisor was last heard of, on the monotonic clock of its boot.
        exit_code: as the shell counts it, negative for a signal; None while it runs, or if nobody saw it end.
    """

    job: int
    number: int
    slot: str
    token: str
    supervisor: str
    worker_pid: int | None
    beat: float
    started: float
    ended: float | None
    exit_code: int | None

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in {"token", "supervisor"}}


@dataclass(frozen=True)
class Outcome:
    """What an attempt came to, and the state that its job goes to.

    Attributes:
        crashed: whether it counts as a crash of the job.
        needs_free_bytes: set where the disk was full.
    """

    state: State
    reason: str = ""
    exit_code: int | None = None
    crashed: bool = False
    needs_free_bytes: int = 0


def outcome_of(
    exit_code: int, wanted: Wish, error: Mapping[str, Any] | None, last_words: str, free_bytes: int
) -> Outcome:
    """What an exit of `tunewright run` means.

    Args:
        error: the error that it printed as JSON, if it did.
        last_words: the last line of its log.
        free_bytes: what is free on the run's disk now.
    """
    said = message_of(error) if error else last_words
    if exit_code == 0:
        return Outcome("done", exit_code=0)
    if wanted == "cancel":
        return Outcome("cancelled", "cancelled while it ran", exit_code)
    if wanted == "stop" or exit_code in {130, -2}:
        return Outcome("stopped", "stopped; `retry` goes on from where it was", exit_code)
    if error and error.get("found") == "no space is left":
        return Outcome("queued", f"waits for free disk space: {said}", exit_code, needs_free_bytes=free_bytes + 1)
    if exit_code == 3:
        return Outcome("gate", said, exit_code)
    if exit_code < 0:
        return Outcome("queued", f"killed by signal {-exit_code}, often for want of memory", exit_code, crashed=True)
    return Outcome("failed", said or f"exit code {exit_code}", exit_code)


def message_of(error: Mapping[str, Any]) -> str:
    """The sentence that a person would have read in the terminal."""
    expected = f"; expected {error['expected']}" if error.get("expected") else ""
    mend = f" {error['mend']}" if error.get("mend") else ""
    return f"{error.get('where', '')}: {error.get('found', '')}{expected}.{mend}"
