"""Jobs as processes: they run, end, are stopped and retried, and outlive whatever started them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs_bench import FAKE_RUN, add, finish_all, is_running, new_store, scheduler_of, wait_until
from tunewright.errors import JobError
from tunewright.jobs import processes
from tunewright.jobs.job import MARK, Attempt
from tunewright.jobs.processes import LEASE_SECONDS
from tunewright.jobs.scheduler import Scheduler, silent_attempts
from tunewright.jobs.store import Store
from tunewright.jobs.supervisor import Grace, supervise


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield from new_store(tmp_path / "store")


def states_of(store: Store, job: int) -> list[str]:
    return [item["state"] for item in store.history(job)]


def supervisor_pid(attempt: Attempt) -> int:
    return int(json.loads(attempt.supervisor)["pid"])


def running(store: Store, scheduler: Scheduler, job: int) -> Attempt:
    """The job's attempt, once its worker is known to be at work."""
    wait_until(lambda: store.attempts(job) and store.attempts(job)[-1].worker_pid, scheduler)
    wait_until(lambda: (store.job(job).run_dir / "starts").exists())
    return store.attempts(job)[-1]


def test_a_job_runs_to_its_end_and_its_history_says_how(store: Store) -> None:
    job = add(store, "one")
    finish_all(scheduler_of(store))
    assert states_of(store, job.id) == ["queued", "starting", "running", "done"]
    assert store.attempts(job.id)[0].exit_code == 0
    assert (job.run_dir / "result.json").exists()


def test_a_failure_is_told_in_the_words_of_the_run(store: Store) -> None:
    job = add(store, "one", "fail no role")
    finish_all(scheduler_of(store))
    assert store.job(job.id).state == "failed"
    assert store.job(job.id).reason == "rows.jsonl:3: no role. Mend it."


def test_a_gate_that_fails_waits_for_a_person_who_may_accept_it(store: Store) -> None:
    job = add(store, "one", "exit 3")
    scheduler = scheduler_of(store)
    finish_all(scheduler)
    assert store.job(job.id).state == "gate"
    assert store.retry(job.id, accept=["leakage"]).arguments == ["--accept", "leakage"]
    assert store.job(job.id).state == "queued"


def test_what_has_priority_starts_first_and_what_is_needed_before_it(store: Store) -> None:
    first = add(store, "first")
    urgent = add(store, "urgent", priority=5)
    needing = add(store, "needing", priority=9, needs=(first.id,))
    finish_all(scheduler_of(store))
    started = {job.name: store.attempts(job.id)[0].started for job in (first, urgent, needing)}
    assert sorted(started, key=lambda name: started[name]) == ["urgent", "first", "needing"]


def test_a_job_waits_while_what_it_needs_has_failed_and_starts_after_its_retry(store: Store) -> None:
    needed = add(store, "needed", "crash-once", "exit 1")
    needing = add(store, "needing", needs=(needed.id,))
    scheduler = scheduler_of(store)
    wait_until(lambda: store.job(needed.id).state == "failed", scheduler)
    scheduler.tick()
    assert store.job(needing.id).state == "queued"
    (needed.run_dir / "result.json").write_text("{}")
    store.retry(needed.id)
    finish_all(scheduler)
    assert store.job(needing.id).state == "done"


def test_each_gpu_has_one_job_at_a_time_and_the_job_sees_no_other(store: Store) -> None:
    scheduler = scheduler_of(store, ("gpu0", "gpu3"))
    jobs = [add(store, f"job{index}", "sleep 1") for index in range(4)]
    wait_until(lambda: len(store.held()) == 2, scheduler)
    assert {attempt.slot for attempt in store.held()} == {"gpu0", "gpu3"}
    scheduler.tick()
    assert len(store.held()) == 2
    finish_all(scheduler)
    assert all(store.job(job.id).state == "done" for job in jobs)


def test_a_job_that_stops_when_asked_is_stopped_and_goes_on_when_retried(store: Store) -> None:
    job = add(store, "one", "sleep 20")
    scheduler = scheduler_of(store)
    running(store, scheduler, job.id)
    store.want(job.id, "stop")
    seconds = wait_until(lambda: store.job(job.id).state == "stopped", scheduler)
    assert seconds < 15, "it ran to its own end"
    assert store.attempts(job.id)[0].exit_code == 130
    assert store.retry(job.id).state == "queued"


def test_a_killed_supervisor_is_seen_long_before_its_lease_ends_and_leaves_nothing_running(
    store: Store,
) -> None:
    job = add(store, "one", "child", "sleep 60")
    scheduler = scheduler_of(store)
    attempt = running(store, scheduler, job.id)
    wait_until((job.run_dir / "child").exists)
    child = int((job.run_dir / "child").read_text())
    os.kill(supervisor_pid(attempt), signal.SIGKILL)
    assert wait_until(lambda: len(store.attempts(job.id)) > 1, scheduler) < LEASE_SECONDS / 2
    assert processes.processes_marked(MARK, attempt.token) == []
    assert not is_running(child)
    store.want(job.id, "cancel")
    wait_until(lambda: store.job(job.id).state == "cancelled", scheduler)
    assert not (job.run_dir / "OVERLAP").exists()


def test_a_job_that_is_deaf_is_killed_with_all_that_it_started(store: Store) -> None:
    job = add(store, "one", "deaf", "child", "sleep 60")
    attempt = store.claim(["cpu"])
    assert attempt is not None
    wish = threading.Thread(
        target=lambda: (wait_until((job.run_dir / "child").exists), Store(store.root).want(job.id, "stop"))
    )
    wish.start()
    supervise(store, job.id, 1, list(FAKE_RUN), Grace(stop=0.3, terminate=0.3))
    wish.join()
    assert store.job(job.id).state == "stopped"
    assert store.attempts(job.id)[0].exit_code == -signal.SIGKILL
    assert not is_running(int((job.run_dir / "child").read_text()))


def test_a_job_that_waits_is_cancelled_at_once(store: Store) -> None:
    job = add(store, "one")
    assert store.want(job.id, "cancel").state == "cancelled"
    with pytest.raises(JobError, match="it is cancelled already"):
        store.want(job.id, "cancel")


def test_a_worker_that_is_killed_is_seen_long_before_its_lease_ends_and_started_again(store: Store) -> None:
    job = add(store, "one", "crash-once")
    scheduler = scheduler_of(store)
    finish_all(scheduler)
    first, second = store.attempts(job.id)
    assert (first.exit_code, second.exit_code) == (-signal.SIGKILL, 0)
    assert first.ended is not None
    assert first.ended - (job.run_dir / "crashed").stat().st_mtime < LEASE_SECONDS / 2


def test_a_job_that_dies_every_time_is_left_alone(store: Store) -> None:
    job = add(store, "one", "crash")
    finish_all(scheduler_of(store))
    assert store.job(job.id).state == "failed"
    assert "that was 3 times" in store.job(job.id).reason
    assert len(store.attempts(job.id)) == 3


def test_a_supervisor_that_never_starts_is_not_started_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add(store, "one")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    finish_all(scheduler_of(store))
    assert store.job(job.id).state == "failed"
    assert len(store.attempts(job.id)) == 3


def test_a_job_that_still_runs_is_adopted_by_the_next_service(store: Store) -> None:
    job = add(store, "one", "sleep 3")
    script = f"""
import sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
from jobs_bench import scheduler_of
from tunewright.jobs.store import Store
import os, signal
scheduler = scheduler_of(Store(Path({str(store.root)!r})))
while not Path({str(job.run_dir / "starts")!r}).exists(): scheduler.tick()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert store.job(job.id).state == "running"
    finish_all(scheduler_of(store))
    assert store.job(job.id).state == "done"
    assert len((job.run_dir / "starts").read_text().split()) == 1, "it is not started again"


def test_a_claim_whose_service_died_before_it_started_anything_is_freed(store: Store) -> None:
    job = add(store, "one")
    assert store.claim(["cpu"]) is not None
    finish_all(scheduler_of(store))
    assert store.job(job.id).state == "done"
    assert store.job(job.id).crashes == 0


def test_a_supervisor_that_comes_too_late_starts_nothing(store: Store) -> None:
    job = add(store, "one")
    attempt = store.claim(["cpu"])
    assert attempt is not None
    store.abandon(attempt, "the service was restarted", crashed=False)
    words = [str(store.root), str(job.id), "1", *FAKE_RUN]
    subprocess.run([sys.executable, "-m", "tunewright.jobs.supervisor", *words], check=True)
    assert not (job.run_dir / "starts").exists()
    assert store.job(job.id).state == "queued"


def test_attempts_of_an_earlier_boot_are_freed_without_blame(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add(store, "one")
    attempt = store.claim(["cpu"])
    assert attempt is not None
    with monkeypatch.context() as patch:
        patch.setattr(processes, "boot_id", lambda: "another boot")
        assert store.begin(job.id, 1, processes.own_identity()) is not None
    finish_all(scheduler_of(store))
    assert store.job(job.id).state == "done"
    assert store.job(job.id).crashes == 0


def test_a_frozen_supervisor_keeps_its_lease_and_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add(store, "one", "sleep 2")
    scheduler = scheduler_of(store)
    attempt = running(store, scheduler, job.id)
    pid = supervisor_pid(attempt)
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(0.3)
        monkeypatch.setattr("tunewright.jobs.scheduler.LEASE_SECONDS", 0.2)
        scheduler.tick()
        assert [item.job for item in silent_attempts(store)] == [job.id]
        assert len(store.attempts(job.id)) == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    finish_all(scheduler)
    assert store.job(job.id).state == "done"


def test_a_run_directory_has_one_active_job(store: Store) -> None:
    add(store, "one")
    with pytest.raises(JobError, match="job 1 is at work on this run"):
        add(store, "one")


def test_a_full_disk_is_waited_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add(store, "one", "full")
    scheduler = scheduler_of(store)
    wait_until(lambda: store.job(job.id).needs_free_bytes, scheduler)
    assert store.job(job.id).state == "queued"
    assert store.job(job.id).reason.startswith("waits for free disk space")
    monkeypatch.setattr("tunewright.jobs.store.free_bytes", lambda path: 0)
    scheduler.tick()
    assert store.job(job.id).state == "queued"
    (store.root / "freed").touch()
    monkeypatch.setattr("tunewright.jobs.store.free_bytes", lambda path: 1 << 60)
    finish_all(scheduler)
    assert store.job(job.id).state == "done"
