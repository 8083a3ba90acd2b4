"""A run that is killed in every stage ends with the same adapter, bit by bit, as one that was left alone."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from conftest import RUN_ENVIRONMENT, run_command
from tunewright.artifacts import RunDirectory
from tunewright.events import Event, Events, read_events
from tunewright.paths import verify_run
from tunewright.pipeline import STAGE_NAMES

SECONDS_TO_WAIT = 120


def kill_when(recipe: Path, run: Path, stage: str) -> None:
    """Start the run, and kill it without warning once it is at work in `stage`."""
    process = subprocess.Popen(
        run_command(recipe, run), stderr=subprocess.DEVNULL, env=RUN_ENVIRONMENT, start_new_session=True
    )
    seen = len(list(read_events(run / "events.jsonl")))
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while time.monotonic() < deadline and process.poll() is None:
        if any(is_time(event, stage) for event in list(read_events(run / "events.jsonl"))[seen:]):
            break
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_time(event: Event, stage: str) -> bool:
    """Whether the stage is at work; training is let alone until it has made some steps."""
    if stage == "train":
        return event["kind"] == "metric" and event.get("loss") is not None and event["step"] >= 7
    return bool(event["kind"] == "stage_started" and event["stage"] == stage)


@pytest.mark.slow
def test_a_run_killed_in_every_stage_gives_the_same_adapter_bit_by_bit(
    tiny_recipe: Path, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for stage in STAGE_NAMES:
        kill_when(tiny_recipe, run, stage)
    subprocess.run(run_command(tiny_recipe, run), check=True, capture_output=True, env=RUN_ENVIRONMENT)

    notes = [event["text"] for event in read_events(run / "events.jsonl") if event["kind"] == "note"]
    assert any(note.startswith("Going on from the checkpoint after step") for note in notes)
    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (finished_run / name).read_bytes()
    assert (run / "adapter/training.json").read_bytes() == (finished_run / "adapter/training.json").read_bytes()
    assert [item.name for item in verify_run(run, Events()) if item.verdict == "fail"] == []
    leftovers = [path.name for path in run.rglob(".*") if path.is_file() or path.name.startswith(".staging")]
    assert leftovers == []
    assert RunDirectory(run).differences(RunDirectory(run).require_manifest("train")) == []
