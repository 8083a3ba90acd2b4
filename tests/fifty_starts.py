"""Fifty processes that start on one store at the same moment; each writes down what it got.

usage: python fifty_starts.py STORE

A program of its own, since it forks: in a process with threads a lock that one of them holds stays held in children.
"""

import multiprocessing
import sys
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path

from tunewright.errors import TunewrightError
from tunewright.jobs.processes import own_identity
from tunewright.jobs.scheduler import sole_service
from tunewright.jobs.store import Store

AT_ONCE = 50


def start_once(barrier: Barrier, root: str, number: int, everyone: Barrier) -> None:
    """Try to own everything that has one owner, and write down what was got."""
    barrier.wait()
    store = Store(Path(root))
    got = []
    try:
        with sole_service(store):
            got.append("service")
            everyone.wait()
    except TunewrightError:
        everyone.wait()
    with suppress(TunewrightError):
        store.add("one", "", store.root / "one")
        got.append("job")
    got += ["attempt"] if store.claim(["cpu"]) else []
    got += ["run"] if store.begin(1, 1, own_identity()) else []
    Path(root, f"got-{number}").write_text(" ".join(got))


def main(root: str) -> int:
    """The number of processes that failed."""
    context = multiprocessing.get_context("fork")
    barrier, everyone = context.Barrier(AT_ONCE), context.Barrier(AT_ONCE)
    processes = [context.Process(target=start_once, args=(barrier, root, index, everyone)) for index in range(AT_ONCE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return sum(process.exitcode != 0 for process in processes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
