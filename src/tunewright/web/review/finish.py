"""The end of a review: a new file with the rows that stay, among the store's files as if it had been sent.

In: a review as it stands. Out: a file of JSON Lines in the order of the old one. A row that is kept stands there as it
was prepared; an edited one has its new answer, and all its other values, numbers by their digits, as they were. What
was rejected is left out, and so is what is no row.
"""

import hashlib
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tunewright.artifacts import write_json
from tunewright.errors import JobError, environment_error
from tunewright.jobs.inbox import keep_by_content
from tunewright.recipe import DataKeys
from tunewright.web.review.answer import with_answer
from tunewright.web.review.journal import Decision
from tunewright.web.review.reviews import Review, Reviews
from tunewright.web.review.rows import encoded, value_of
from tunewright.web.review.sheet import Entry, entry_of
from tunewright.web.uploads import validate_space

FINISHED = "finished.json"


@dataclass(frozen=True)
class Finished:
    """What came of a review.

    Attributes:
        path, sha256, bytes, rows: of the new file.
        accepted, edited, rejected, undecided, unreadable: rows of the old one; they add up.
        kept_undecided: whether the undecided rows are in the new file.
        decisions: how many there were then.
    """

    path: str
    sha256: str
    bytes: int
    rows: int
    accepted: int
    edited: int
    rejected: int
    undecided: int
    unreadable: int
    kept_undecided: bool
    decisions: int
    time: float


def finish(reviews: Reviews, number: str, files: Path, keep_undecided: bool) -> Finished:
    """Write the new file, and set down what came of it beside the decisions.

    Raises:
        JobError: no row would be left.
        EnvironmentLackError: the disk is too full.
    """
    with reviews.held(number) as review:
        standing = {one.row: one for one in review.journal.standing()}
        decisions = len(review.journal.decisions)
    validate_space(files, review.sheet.path.stat().st_size, "finish", "the new file")
    files.mkdir(exist_ok=True)
    temporary = files / f".upload-{secrets.token_hex(8)}"
    try:
        counts, size, sha256 = write_file(temporary, review, standing, keep_undecided)
        if not size:
            raise JobError("finish", "no row would be left", mend="Accept some rows, or keep the undecided ones.")
        path = keep_by_content(files, temporary, sha256, "rows.jsonl")
        left = counts["accepted"] + counts["edited"] + (counts["undecided"] if keep_undecided else 0)
        kinds = {kind: counts[kind] for kind in ("accepted", "edited", "rejected", "undecided", "unreadable")}
        found = Finished(
            str(path), sha256, size, left, **kinds, kept_undecided=keep_undecided, decisions=decisions, time=time.time()
        )
        with reviews.held(number):
            write_json(review.directory / FINISHED, asdict(found))
    except OSError as error:
        raise environment_error(error) from None
    finally:
        temporary.unlink(missing_ok=True)
    return found


def finished(review: Review) -> Finished | None:
    """What came of a review the last time; None before the first."""
    try:
        return Finished(**json.loads((review.directory / FINISHED).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def write_file(
    path: Path, review: Review, standing: Mapping[int, Decision], keep_undecided: bool
) -> tuple[Counter[str], int, str]:
    """How many rows of each state there were, and the size and SHA-256 of what was written and flushed."""
    counts: Counter[str] = Counter()
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for entry in entries(review):
            decision = standing.get(entry.number)
            state = state_of(entry, decision)
            counts[state] += 1
            if state in {"accepted", "edited"} or (state == "undecided" and keep_undecided):
                line = row_to_write(entry, decision, review.config) + b"\n"
                digest.update(line)
                size += len(line)
                file.write(line)
        file.flush()
        os.fsync(file.fileno())
    return counts, size, digest.hexdigest()


def entries(review: Review) -> Iterator[Entry]:
    with review.sheet.path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield entry_of(number, line)


def state_of(entry: Entry, decision: Decision | None) -> str:
    if not entry.head.is_row:
        return "unreadable"
    return decision.state if decision else "undecided"


def row_to_write(entry: Entry, decision: Decision | None, config: DataKeys) -> bytes:
    if decision is None or decision.text is None:
        return entry.text
    return encoded(with_answer(value_of(entry.text), entry.head.place.steps or (), decision.text, config))
