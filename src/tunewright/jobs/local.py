"""The jobs of a store on this machine, as the command line asks for them: the same words as for a service elsewhere.

In: what a person wants of a job. Out: jobs as JSON, and logs as text.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.errors import JobNotFoundError
from tunewright.jobs.adding import add_job
from tunewright.jobs.job import ENDED, Wish
from tunewright.jobs.store import Store
from tunewright.recipe import Recipe

SECONDS_BETWEEN_LOOKS = 0.5
BYTES_AT_ONCE = 1 << 18


class LocalJobs:
    """What can be asked of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __enter__(self) -> "LocalJobs":
        return self

    def __exit__(self, *reason: object) -> None:
        """A store needs no end."""

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """The newest jobs, the newest first."""
        return [job.as_json() for job in self.store.jobs(limit=limit)]

    def add(self, recipe: Recipe, name: str | None, priority: int, needs: list[int]) -> dict[str, Any]:
        return add_job(self.store, recipe, name, priority, needs).as_json()

    def want(self, job: int, wish: Wish) -> dict[str, Any]:
        return self.store.want(job, wish).as_json()

    def retry(self, job: int, accept: list[str]) -> dict[str, Any]:
        return self.store.retry(job, accept).as_json()

    def log(self, job: int, follow: bool) -> Iterator[str]:
        """The log of a job's last attempt, piece by piece; with `follow` until the job has ended."""
        attempt, place = 0, 0
        while True:
            state, attempts = self.store.job(job).state, len(self.store.attempts(job))
            if attempts != attempt:
                attempt, place = attempts, 0
            path = self.store.log_path(job, max(attempt, 1))
            if not path.exists() and not follow:
                raise JobNotFoundError(f"job {job}", "it has not started, so it has no log")
            while (found := text_after(path, place))[0]:
                yield found[0]
                place = found[1]
            if not follow or state in ENDED:
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)


def text_after(path: Path, place: int) -> tuple[str, int]:
    """A piece of a file from a place on, and the place after it."""
    if not path.exists():
        return "", place
    with path.open("rb") as file:
        file.seek(place)
        block = file.read(BYTES_AT_ONCE)
    return block.decode("utf-8", "replace"), place + len(block)
