"""The scene that the crash harness plays: two files in an inbox and three jobs, until all are done. It can be killed.

    python crash_scene.py STAGE

The stage has `recipe.yaml` and `inbox/` with its files. Every job that the store has answered is written down in a file
beside the stage.
"""

import os
import sys
import time
from pathlib import Path

from fake_run import append
from jobs_bench import FAKE_RUN
from tunewright.jobs.inbox import Inbox
from tunewright.jobs.scheduler import Scheduler, sole_service
from tunewright.jobs.store import Store

JOBS = {"plain": "sleep 0", "dies": "crash-once", "takes": "linger 0.8"}


def play(stage: Path) -> None:
    store = Store(stage / "store")
    with sole_service(store):
        for name, words in JOBS.items():
            add_once(store, stage, name, words)
        inbox = Inbox(store, stage / "inbox", stage / "recipe.yaml", seconds_at_rest=0.0)
        sys.executable = os.environ.get("SCENE_SUPERVISOR_PYTHON", sys.executable)
        scheduler = Scheduler(store, ("cpu", "gpu0"), FAKE_RUN)
        while not is_over(store, stage):
            inbox.tick()
            scheduler.tick()
            for job in store.jobs("WHERE state = 'failed'"):
                if "SCENE_IS_KILLED" in os.environ:
                    sys.exit(9)  # Every process of a kind is killed at this point: there is no end to come to.
                store.retry(job.id)
            time.sleep(0.02)


def add_once(store: Store, stage: Path, name: str, words: str) -> None:
    said = stage.parent / f"{stage.name}-acknowledged"
    if name in (said.read_text().split() if said.exists() else []):
        return  # It was answered: if it is lost now, that is to be seen.
    if not any(job.name == name for job in store.jobs()):
        store.add(name, words, store.root / name)
    append(said, name)


def is_over(store: Store, stage: Path) -> bool:
    all_done = len(store.jobs("WHERE state = 'done'")) == len(JOBS) + 2
    return all_done and len(list((stage / "inbox/archive").glob("*.receipt.json"))) == 2 and not open_arrivals(store)


def open_arrivals(store: Store) -> int:
    return int(store.rows("SELECT count(*) FROM arrivals WHERE state = 'working'")[0][0])


if __name__ == "__main__":
    play(Path(sys.argv[1]))
