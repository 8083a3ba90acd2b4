"""The rows of a file, ready to be reviewed: read once by the readers of a run, and kept as they were.

In: a file of any kind that is read. Out: a directory that appears whole or not at all, with `review.json` and
`rows.jsonl`: one line for each row, a head as JSON, a tab, and the row as JSON. A row of JSON Lines or Parquet stands
there byte for byte; one of a table or an array as JSON text of the same values. What is no row at all (broken JSON, a
record with too many cells) has its head alone.
"""

import hashlib
import json
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunewright.artifacts import flush_directory_entry, flush_to_disk, sha256_of_file, sha256_of_json, write_json
from tunewright.data.exact_json import Json, json_text, parse_json
from tunewright.data.faults import RowError
from tunewright.data.read import Record, Row, Source, read_rows
from tunewright.errors import ArtifactError, DataError
from tunewright.recipe import DataKeys
from tunewright.web.review.answer import Place, Steps, place_of
from tunewright.web.uploads import validate_space

REVIEW, ROWS = "review.json", "rows.jsonl"
MOST_ROWS = 200_000
BYTES_BETWEEN_CHECKS = 1 << 24
MOST_NOTES = 20
MOST_NOTE = 300
Notes = Mapping[str, "Noted"]


@dataclass
class Noted:
    """What a check said of a row that had this hash."""

    sha256: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Facts:
    """What a review is of.

    Attributes:
        id: stands for the file's content and for how its rows are read.
        name: of the file, as the check named it.
        sha256: of the file.
        rows_sha256: of `rows.jsonl`.
        keys: of the recipe, as far as they say how rows are read.
    """

    id: str
    name: str
    sha256: str
    rows_sha256: str
    rows: int
    keys: dict[str, Any]
    created: float


@dataclass(frozen=True)
class Head:
    """What is known of a row besides itself.

    Attributes:
        id: as in the ledger.
        place: where its answer stands.
        notes: what the check found in it.
        is_row: False for what is no row at all; `place.why` says why.
    """

    id: str
    place: Place
    notes: tuple[str, ...] = ()
    is_row: bool = True

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, **asdict(self.place), "notes": self.notes, "is_row": self.is_row}


def head_from_json(data: dict[str, Any]) -> Head:
    steps: Steps | None = None if data["steps"] is None else tuple(data["steps"])
    return Head(data["id"], Place(steps, data["why"]), tuple(data["notes"]), data["is_row"])


def prepare(source: Source, config: DataKeys, notes: Notes, reviews: Path) -> Facts:
    """Make the review of a file, or find the one that is there.

    Raises:
        DataError: the file cannot be read, has too many rows, or changed while it was read.
    """
    sha256 = sha256_of_file(source.path)
    keys = keys_of(config)
    number = sha256_of_json({"file": sha256, **keys})[:32]
    final = reviews / number
    if final.is_dir():
        return read_facts(final)
    for left_over in reviews.glob(".new-*"):  # one is made at a time; this one was killed
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = reviews / f".new-{secrets.token_hex(8)}"
    temporary.mkdir(parents=True, mode=0o700)
    try:
        count, rows_sha256 = write_rows(temporary / ROWS, source, config, notes)
        if sha256_of_file(source.path) != sha256:
            raise DataError(str(source.path), "it changed while it was read", mend="Ask again when it is at rest.")
        facts = Facts(number, source.label, sha256, rows_sha256, count, keys, time.time())
        write_json(temporary / REVIEW, asdict(facts))
        publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_facts(final)


def keys_of(config: DataKeys) -> dict[str, Any]:
    given = {"columns": dict(config.columns), "roles": dict(config.roles)}
    return {key: value for key, value in given.items() if value}


def publish(temporary: Path, final: Path) -> None:
    """Give it its name; one that is there already stays, because decisions lie in it."""
    flush_to_disk(temporary)
    with suppress(OSError):
        temporary.rename(final)
    if not final.is_dir():
        raise ArtifactError(str(final), "it could not be made", mend="Ask again.")
    flush_directory_entry(final)


def read_facts(directory: Path) -> Facts:
    """What a review is of.

    Raises:
        ArtifactError: it is not there, or damaged.
    """
    path = directory / REVIEW
    try:
        return Facts(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise ArtifactError(str(path), "there is no such review") from None
    except (ValueError, TypeError, RecursionError):
        raise ArtifactError(str(path), "it is damaged", mend="Move the directory away and begin anew.") from None


def write_rows(path: Path, source: Source, config: DataKeys, notes: Notes) -> tuple[int, str]:
    """How many rows were written, and the SHA-256 of them all."""
    digest, count, unchecked = hashlib.sha256(), 0, BYTES_BETWEEN_CHECKS
    with path.open("wb") as file:
        for row in read_rows(source):
            count += 1
            if count > MOST_ROWS:
                found = f"it has more than {MOST_ROWS:,} rows"
                raise DataError(str(source.path), found, mend="Review it in parts: split the file.")
            line = line_of(row, config, notes)
            unchecked += len(line)
            if unchecked >= BYTES_BETWEEN_CHECKS:
                validate_space(path.parent, len(line), str(path.parent))
                unchecked = 0
            digest.update(line)
            file.write(line)
    return count, digest.hexdigest()


def line_of(row: Row, config: DataKeys, notes: Notes) -> bytes:
    noted = notes.get(row.id)
    said = tuple(noted.notes[:MOST_NOTES]) if noted and noted.sha256 == row.sha256 else ()
    head, text = read_one(row, config, said)
    return json.dumps(head.as_json(), ensure_ascii=True).encode() + b"\t" + text + b"\n"


def read_one(row: Row, config: DataKeys, notes: tuple[str, ...]) -> tuple[Head, bytes]:
    """The head of a row, and the row; nothing for what is none."""
    record = row.record
    try:
        if record.fault is not None:
            raise record.fault
        text = record.raw if is_json_line(record) else encoded(record.value)
        return Head(row.id, place_of(record.value, config), notes), text
    except RowError as fault:
        return Head(row.id, Place(None, f"It is no row ({fault.reason})."), notes, is_row=False), b""
    except RecursionError:
        return Head(row.id, Place(None, "It is nested too deeply."), notes, is_row=False), b""


def is_json_line(record: Record) -> bool:
    """Whether the bytes of a row are its JSON on one line, and not a record of a table."""
    if b"\n" in record.raw or b"\r" in record.raw:
        return False
    try:
        return bool(parse_json(record.raw.decode()) == record.value)
    except RowError:
        return False


def encoded(value: Json) -> bytes:
    """A row as JSON on one line; half characters, which no UTF-8 holds, as the escapes that they came as."""
    return json_text(value).encode("utf-8", "backslashreplace")


def value_of(text: bytes) -> Json:
    return parse_json(text.decode())


# What the check said


def notes_of(ledger: Path, evidence: Sequence[dict[str, Any]], file: str) -> Notes:
    """What a check's ledger and findings say of the rows of a file, by their ids."""
    found: dict[str, Noted] = {}
    for line in ledger_lines(ledger, file):
        found[line["row"]] = Noted(line["sha256"], notes_of_line(line))
        if len(found) > MOST_ROWS:
            return {}  # the file itself will be refused
    for item in evidence:
        for row in item.get("rows", []) if item.get("verdict") != "pass" else []:
            name = str(row.get("row", "")).partition("#")[0]
            noted_row = found.get(name) or found.get(name.rpartition("/")[0])
            if noted_row is not None:
                noted_row.notes.append(short(f"{str(item['name']).replace('_', ' ')}: {row.get('excerpt', '')}"))
    return {name: noted for name, noted in found.items() if noted.notes}


def ledger_lines(ledger: Path, file: str) -> Iterator[dict[str, Any]]:
    with suppress(FileNotFoundError), ledger.open("rb") as lines:
        for line in lines:
            found = json.loads(line)
            if found["file"] == file:
                yield found


def notes_of_line(line: dict[str, Any]) -> list[str]:
    """Why a row was rejected, where it could be read otherwise, and what was mended in it."""
    repairs = Counter(repair["what"] for repair in line["repairs"])
    notes = [line["reason"], line["uncertain"], *(f"repaired: {what}" for what in repairs)]
    return [short(note) for note in notes if note]


def short(text: str) -> str:
    return text if len(text) <= MOST_NOTE else f"{text[:MOST_NOTE]}…"
