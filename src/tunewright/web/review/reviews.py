"""The reviews of a store: rows with what was decided on them, one decision at a time.

A decision is made upon a version of its row: the number of decisions that the row had when it was looked at. If it has
more by now, somebody else decided meanwhile, and the new decision is refused with what stands. All reviews share one
lock, and the last few stay in memory.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tunewright.data.faults import RowError
from tunewright.errors import ArtifactError, JobError, JobNotFoundError
from tunewright.recipe import DataKeys
from tunewright.web.review.answer import broken_by, is_same, text_at, with_answer
from tunewright.web.review.journal import Decision, Journal, State
from tunewright.web.review.rows import Facts, read_facts, value_of
from tunewright.web.review.sheet import Entry, Sheet

ID = r"^[0-9a-f]{32}$"
MOST_OPEN = 4
Wish = Literal["accept", "reject", "undo"]
Shown = Literal["undecided", "accepted", "edited", "rejected", "unreadable"]
Filter = Literal["all", "noted", "undecided", "accepted", "edited", "rejected", "unreadable"]
VERBS = {"undecided": "open again", "accepted": "accepted", "edited": "edited", "rejected": "rejected"}


class Review:
    """One review.

    Raises:
        ArtifactError: its rows or decisions are damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts: Facts = read_facts(directory)
        self.config = DataKeys(**self.facts.keys)
        self.sheet = Sheet(directory, self.facts)
        self.journal = Journal(directory / "decisions.jsonl", self.facts.rows)

    def state(self, row: int) -> Shown:
        if row in self.sheet.unreadable:
            return "unreadable"
        latest = self.journal.latest(row)
        return latest.state if latest else "undecided"

    def summary(self) -> dict[str, Any]:
        """How far the review is."""
        facts, counts = self.facts, Counter(one.state for one in self.journal.standing())
        unreadable = len(self.sheet.unreadable)
        decided = counts["accepted"] + counts["edited"] + counts["rejected"]
        return {
            **{key: getattr(facts, key) for key in ("id", "name", "sha256", "created", "rows")},
            "undecided": facts.rows - unreadable - decided,
            **{state: counts[state] for state in ("accepted", "edited", "rejected")},
            "unreadable": unreadable,
            "noted": len(self.sheet.noted),
            "decided": decided,
            "decisions": len(self.journal.decisions),
            "is_torn": self.journal.is_torn,
        }

    def rows_like(self, wanted: Filter) -> list[int]:
        """The numbers of rows of a kind, in the order in which they are looked at."""
        if wanted == "noted":
            return [row for row in self.sheet.order if row in self.sheet.noted]
        return [row for row in self.sheet.order if wanted in {"all", self.state(row)}]

    def next_undecided(self, row: int) -> int | None:
        """The next row after one that nothing was decided on, from the beginning again after the last."""
        order = self.sheet.order
        place = self.sheet.place(row) + 1 if 1 <= row <= self.facts.rows else 0
        return next((one for one in (*order[place:], *order[:place]) if self.state(one) == "undecided"), None)

    def answer(self, entry: Entry) -> str | None:
        """The answer as the file has it; None where it is not in one place."""
        steps = entry.head.place.steps
        return None if steps is None else text_at(value_of(entry.text), steps)

    def decide(self, row: int, wish: Wish, version: int, text: str | None = None, anyway: bool = False) -> Decision:
        """Keep a decision; once this returns it is not lost.

        Args:
            version: of the row, as it was looked at.
            text: the answer to accept; if it is not the file's, the row is edited.
            anyway: keep it although it breaks the form of the old one.

        Raises:
            JobError: it is no row, it was decided on meanwhile, or the decision makes no sense.
        """
        entry = self.sheet.entry(row)
        if not entry.head.is_row:
            raise JobError(f"row {row}", "it is no row, and no file can take it over")
        self._validate_version(row, version)
        if wish == "undo":
            state, kept, undoes = self._before(row)
        else:
            state, kept, undoes = *self._wanted(entry, wish, text, anyway), 0
        number = len(self.journal.decisions) + 1
        decision = Decision(number, row, version + 1, state, kept, round(time.time(), 3), undoes)
        self.journal.append(decision)
        return decision

    def _validate_version(self, row: int, version: int) -> None:
        latest = self.journal.latest(row)
        if latest is not None and latest.version != version:
            found = f"it was decided on meanwhile, elsewhere: now it is {VERBS[latest.state]}"
            raise JobError(f"row {row}", found, mend="Load the page again to see it, then decide.")
        if latest is None and version:
            raise JobError(f"row {row}", "nothing was decided on it yet", "version 0")

    def _before(self, row: int) -> tuple[State, str | None, int]:
        """What stood before the last decision on a row that was not taken back."""
        undone = self.journal.to_undo(row)
        if undone is None:
            raise JobError(f"row {row}", "there is no decision to take back")
        before = self.journal.before(undone)
        return (before.state, before.text, undone.number) if before else ("undecided", None, undone.number)

    def _wanted(self, entry: Entry, wish: Wish, text: str | None, anyway: bool) -> tuple[State, str | None]:
        if wish == "reject":
            return "rejected", None
        answer = self.answer(entry)
        if text is None or (answer is not None and is_same(answer, text)):
            return "accepted", None
        if answer is None:
            raise JobError(f"row {entry.number}", entry.head.place.why, "a decision without another answer")
        self._validate_answer(entry, answer, text, anyway)
        return "edited", text

    def _validate_answer(self, entry: Entry, answer: str, text: str, anyway: bool) -> None:
        where, steps = f"row {entry.number}", entry.head.place.steps
        try:
            with_answer(value_of(entry.text), steps or (), text, self.config)
        except RowError as fault:
            raise JobError(where, f"the new answer cannot be learned ({fault.reason})") from None
        broken = broken_by(answer, text)
        if broken and not anyway:
            raise JobError(where, broken, mend="Mend it, or say that you mean it (`anyway`): tick “keep it anyway”.")


class Reviews:
    """All reviews of a store."""

    def __init__(self, private: Path) -> None:
        self.root = private / "reviews"
        self._lock = threading.Lock()
        self._open: dict[str, Review] = {}

    @contextmanager
    def held(self, number: str) -> Iterator[Review]:
        """A review, for this thread alone.

        Raises:
            JobNotFoundError: there is no such review.
            ArtifactError: it is damaged.
        """
        if not re.fullmatch(ID, number):
            raise JobNotFoundError(f"review {number[:40]}", "there is no such review")
        with self._lock:
            if not (self.root / number).is_dir():
                self._open.pop(number, None)
                raise JobNotFoundError(f"review {number}", "there is no such review")
            review = self._open.pop(number, None) or Review(self.root / number)
            self._open[number] = review
            while len(self._open) > MOST_OPEN:
                del self._open[next(iter(self._open))]
            yield review

    def all(self) -> list[Facts]:
        """What there are reviews of, the newest first."""
        found = []
        for directory in self.root.glob("[0-9a-f]*"):
            with suppress(ArtifactError):
                found.append(read_facts(directory))
        return sorted(found, key=lambda facts: facts.created, reverse=True)
