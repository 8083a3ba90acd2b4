"""The rows of a review as they were prepared, in the order in which they are looked at: what a check noted comes first.

What is held of a row is where it begins; the row itself is read when it is asked for.
"""

import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path

from tunewright.errors import ArtifactError, JobNotFoundError
from tunewright.web.review.rows import ROWS, Facts, Head, head_from_json


@dataclass(frozen=True)
class Entry:
    """A row: its number in the file from 1, its head, and the row as JSON; empty for what is no row."""

    number: int
    head: Head
    text: bytes


class Sheet:
    """The rows of one review.

    Attributes:
        noted: the numbers of the rows that a check noted.
        unreadable: of what is no row.
        order: all numbers, the noted ones first.

    Raises:
        ArtifactError: they are not what was written.
    """

    def __init__(self, directory: Path, facts: Facts) -> None:
        self.path = directory / ROWS
        self.rows = facts.rows
        self.unreadable: set[int] = set()
        self.noted: set[int] = set()
        self._starts = array("Q")
        self._read(facts.rows_sha256)
        numbers = range(1, self.rows + 1)
        self.order = [*sorted(self.noted), *(number for number in numbers if number not in self.noted)]
        self._place = {number: place for place, number in enumerate(self.order)}

    def _read(self, expected: str) -> None:
        digest, start = hashlib.sha256(), 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    digest.update(line)
                    self._take(number, start, entry_of(number, line).head)
                    start += len(line)
        except (OSError, ValueError, KeyError, TypeError):
            raise self._damaged() from None
        if digest.hexdigest() != expected:
            raise self._damaged()

    def _take(self, number: int, start: int, head: Head) -> None:
        self._starts.append(start)
        if head.notes:
            self.noted.add(number)
        if not head.is_row:
            self.unreadable.add(number)

    def _damaged(self) -> ArtifactError:
        mend = "Move its directory away, and review the file anew."
        return ArtifactError(str(self.path), "it is not what was written", mend=mend)

    def entry(self, number: int) -> Entry:
        """A row.

        Raises:
            JobNotFoundError: there is none of this number.
        """
        if not 1 <= number <= self.rows:
            raise JobNotFoundError(f"row {number}", f"the file has {self.rows:,} rows")
        with self.path.open("rb") as file:
            file.seek(self._starts[number - 1])
            return entry_of(number, file.readline())

    def place(self, number: int) -> int:
        """Where a row stands in the order, from 0."""
        return self._place[number]

    def at(self, place: int) -> int | None:
        return self.order[place] if 0 <= place < len(self.order) else None


def entry_of(number: int, line: bytes) -> Entry:
    head, _, text = line.rstrip(b"\n").partition(b"\t")
    return Entry(number, head_from_json(json.loads(head)), text)
