"""Every decision of a review, appended to one file and flushed to disk before anybody is told that it is kept.

In: decisions. Out: for each row what stands, and what stood before. A line that a kill or a power cut tore off was
never confirmed, and is set aside; any other damage is an error, because what stood there was confirmed. Each line
counts on from the one before, so that none can be missing unseen.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tunewright.artifacts import flush_directory_entry
from tunewright.errors import ArtifactError, environment_error

State = Literal["undecided", "accepted", "edited", "rejected"]
STATES: tuple[State, ...] = ("undecided", "accepted", "edited", "rejected")
FIELDS = {"number": int, "row": int, "version": int, "state": str, "text": (str, type(None)), "time": (int, float)}


@dataclass(frozen=True)
class Decision:
    """What was decided on a row.

    Attributes:
        number: of the decision, over all rows, from 1.
        row: its number in the file, from 1.
        version: of the row's decisions, from 1.
        text: the new answer, of an edited row.
        undoes: the number of the decision that this one takes back; 0 for none.
    """

    number: int
    row: int
    version: int
    state: State
    text: str | None
    time: float
    undoes: int = 0


class Journal:
    """The decisions of one review. Not safe for several threads: who holds it locks it.

    Args:
        path: of the file; it is made with the first decision.
        rows: how many rows there are.

    Attributes:
        is_torn: whether a torn line was found; it is set aside beside the file.

    Raises:
        ArtifactError: the file is damaged.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.path = path
        self.rows = rows
        self.decisions: list[Decision] = []
        self._by_row: dict[int, list[Decision]] = {}
        self._taken_back: set[int] = set()
        self._end = 0
        self._has_failed = False
        self._read()

    def latest(self, row: int) -> Decision | None:
        found = self._by_row.get(row)
        return found[-1] if found else None

    def standing(self) -> Iterator[Decision]:
        """The latest decision on each row that has any."""
        return (found[-1] for found in self._by_row.values())

    def version(self, row: int) -> int:
        """How many decisions a row has."""
        return len(self._by_row.get(row, ()))

    def to_undo(self, row: int) -> Decision | None:
        """The last decision on a row that was not taken back."""
        return next((one for one in reversed(self._by_row.get(row, [])) if self._counts(one)), None)

    def before(self, decision: Decision) -> Decision | None:
        """What stood before a decision, as far as it was not taken back."""
        earlier = self._by_row[decision.row][: decision.version - 1]
        return next((one for one in reversed(earlier) if self._counts(one)), None)

    def last_to_undo(self) -> Decision | None:
        """The last decision of all that was not taken back."""
        return next((one for one in reversed(self.decisions) if self._counts(one)), None)

    def _counts(self, decision: Decision) -> bool:
        return not decision.undoes and decision.number not in self._taken_back

    def append(self, decision: Decision) -> None:
        """Keep a decision: once this returns, it is on the disk.

        Raises:
            TunewrightError: it could not be written; then nothing of it stays.
        """
        line = json.dumps(asdict(decision), ensure_ascii=False).encode() + b"\n"
        is_new = not self.path.exists()
        self._validate_end()
        try:
            with self.path.open("ab") as file:
                file.truncate(self._end)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                flush_directory_entry(self.path)
        except OSError as error:
            self._has_failed = True
            with suppress(OSError):
                os.truncate(self.path, self._end)
            raise environment_error(error) from None
        self._has_failed = False
        self._end += len(line)
        self._add(decision)

    def _validate_end(self) -> None:
        """The file ends where it was left, but for what a failed write of ours may have left behind."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._end and not self._has_failed:
            found = f"it has {size} bytes, {self._end} were written"
            raise ArtifactError(str(self.path), found, mend="Something else wrote to it. Start the service again.")

    def _add(self, decision: Decision) -> None:
        self.decisions.append(decision)
        self._by_row.setdefault(decision.row, []).append(decision)
        if decision.undoes:
            self._taken_back.add(decision.undoes)

    def _read(self) -> None:
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = split_lines(content)
        for index, line in enumerate(lines):
            decision = parsed(line)
            if decision is None and index == len(lines) - 1:
                break
            if decision is None or not self._follows(decision):
                raise self._damaged(index + 1)
            self._add(decision)
            self._end += len(line)
        self.is_torn = self._end < len(content)
        if self.is_torn:
            self.path.with_suffix(".torn").write_bytes(content[self._end :])
            os.truncate(self.path, self._end)

    def _follows(self, decision: Decision) -> bool:
        is_next = decision.number == len(self.decisions) + 1 and 1 <= decision.row <= self.rows
        return is_next and decision.version == self.version(decision.row) + 1 and decision.undoes < decision.number

    def _damaged(self, line: int) -> ArtifactError:
        mend = "Nothing was changed. Mend the line, or move the file away to begin anew."
        return ArtifactError(f"{self.path}:{line}", "it is no decision that follows those before it", mend=mend)


def split_lines(content: bytes) -> list[bytes]:
    """Lines with their ends; only LF ends one."""
    *whole, rest = content.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def parsed(line: bytes) -> Decision | None:
    """The decision of a whole line; None if it is none."""
    if not line.endswith(b"\n"):
        return None
    try:
        decision = Decision(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    is_sound = all(isinstance(getattr(decision, name), kind) for name, kind in FIELDS.items())  # type: ignore[arg-type]
    is_sound = is_sound and decision.state in STATES and isinstance(decision.undoes, int)
    return decision if is_sound and (decision.text is not None) == (decision.state == "edited") else None
