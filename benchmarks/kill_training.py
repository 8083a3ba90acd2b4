"""A training that is killed again and again, against one that is left alone: the adapters' bytes.

usage: python benchmarks/kill_training.py RECIPE [--kills 50] [--steps 120] [KEY=VALUE...]

Each time SIGKILL falls at a random moment of the steps that come next, within a step as well as between two; the same
command goes on. On the CPU both adapters have to be the same, bit by bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tunewright.artifacts import RunDirectory, sha256_of_file
from tunewright.events import read_events

SECONDS_TO_WAIT = 600
ADAPTER = Path("adapter/adapter_model.safetensors")


def command_for(recipe: Path, run: Path, overrides: list[str]) -> list[str]:
    options = [part for override in overrides for part in ("-o", override)]
    return [sys.executable, "-m", "tunewright", "run", str(recipe), "--run-dir", str(run), "--until", "train", *options]


def steps_done(run: Path) -> int:
    """Steps of which there is a record in the events, those that are done twice counted twice."""
    return sum(event["kind"] == "metric" and "loss" in event for event in read_events(run / "events.jsonl"))


def kill_while_training(command: list[str], run: Path, rng: random.Random) -> int:
    """Kill the run a random while after it has made a step or two; the steps it was seen to make."""
    before = steps_done(run)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    wanted, deadline = before + rng.randint(1, 2), time.monotonic() + SECONDS_TO_WAIT
    while process.poll() is None and steps_done(run) < wanted and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return steps_done(run) - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)  # noqa: S311
    overrides = [f"max_steps={arguments.steps}", "save_steps=1", *arguments.overrides]
    with tempfile.TemporaryDirectory() as scratch:
        alone, killed = Path(scratch) / "alone", Path(scratch) / "killed"
        subprocess.run(command_for(arguments.recipe, alone, overrides), check=True, capture_output=True)
        kills = 0
        for _ in range(arguments.kills):
            kill_while_training(command_for(arguments.recipe, killed, overrides), killed, rng)
            if RunDirectory(killed).manifest("train") is not None:
                break
            kills += 1
        subprocess.run(command_for(arguments.recipe, killed, overrides), check=True, capture_output=True)
        same = sha256_of_file(alone / ADAPTER) == sha256_of_file(killed / ADAPTER)
        print(f"{kills} kills in {arguments.steps} steps, of which {steps_done(killed)} were made: ", end="")
        print("the adapters are the same, bit by bit" if same else "the adapters differ")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
