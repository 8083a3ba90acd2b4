"""Jobs on a hard day: fifty at once, a clock that jumps, a full disk, and a real run that is stopped and goes on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from conftest import RUN_ENVIRONMENT, run_command
from jobs_bench import add, finish_all, new_store, scheduler_of, wait_until
from tunewright.artifacts import RunDirectory
from tunewright.events import read_events
from tunewright.jobs.scheduler import Scheduler
from tunewright.jobs.store import Store
from tunewright.recipe import read_recipe

FIFTY_STARTS = Path(__file__).with_name("fifty_starts.py")
ROUNDS = 20
DAY = 24 * 3600
REAL_RUN_SECONDS = 600


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield from new_store(tmp_path / "store")


@pytest.mark.slow
def test_of_fifty_starts_at_once_one_owns_the_store_the_run_the_slot_and_the_attempt(tmp_path: Path) -> None:
    for number in range(ROUNDS):
        root = tmp_path / f"store-{number}"
        root.mkdir()
        subprocess.run([sys.executable, str(FIFTY_STARTS), str(root)], check=True, timeout=120)
        got = " ".join(path.read_text() for path in root.glob("got-*")).split()
        assert sorted(got) == ["attempt", "job", "run", "service"]


@pytest.mark.slow
@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_clock_that_jumps_by_a_day_loses_no_lease(store: Store, tmp_path: Path, jump: int) -> None:
    """The service that comes after the jump sees another time than the supervisor that runs on."""
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        pytest.skip("libfaketime is not installed")
    job = add(store, "one", "sleep 2")
    scheduler = scheduler_of(store)
    wait_until((job.run_dir / "starts").exists, scheduler)
    script = (
        "import sys, time; from pathlib import Path; from tunewright.jobs.scheduler import Scheduler\n"
        "from tunewright.jobs.store import Store; scheduler = Scheduler(Store(Path(sys.argv[1])), ('cpu',))\n"
        "for _ in range(5): scheduler.tick()\n"
        "print(time.time())"
    )
    environment = {**os.environ, "LD_PRELOAD": str(libraries[0]), "FAKETIME": f"{jump:+d}s"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    command = [sys.executable, "-c", script, str(store.root)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    shown = float(answer.stdout)
    assert abs(shown - store.attempts(job.id)[0].started - jump) < 60, "the clock has jumped"
    finish_all(scheduler)
    assert store.job(job.id).state == "done"
    assert len(store.attempts(job.id)) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting takes root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill the disk but for so many bytes."""
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(b"x" * max(0, free - leave))
    return filler


@pytest.mark.slow
@pytest.mark.parametrize("leave", [0, 8192, 65536, 300_000])
def test_a_full_disk_is_told_and_what_was_queued_goes_on_when_space_is_freed(small_disk: Path, leave: int) -> None:
    """From a disk that takes no page more of the store to one on which only the run does not fit."""
    store = Store(small_disk / "store")
    jobs = [add(store, name, "write 400000") for name in ("one", "two")]
    filler = fill(small_disk, leave)
    scheduler = scheduler_of(store)
    for _ in range(40):
        scheduler.tick()
        subprocess.run(["sleep", "0.05"], check=True)
    assert [store.job(job.id).state in {"queued", "starting", "running"} for job in jobs] == [True, True]
    told = [scheduler.problem, *(store.job(job.id).reason for job in jobs)]
    assert any("full" in text or "space" in text for text in told), told
    filler.unlink()
    finish_all(scheduler)
    assert [store.job(job.id).state for job in jobs] == ["done", "done"]


@pytest.mark.slow
def test_a_real_run_that_is_stopped_saves_its_step_and_ends_as_if_it_had_been_left_alone(
    tiny_recipe: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_enough = {"num_train_epochs": 12, "save_steps": 1000, "name": "tiny"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(read_recipe(tiny_recipe, long_enough).model_dump()))
    left_alone = tmp_path / "left-alone"
    until = ["--until", "train"]
    subprocess.run([*run_command(recipe, left_alone), *until], check=True, capture_output=True, env=RUN_ENVIRONMENT)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = store.add("one", read_recipe(recipe, {}).as_yaml(), store.root / "one", arguments=until)
    scheduler = Scheduler(store, ("cpu",))
    wait_until(lambda: steps_of(job.run_dir) >= 20, scheduler, at_most=REAL_RUN_SECONDS)
    store.want(job.id, "stop")
    wait_until(lambda: store.job(job.id).state == "stopped", scheduler, at_most=REAL_RUN_SECONDS)
    saved = steps_of(job.run_dir)
    assert [path.name for path in (job.run_dir / "checkpoints").iterdir()] == [f"step-{saved:06d}"]

    store.retry(job.id)
    finish_all(scheduler, at_most=REAL_RUN_SECONDS)
    assert store.job(job.id).state == "done", store.job(job.id).reason
    for name in ("adapter/adapter_model.safetensors", "adapter/training.json"):
        assert (job.run_dir / name).read_bytes() == (left_alone / name).read_bytes()
    assert RunDirectory(job.run_dir).differences(RunDirectory(job.run_dir).require_manifest("train")) == []


def steps_of(run: Path) -> int:
    """The last step that the events tell of."""
    steps = [event["step"] for event in read_events(run / "events.jsonl") if "learning_rate" in event]
    return max(steps, default=0)
