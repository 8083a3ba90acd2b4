"""The service as a process: its port, its stop, its streams, and what a kill leaves."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jobs_bench import add, new_store, wait_until
from tunewright.errors import EnvironmentLackError, JobError
from tunewright.jobs.scheduler import sole_service
from tunewright.jobs.store import Store
from tunewright.web.ports import bind, next_free
from web_bench import events_of, free_port, service, start_service, wait_for_state


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield from new_store(tmp_path / "store")


def test_a_service_stops_with_streams_open_and_its_job_runs_on(store: Store) -> None:
    job = add(store, "one", "sleep 4")
    with service(store.root) as (process, client):
        wait_for_state(client, job.id, "running")
        seen: list[str] = []
        for _ in range(3):
            threading.Thread(target=read_to_end, args=(client, seen), daemon=True).start()
        wait_until(lambda: seen == ["open"] * 3 and (job.run_dir / "starts").exists())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
        wait_until(lambda: seen == ["open"] * 3 + ["ended"] * 3)
    wait_until(lambda: store.job(job.id).state == "done")
    assert len((job.run_dir / "starts").read_text().split()) == 1


def read_to_end(client: httpx.Client, seen: list[str]) -> None:
    """Append that the stream is open, and that it has ended as a stream does."""
    with client.stream("GET", "/api/v1/events") as response:
        seen.append("open")
        for _ in response.iter_lines():
            pass
    seen.append("ended")


def test_a_service_that_is_killed_is_followed_by_one_that_goes_on(store: Store) -> None:
    jobs = [add(store, f"job{index}", f"sleep {seconds}") for index, seconds in enumerate((3, 0.1, 0.1))]
    with service(store.root) as (process, client):
        wait_for_state(client, 1, "running")
        process.kill()
    with service(store.root) as (_, client):
        for job in jobs:
            wait_for_state(client, job.id, "done")
    assert [len((job.run_dir / "starts").read_text().split()) for job in jobs] == [1, 1, 1]


def test_a_second_service_of_a_store_names_the_first(store: Store) -> None:
    with service(store.root) as (process, client):
        with pytest.raises(JobError) as refused, sole_service(store):
            pass
        assert f"process {process.pid} at {str(client.base_url).rstrip('/')}" in str(refused.value)


def test_a_taken_port_is_named_with_its_holder_and_the_next_free_one() -> None:
    port = free_port()
    with bind("127.0.0.1", port):
        with pytest.raises(EnvironmentLackError) as refused:
            bind("127.0.0.1", port)
        assert f"process {os.getpid()}" in refused.value.found
        assert f"--port {next_free('127.0.0.1', port)}" in refused.value.mend


def test_a_taken_port_leaves_every_job_untouched(store: Store) -> None:
    job = add(store, "one")
    port = free_port()
    with bind("127.0.0.1", port), start_service(store.root, port) as process:
        assert "the port is taken" in process.communicate(timeout=60)[1]
    assert store.job(job.id).state == "queued"


def test_a_stream_that_breaks_off_goes_on_without_loss_or_doubles(store: Store) -> None:
    run = store.root / "run"
    run.mkdir()
    lines = [
        {"kind": "metric", "step": step, "loss": float("nan") if step == 3 else 1 / (step + 1)} for step in range(60)
    ]
    events = run / "events.jsonl"
    events.write_text("".join(json.dumps(line) + "\n" for line in lines[:30]) + '{"kind": "half')
    with service(store.root) as (_, client):
        path = "/api/v1/runs/run/events"
        first = events_of(client, path, 20)
        rest = events_of(client, path, 10, after=first[-1][0])
        whole = events.read_text().rpartition("\n")[0] + "\n"
        events.write_text(whole + "".join(json.dumps(line) + "\n" for line in lines[30:]))
        rest += events_of(client, path, 30, after=rest[-1][0])
    steps = [event["step"] for _, event in first + rest]
    assert steps == list(range(60))
    assert first[3][1]["loss"] is None


def test_changes_of_jobs_are_streamed_as_they_come(store: Store) -> None:
    add(store, "one")
    with service(store.root) as (_, client):
        seen = events_of(client, "/api/v1/events", 4)
    assert [event["state"] for _, event in seen] == ["queued", "starting", "running", "done"]
