"""Kill everything at every point, and cut the power, and see that no job is lost, run twice or half published.

    python benchmarks/crash_harness.py kill [--points 500]     SIGKILL at the N-th call of a kind, by strace
    python benchmarks/crash_harness.py power [--points 50]     copies of a mounted ext4 image, taken while it is written
    python benchmarks/crash_harness.py self                    with a flush or a rename taken out, both must find fault

Needs Linux, root, strace; `power` also a loop device and mkfs.ext4. What it plays is a small scene: an inbox with two
files, three more jobs, one of which dies once, and a service that is started again until all are done. After every kill
the scene is played to its end, and `faults` says what is wrong then.
"""

import argparse
import json
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
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCENE = ROOT / "tests" / "crash_scene.py"
# Every call by which the store, the supervisor or the inbox changes what is on the disk, or starts and ends processes.
CALLS = (
    *("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "mkdir", "ftruncate", "fcntl"),
    *("clone,clone3,vfork", "execve", "kill", "close", "memfd_create", "flock", "pselect6", "wait4"),
)
SECONDS_TO_THE_KILL = 60
SECONDS_TO_THE_END = 60
IMAGE_MIB = 24


@dataclass
class Tally:
    points: int = 0
    kills: int = 0
    faults: int = 0


def environment(without: str = "") -> dict[str, str]:
    """With `without`, every process of the scene does without something that it must not do without."""
    paths = [*([str(ROOT / "benchmarks/without")] if without else []), str(ROOT / "src"), str(ROOT / "tests")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "SCENE_WITHOUT": without}


def play(stage: Path, inject: list[str], without: str = "") -> int:
    """Play the scene once, to its end or to the kill; its exit code.

    Raises:
        subprocess.TimeoutExpired: it does not come to its end, and nobody killed it.
    """
    strace = [program("strace"), "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", *inject] if inject else []
    command = [*strace, sys.executable, str(SCENE), str(stage)]
    seconds = SECONDS_TO_THE_KILL if inject else SECONDS_TO_THE_END
    surroundings = environment(without) | ({"SCENE_IS_KILLED": "1"} if inject else {})
    with subprocess.Popen(
        command, env=surroundings, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as scene:
        try:
            return scene.wait(seconds)
        except subprocess.TimeoutExpired:
            # strace goes first, as it would otherwise wait; its scene is killed as any service may be.
            os.killpg(scene.pid, signal.SIGKILL)
            if not inject:
                raise
            return -signal.SIGKILL


def faults(stage: Path) -> list[str]:
    """What is wrong with a stage on which the scene has ended; empty if nothing is."""
    return [*faults_of_the_book(stage), *faults_of_runs(stage), *faults_of_the_inbox(stage)]


def faults_of_the_book(stage: Path) -> Iterator[str]:
    database = sqlite3.connect(stage / "store/.service/jobs.sqlite")
    damage = database.execute("PRAGMA integrity_check").fetchone()[0]
    if damage != "ok":
        yield f"the store is damaged: {damage}"
        return
    names = {row[0]: row[1] for row in database.execute("SELECT name, state FROM jobs")}
    for name in acknowledged(stage):
        if names.get(name) != "done":
            yield f"the job {name} was answered and is {names.get(name, 'lost')}"
    if database.execute("SELECT count(*) FROM attempts WHERE ended IS NULL").fetchone()[0]:
        yield "a lease is held when all is done"
    yield from (f"{name} is there twice" for name, count in Counter(_job_names(database)).items() if count > 1)
    database.close()


def _job_names(database: sqlite3.Connection) -> list[str]:
    return [row[0] for row in database.execute("SELECT name FROM jobs")]


def acknowledged(stage: Path) -> list[str]:
    path = stage.parent / f"{stage.name}-acknowledged"
    return path.read_text().split() if path.exists() else []


def faults_of_runs(stage: Path) -> Iterator[str]:
    for run in sorted((stage / "store").iterdir()):
        if run.name.startswith("."):
            continue
        yield from (f"{run.name}: {word}" for word in ("TWICE", "OVERLAP") if (run / word).exists())
        with suppress(FileNotFoundError):
            if not is_json(run / "result.json"):
                yield f"{run.name}: its result is half published"


def faults_of_the_inbox(stage: Path) -> Iterator[str]:
    inbox = stage / "inbox"
    kept = Counter(path.read_text() for path in inbox.rglob("*.jsonl") if not path.name.startswith("."))
    for number in (1, 2):
        if kept[row(number)] != 1:
            yield f"the file {number} of the inbox is there {kept[row(number)]} times"
    receipts = [*inbox.glob("archive/*.receipt.json"), *(stage / "store").glob("*/receipt-*.json")]
    yield from (f"{path.name} is no receipt" for path in receipts if not is_json(path))
    if len(list(inbox.glob("archive/*.receipt.json"))) != 2:
        yield "a file of the inbox has no receipt"
    for copy in (stage / "store/.service/files").glob("*/rows.jsonl"):
        if not copy.read_text().startswith('{"row": '):
            yield f"{copy}: the copy in the store is not the file"


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def count_calls(without: str) -> dict[str, int]:
    """How often a whole scene makes each call in its busiest process, so that points can be spread over all of them."""
    with tempfile.TemporaryDirectory() as place:
        stage, trace = new_stage(Path(place)), Path(place) / "trace"
        command = [program("strace"), "-f", "-qq", "-o", str(trace), "-e", f"trace={','.join(CALLS)}"]
        subprocess.run([*command, sys.executable, str(SCENE), str(stage)], env=environment(without), check=True)
        seen: Counter[tuple[str, str]] = Counter()
        for line in trace.read_text(errors="replace").splitlines():
            process, _, rest = line.partition(" ")
            seen[process, rest.strip().partition("(")[0]] += 1
    most: dict[str, int] = {}
    for (_, call), count in seen.items():
        group = next((calls for calls in CALLS if call in calls.split(",")), None)
        if group:
            most[group] = max(most.get(group, 0), count)
    return most


def new_stage(place: Path) -> Path:
    stage = place / "stage"
    (stage / "inbox").mkdir(parents=True)
    (stage / "recipe.yaml").write_text("data: rows.jsonl\n")
    for number in (1, 2):
        (stage / f"inbox/rows{number}.jsonl").write_text(row(number))
    return stage


def row(number: int) -> str:
    return f'{{"row": {number}}}\n'


def kill_points(points: int, calls: Sequence[str], seed: int = 7) -> list[tuple[str, int]]:
    """Points spread evenly over the calls, and over the lives of short processes as well as of long ones."""
    counts = {call: count for call, count in count_calls("").items() if call in calls}
    random_order = random.Random(seed)  # noqa: S311
    chosen = {(call, when) for call, share in shares(counts, points).items() for when in spread(counts[call], share)}
    ordered = sorted(chosen)
    random_order.shuffle(ordered)
    return ordered


def spread(count: int, share: int) -> list[int]:
    """So many of the numbers from 1 to `count`, the small ones closer together."""
    chosen: set[int] = set()
    for number in range(share):
        when = round(count ** (number / max(1, share - 1)))
        while when in chosen:
            when += 1
        chosen.add(when)
    return sorted(when for when in chosen if when <= count)


def shares(counts: dict[str, int], points: int) -> dict[str, int]:
    """How many points each call gets: the same for all, and no more than there are calls."""
    left, result = points, dict.fromkeys(counts, 0)
    while left > 0 and any(result[call] < counts[call] for call in counts):
        for call in counts:
            if result[call] < counts[call] and left > 0:
                result[call], left = result[call] + 1, left - 1
    return result


def kill(points: int, without: str = "", calls: Sequence[str] = CALLS) -> Tally:
    """Kill at each point, play on until all is done, and look."""
    tally = Tally()
    for call, when in kill_points(points, calls):
        with tempfile.TemporaryDirectory() as place:
            stage = new_stage(Path(place))
            injection = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"]
            killed = play(stage, injection, without)
            tally.kills += killed != 0
            found = faults_at_once(stage) or finish(stage, without)
        tally.points += 1
        tally.faults += bool(found)
        for fault in found:
            say(f"{call} {when}: {fault}")
        if tally.points % 50 == 0:
            say(f"... {tally.points} points, {tally.faults} with faults")
    say(f"{tally.points} points, {tally.kills} kills of the service itself, {tally.faults} with faults")
    return tally


def finish(stage: Path, without: str = "") -> list[str]:
    try:
        code = play(stage, [], without)
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
        with tempfile.TemporaryDirectory() as place:
            cuts = take_cuts(Path(place), min(10, points - tally.points), without)
            for cut in cuts:
                found = faults_after_cut(Path(place), cut)
                tally.points += 1
                tally.faults += bool(found)
                for fault in found:
                    say(f"power cut {cut.name}: {fault}")
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
        with subprocess.Popen(command, env=environment(without), stderr=subprocess.DEVNULL) as scene:
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


def faults_at_once(stage: Path) -> list[str]:
    """What is wrong before anything goes on: jobs that were answered are lost, or results are half published."""
    try:
        with closing(sqlite3.connect(stage / "store/.service/jobs.sqlite")) as database:
            names = _job_names(database)
    except sqlite3.Error:
        names = []
    lost = [f"the job {name} was answered and is lost" for name in acknowledged(stage) if name not in names]
    return [*lost, *half_published(stage)]


def half_published(stage: Path) -> list[str]:
    """What stands under its final name and is not whole, before anything goes on."""
    finals = [*stage.glob("store/.service/jobs/*/recipe.yaml"), *stage.glob("inbox/archive/*.json")]
    finals += [*stage.glob("store/.service/files/*/rows.jsonl"), *stage.glob("store/*/receipt-*.json")]
    return [f"{path.relative_to(stage)} is there, and empty" for path in finals if path.stat().st_size == 0]


# What is taken out, and how that is to be found: by kills at these calls, or without any by power cuts.
MUTATIONS: dict[str, tuple[str, Sequence[str]]] = {
    "rename": ("artifacts are written under their final names", ("write", "fsync", "close")),
    "ending": ("a worker outlives its supervisor, and nobody ends it", ("pselect6", "pwrite64", "kill")),
    "fsync": ("no file is flushed", ()),
    "store-fsync": ("the store is not flushed", ()),
}


def test_the_harness(points: int) -> bool:
    """Whether each mutation is found."""
    found_all = True
    for name, (words, calls) in MUTATIONS.items():
        faults = (kill(points, name, calls) if calls else power(points, name)).faults
        say(f"without {name} ({words}): {'found' if faults else 'NOT FOUND'}, at {faults} of {points} points")
        found_all = found_all and faults > 0
    return found_all


MODES = {"kill": kill, "power": power}


def say(words: str) -> None:
    print(words, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=[*MODES, "self"])
    parser.add_argument("--points", type=int, default=0)
    words = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if words.mode == "self":
        sys.exit(not test_the_harness(words.points or 40))
    tally = MODES[words.mode](words.points or {"kill": 500, "power": 50}[words.mode])
    sys.exit(tally.faults > 0)


if __name__ == "__main__":
    main()
