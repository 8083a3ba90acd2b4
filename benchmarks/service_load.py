"""How fast the service answers: its pages over many runs, and its status and streams while a job is at work.

    PYTHONPATH=src:tests python benchmarks/service_load.py pages [--runs 10000]
    PYTHONPATH=src:tests python benchmarks/service_load.py load [--seconds 10]
    PYTHONPATH=src:tests python benchmarks/service_load.py ends [--rounds 10]

`pages` fills a store with finished runs and ended jobs, and asks for the first pages: once cold, then twenty times.
`load` keeps two processes busy in the place of training, holds 50 streams of a run that grows all the while, and asks
for the status on 16 connections as fast as it is answered. A stream that misses an event, or has one twice, is a fault.
`ends` kills a job's process, then the one that stands over its next attempt, and tells the service to stop, with 50
streams open. The figures are those of the machine as it was: the load before and after is printed with them.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil

from fake_run import append
from jobs_bench import wait_until
from tunewright.jobs.job import MARK, Attempt, Job
from tunewright.jobs.processes import identity_from_json, kill_marked
from tunewright.jobs.store import Store, insert_job, move
from web_bench import service

STAGES = ("data", "render", "plan", "train", "merge", "export", "verify", "evaluate", "report")
PAGES = ("/", "/runs", "/runs?text=run-99", "/parts/home", "/api/v1/runs?limit=50")
CONNECTIONS = 16
STREAMS = 50
EVENTS_A_SECOND = 40
SECONDS_TO_CATCH_UP = 60.0
GOALS = {"page": 0.2, "requests a second": 300, "p99": 0.1, "stop": 2.0, "death": 1.0}
BURNERS = 2


def fill(store: Store, count: int) -> None:
    """Finished runs with their jobs, as they lie on the disk after a year."""
    manifest = json.dumps({"facts": {"base": "owner/base", "best_eval_loss": 0.5, "seconds": 1.0}, "files": {}})
    for index in range(count):
        run = store.root / f"run-{index}"
        (run / "manifests").mkdir(parents=True)
        for stage in STAGES:
            (run / f"manifests/{stage}.json").write_text(manifest)
        (run / "certificate.json").write_text('{"verdict": "pass"}')
    with store.transaction() as database:
        for index in range(count):
            run = store.root / f"run-{index}"
            job = insert_job(database, run.name, "data: x", run, 0, (), (), "")
            move(database, job, "done")


def pages(runs: int) -> bool:
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place) / "store")
        fill(store, runs)
        with service(store.root) as (process, client):
            fast = [is_fast(client, psutil.Process(process.pid), path) for path in PAGES]
            return all(fast)


def is_fast(client: httpx.Client, process: psutil.Process, path: str) -> bool:
    """Whether the page comes in time; on a busy machine the service's own processor time says more."""
    cold, before = seconds_of(client, path), process.cpu_times()
    warm = [seconds_of(client, path) for _ in range(20)]
    after = process.cpu_times()
    own = (after.user + after.system - before.user - before.system) / len(warm)
    say(f"{path:<24} first {cold * 1000:6.0f} ms, then median {statistics.median(warm) * 1000:5.0f} ms,"
        f" slowest {max(warm) * 1000:5.0f} ms; {own * 1000:4.0f} ms of processor time each")  # fmt: skip
    return statistics.median(warm) <= GOALS["page"]


def seconds_of(client: httpx.Client, path: str) -> float:
    started = time.monotonic()
    client.get(path, headers={"accept": "text/html"}).raise_for_status()
    return time.monotonic() - started


def load(seconds: float) -> bool:
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place) / "store")
        (store.root / "grows").mkdir()
        with service(store.root) as (_, client):
            token = (store.private / "token").read_text()
            return asyncio.run(measure(client.base_url, token, store.root / "grows/events.jsonl", seconds))


async def measure(url: httpx.URL, token: str, events: Path, seconds: float) -> bool:
    events.touch()
    seen: list[list[int]] = [[] for _ in range(STREAMS)]
    streams = [asyncio.create_task(listen(url, token, steps)) for steps in seen]
    burn = (sys.executable, "-c", "while True: pass")
    busy = [await asyncio.create_subprocess_exec(*burn) for _ in range(BURNERS)]
    writer = asyncio.create_task(grow(events, seconds))
    started = time.monotonic()
    answers = await asyncio.gather(*(ask(url, token, started + seconds) for _ in range(CONNECTIONS)))
    took = time.monotonic() - started
    written = await writer
    deadline = time.monotonic() + SECONDS_TO_CATCH_UP
    while any(len(steps) < written for steps in seen) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    for stream in streams:
        stream.cancel()
    for process in busy:
        process.kill()
        await process.wait()
    times = sorted(time for each in answers for time in each)
    p99 = times[int(0.99 * len(times))]
    whole = sum(steps == list(range(written)) for steps in seen)
    figures = f"median {statistics.median(times) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"
    say(f"{len(times) / took:.0f} requests a second, {figures}")
    say(f"{whole} of {STREAMS} streams had each of {written} events once")
    return len(times) / took >= GOALS["requests a second"] and p99 < GOALS["p99"] and whole == STREAMS


async def connect(url: httpx.URL, token: str, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    reader, writer = await asyncio.open_connection(url.host, url.port)
    return (
        reader,
        writer,
        f"GET {path} HTTP/1.1\r\nhost: {url.host}:{url.port}\r\nauthorization: Bearer {token}\r\n\r\n".encode(),
    )


async def ask(url: httpx.URL, token: str, until: float) -> list[float]:
    """Seconds of each answer on one connection."""
    reader, writer, request = await connect(url, token, "/api/v1/status")
    times = []
    while time.monotonic() < until:
        started = time.monotonic()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        times.append(time.monotonic() - started)
        if b" 200 " not in head[:20]:
            sys.exit(head.decode())
    writer.close()
    return times


async def listen(url: httpx.URL, token: str, steps: list[int]) -> None:
    """Set down the steps that a stream tells of, in their order."""
    reader, writer, request = await connect(url, token, "/api/v1/runs/grows/events")
    writer.write(request)
    while line := await reader.readline():
        if line.startswith(b"data: "):
            steps.append(json.loads(line[6:])["step"])


async def grow(events: Path, seconds: float) -> int:
    """Write steps into a run's events, as training does; how many."""
    step, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        append(events, json.dumps({"kind": "metric", "step": step, "loss": 1 / (step + 1)}))
        step += 1
        await asyncio.sleep(1 / EVENTS_A_SECOND)
    return step


def ends(rounds: int) -> bool:
    """Whether deaths are known, and stops done, in time."""
    found = [seconds_of_ends() for _ in range(rounds)]
    workers, supervisors, stops = zip(*found, strict=True)
    for name, times in (("worker's death", workers), ("supervisor's death", supervisors), ("stop", stops)):
        say(f"{name}: median {statistics.median(times):.2f} s, slowest {max(times):.2f} s of {rounds}")
    return bool(max(workers + supervisors) <= GOALS["death"] and max(stops) <= GOALS["stop"])


def seconds_of_ends() -> tuple[float, float, float]:
    """Until a killed job was known to be dead, then the killed process above it, and until the service had stopped."""
    with tempfile.TemporaryDirectory() as place:
        store = Store(Path(place) / "store")
        job = store.add("one", "sleep 60", store.root / "one")
        with service(store.root) as (process, client), ExitStack() as opened:
            for _ in range(STREAMS):
                opened.enter_context(client.stream("GET", "/api/v1/events", timeout=None))
            worker = until_killed(store, job, 0, lambda attempt: attempt.worker_pid)
            supervisor = until_killed(store, job, 1, lambda attempt: identity_from_json(attempt.supervisor).pid)
            process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            process.wait()
            stop = time.monotonic() - started
        for attempt in store.held():
            kill_marked(MARK, attempt.token)
    return worker, supervisor, stop


def until_killed(store: Store, job: Job, number: int, pid: Callable[[Attempt], int | None]) -> float:
    """Seconds from the kill of a process of an attempt until the store says that it has ended."""
    wait_until(lambda: len(store.attempts(job.id)) > number and store.attempts(job.id)[number].worker_pid)
    os.kill(pid(store.attempts(job.id)[number]) or 0, signal.SIGKILL)
    return wait_until(lambda: store.attempts(job.id)[number].ended)


def say(words: str) -> None:
    print(words, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["pages", "load", "ends"])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=10)
    words = parser.parse_args()
    say(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    modes = {
        "pages": lambda: pages(words.runs),
        "load": lambda: load(words.seconds),
        "ends": lambda: ends(words.rounds),
    }
    is_good = modes[words.mode]()
    say(f"load after: {os.getloadavg()[0]:.1f}; {'as it should be' if is_good else 'NOT as it should be'}")
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
