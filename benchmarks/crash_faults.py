"""What is wrong with a stage of the crash harness: jobs lost or done twice, results half published."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path


def row(number: int) -> str:
    return f'{{"row": {number}}}\n'


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
    yield from (f"{name} is there twice" for name, count in Counter(names_of_jobs(database)).items() if count > 1)
    database.close()


def names_of_jobs(database: sqlite3.Connection) -> list[str]:
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


def faults_at_once(stage: Path) -> list[str]:
    """What is wrong before anything goes on: jobs that were answered are lost, or results are half published."""
    try:
        with closing(sqlite3.connect(stage / "store/.service/jobs.sqlite")) as database:
            names = names_of_jobs(database)
    except sqlite3.Error:
        names = []
    lost = [f"the job {name} was answered and is lost" for name in acknowledged(stage) if name not in names]
    return [*lost, *half_published(stage)]


def half_published(stage: Path) -> list[str]:
    """What stands under its final name and is not whole, before anything goes on."""
    finals = [*stage.glob("store/.service/jobs/*/recipe.yaml"), *stage.glob("inbox/archive/*.json")]
    finals += [*stage.glob("store/.service/files/*/rows.jsonl"), *stage.glob("store/*/receipt-*.json")]
    return [f"{path.relative_to(stage)} is there, and empty" for path in finals if path.stat().st_size == 0]
