"""Kill everything at every point, and cut the power, and see that no job is lost, run twice or half published.

    python benchmarks/crash_harness.py kill [--points 500]     SIGKILL at the N-th call of a kind, by strace
    python benchmarks/crash_harness.py power [--points 50]     copies of a mounted ext4 image, taken while it is written
    python benchmarks/crash_harness.py self                    with a flush or a rename taken out, both must find fault

Needs Linux, root, strace; `power` also a loop device and mkfs.ext4. What it plays is a small scene: an inbox with two
files, three more jobs, one of which dies once, and a service that is started again until all are done. After every kill
the scene is played to its end, and `faults` says what is wrong then.
"""

import argparse
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from crash_faults import acknowledged, faults, faults_at_once, row

ROOT = Path(__file__).resolve().parents[1]
SCENE = ROOT / "tests" / "crash_scene.py"
# Every call by which the store, the supervisor or the inbox changes what is on the disk, or starts and ends processes.
CALLS = (
    *("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "mkdir", "ftruncate", "fcntl"),
    *("clone,clone3,vfork", "execve", "kill", "close", "memfd_create", "flock", "pselect6", "wait4"),
)
SECONDS_FOR_A_SCENE = 240
IMAGE_MIB = 24
# Marks every process of a scene, so that none outlives it and writes where the next one is played.
MARK = "SCENE_STAGE"


@dataclass
class Tally:
    points: int = 0
    kills: int = 0
    faults: int = 0

    def count(self, where: str, found: list[str]) -> None:
        self.points += 1
        self.faults += bool(found)
        for fault in found:
            say(f"{where}: {fault}")


def environment(stage: Path, without: str = "") -> dict[str, str]:
    """With `without`, every process of the scene does without something that it must not do without."""
    paths = [*([str(ROOT / "benchmarks/without")] if without else []), str(ROOT / "src"), str(ROOT / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SCENE_WITHOUT": without, MARK: str(stage)}


@dataclass(frozen=True)
class Point:
    """Where somebody is killed: when it makes a call for the N-th time."""

    who: str
    call: str
    when: int

    @property
    def strace(self) -> list[str]:
        injection = [f"trace={self.call}", f"inject={self.call}:signal=KILL:when={self.when}"]
        return [program("strace"), "-qq", "-o", "/dev/null", "-e", injection[0], "-e", injection[1]]


def play(stage: Path, point: Point | None = None, without: str = "") -> int:
    """Play the scene once, to its end or to the kill; its exit code.

    Raises:
        subprocess.TimeoutExpired: it does not come to its end, and nobody killed it.
    """
    command, surroundings = [sys.executable, str(SCENE), str(stage)], environment(stage, without)
    if point is not None:
        surroundings["SCENE_IS_KILLED"] = "1"
    if point is not None and point.who == "service":
        command = [*point.strace, *command]
    elif point is not None:
        # The scheduler starts supervisors with this in the place of Python.
        python = stage.parent / "python"
        python.write_text(f'#!/bin/sh\nexec {" ".join(point.strace)} {sys.executable} "$@"\n')
        python.chmod(0o755)
        surroundings["SCENE_SUPERVISOR_PYTHON"] = str(python)
    with subprocess.Popen(
        command, env=surroundings, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as scene:
        try:
            return scene.wait(SECONDS_FOR_A_SCENE)
        except subprocess.TimeoutExpired:
            os.killpg(scene.pid, signal.SIGKILL)
            raise


@contextmanager
def new_place() -> Iterator[Path]:
    """A directory for a scene; what is left of the scene is killed before it goes."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        try:
            yield Path(place)
        finally:
            while left := processes_in(Path(place)):
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.05)


def processes_in(place: Path) -> list[int]:
    """The living processes of a scene that is played somewhere in the directory."""
    mark, found = f"{MARK}={place}/".encode(), []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            # What has ended and only waits to be reaped has no environment any more.
            if entry.name.isdecimal() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def count_calls() -> dict[tuple[str, str], int]:
    """How often the service, and the busiest supervisor, make each call in a whole scene."""
    with tempfile.TemporaryDirectory() as place:
        stage, trace = new_stage(Path(place)), Path(place) / "trace"
        command = [program("strace"), "-f", "-qq", "-s", "200", "-o", str(trace), "-e", f"trace={','.join(CALLS)}"]
        subprocess.run([*command, sys.executable, str(SCENE), str(stage)], env=environment(stage), check=True)
        lines = [line.partition(" ") for line in trace.read_text(errors="replace").splitlines()]
    who = {lines[0][0]: "service"}
    who |= {pid: "supervisor" for pid, _, rest in lines if "execve(" in rest and "jobs.supervisor" in rest}
    seen = Counter((pid, rest.strip().partition("(")[0]) for pid, _, rest in lines if pid in who)
    most: dict[tuple[str, str], int] = {}
    for (pid, call), count in seen.items():
        group = next((calls for calls in CALLS if call in calls.split(",")), None)
        if group:
            most[who[pid], group] = max(most.get((who[pid], group), 0), count)
    return most


def new_stage(place: Path) -> Path:
    stage = place / "stage"
    (stage / "inbox").mkdir(parents=True)
    (stage / "recipe.yaml").write_text("data: rows.jsonl\n")
    for number in (1, 2):
        (stage / f"inbox/rows{number}.jsonl").write_text(row(number))
    return stage


def kill_points(points: int, calls: Sequence[str], seed: int = 7) -> list[Point]:
    """Points spread evenly over who makes which call, and over the lives of short processes and of long ones."""
    counts = {key: count for key, count in count_calls().items() if key[1] in calls}
    chosen = [Point(*key, when) for key, share in shares(counts, points).items() for when in spread(counts[key], share)]
    random.Random(seed).shuffle(chosen)  # noqa: S311
    return chosen


def spread(count: int, share: int) -> list[int]:
    """So many of the numbers from 1 to `count`, the small ones closer together."""
    chosen: set[int] = set()
    for number in range(share):
        when = round(count ** (number / max(1, share - 1)))
        while when in chosen:
            when += 1
        chosen.add(when)
    return sorted(when for when in chosen if when <= count)


def shares(counts: dict[tuple[str, str], int], points: int) -> dict[tuple[str, str], int]:
    """How many points each call gets: the same for all, and no more than there are calls."""
    left, result = points, dict.fromkeys(counts, 0)
    while left > 0 and any(result[call] < counts[call] for call in counts):
        for call in counts:
            if result[call] < counts[call] and left > 0:
                result[call], left = result[call] + 1, left - 1
    return result


def kill(points: int, at_once: int = 1, without: str = "", calls: Sequence[str] = CALLS) -> Tally:
    """Kill at each point, play on until all is done, and look; so many scenes are played at once."""
    tally = Tally()
    with ThreadPoolExecutor(at_once) as crew:
        for point, killed, found in crew.map(partial(kill_at, without=without), kill_points(points, calls)):
            tally.kills += killed
            tally.count(f"{point.who} {point.call} {point.when}", found)
            if tally.points % 20 == 0:
                say(f"... {tally.points} points, {tally.kills} kills, {tally.faults} with faults")
    say(f"{tally.points} points, {tally.kills} kills, {tally.faults} with faults")
    return tally


def kill_at(point: Point, without: str) -> tuple[Point, bool, list[str]]:
    """Whether somebody met the point, and what was wrong at once or when all was done."""
    with new_place() as place:
        stage = new_stage(place)
        killed = was_killed(stage, play(stage, point, without))
        return point, killed, faults_at_once(stage) or finish(stage, without)


def was_killed(stage: Path, code: int) -> bool:
    """Whether the service or a supervisor met its point."""
    if code == 0:
        with closing(sqlite3.connect(stage / "store/.service/jobs.sqlite")) as database:
            return bool(
                database.execute("SELECT 1 FROM history WHERE reason LIKE '%supervisor was killed%'").fetchall()
            )
    return True


def finish(stage: Path, without: str = "") -> list[str]:
    try:
        code = play(stage, without=without)
    except subprocess.TimeoutExpired:
        return ["the scene does not come to its end any more"]
    return [f"the scene failed with exit code {code}"] if code else faults(stage)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        sys.exit(f"{name} is missing. Install it with the system's packages.")
    return found


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    # Renames must not be made safe by the file system, or a missing flush would not be seen.
    options = "loop,noauto_da_alloc,commit=1"
    subprocess.run([program("mount"), "-o", options, str(image), str(at)], check=True, capture_output=True)
    try:
        yield at
    finally:
        while subprocess.run([program("umount"), str(at)], check=False, capture_output=True).returncode:
            time.sleep(0.1)


def power(points: int, without: str = "") -> Tally:
    """Copy the image at as many moments of scenes, and see what a machine would find that starts from it."""
    tally = Tally()
    while tally.points < points:
        with new_place() as place:
            cuts = take_cuts(place, min(10, points - tally.points), without)
            for cut in cuts:
                tally.count(f"power cut {cut.name}", faults_after_cut(place, cut))
    say(f"{tally.points} power cuts, {tally.faults} with faults")
    return tally


def take_cuts(place: Path, count: int, without: str) -> list[Path]:
    """Copies of the image at moments of one scene."""
    image, cuts = place / "disk", []
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    subprocess.run([program("mkfs.ext4"), "-q", "-F", str(image)], check=True, capture_output=True)
    with mounted(image, place / "mnt") as disk:
        stage = new_stage(disk)
        os.sync()
        command = [sys.executable, str(SCENE), str(stage)]
        with subprocess.Popen(command, env=environment(stage, without), stderr=subprocess.DEVNULL) as scene:
            for number in range(count):
                time.sleep(0.25)
                # What was answered before the copy is begun has to be found in it.
                (place / f"said-{number}").write_text(" ".join(acknowledged(stage)))
                cuts.append(place / f"cut-{number}")
                shutil.copy(image, cuts[-1])
            scene.wait()
    return cuts


def faults_after_cut(place: Path, cut: Path) -> list[str]:
    with mounted(cut, place / "mnt") as disk:
        if not (disk / "stage/inbox").exists():
            return ["the stage itself is gone"]
        (disk / "stage-acknowledged").write_text((place / cut.name.replace("cut", "said")).read_text())
        return faults_at_once(disk / "stage") or finish(disk / "stage")


# What is taken out, and how that is to be found: by kills at these calls, or without any by power cuts.
MUTATIONS: dict[str, tuple[str, Sequence[str]]] = {
    "rename": ("artifacts are written under their final names", ("write", "fsync", "close")),
    "ending": ("a worker outlives its supervisor, and nobody ends it", ("pselect6", "pwrite64", "fcntl")),
    "fsync": ("no file is flushed", ()),
    "store-fsync": ("the store is not flushed", ()),
}


def try_the_harness(points: int, at_once: int) -> bool:
    """Whether each mutation is found."""
    found_all = True
    for name, (words, calls) in MUTATIONS.items():
        faults = (kill(points, at_once, name, calls) if calls else power(points, name)).faults
        say(f"without {name} ({words}): {'found' if faults else 'NOT FOUND'}, at {faults} of {points} points")
        found_all = found_all and faults > 0
    return found_all


def say(words: str) -> None:
    print(words, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["kill", "power", "self"])
    parser.add_argument("--points", type=int, help="default: 500, 50, and 40 of each kind")
    parser.add_argument("--at-once", type=int, default=1, help="scenes that are played beside each other")
    words = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if words.mode == "self":
        sys.exit(not try_the_harness(words.points or 40, words.at_once))
    tally = kill(words.points or 500, words.at_once) if words.mode == "kill" else power(words.points or 50)
    sys.exit(tally.faults > 0)


if __name__ == "__main__":
    main()
