"""What the tests of jobs share: a store with a scheduler over fake runs, and waiting that ends."""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil

from tunewright.jobs.job import MARK, Job
from tunewright.jobs.processes import kill_marked
from tunewright.jobs.scheduler import Scheduler
from tunewright.jobs.store import Store

FAKE_RUN = (sys.executable, str(Path(__file__).with_name("fake_run.py")))
SECONDS_TO_WAIT = 90.0


def scheduler_of(store: Store, slots: tuple[str, ...] = ("cpu",)) -> Scheduler:
    return Scheduler(store, slots, FAKE_RUN)


def add(store: Store, name: str, *words: str, **options: int | tuple[int, ...]) -> Job:
    return store.add(name, "\n".join(words), store.root / name, **options)  # type: ignore[arg-type]


def wait_until(
    condition: Callable[[], object], scheduler: Scheduler | None = None, at_most: float = SECONDS_TO_WAIT
) -> float:
    """Seconds until the condition held, with rounds of the scheduler meanwhile."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < at_most, "it has not come about"
        if scheduler is not None:
            scheduler.tick()
        time.sleep(0.01)
    return time.monotonic() - started


def finish_all(scheduler: Scheduler, at_most: float = SECONDS_TO_WAIT) -> None:
    """Rounds until nothing waits to start and nothing runs."""
    store = scheduler.store
    wait_until(lambda: not store.jobs("WHERE state IN ('queued', 'starting', 'running')"), scheduler, at_most)


def new_store(directory: Path) -> Iterator[Store]:
    """A store for a test, which leaves no process behind."""
    store = Store(directory)
    yield store
    for attempt in store.held():
        wait_until(partial(kill_marked, MARK, attempt.token))


def is_running(pid: int) -> bool:
    """A process may end between two looks at it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
