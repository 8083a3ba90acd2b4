"""The ledger as a check reads it: the fates counted, and where each kind of repair and rejection came up first."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.check.outcome import ROWS_NAMED, Fates, Kind, NamedRow

# In a line of JSON text only the fate itself can read so: quotes within a string are escaped.
PLAIN = b'"fate": "kept"'


@dataclass
class Tally:
    """Kinds with how often each came up and its first rows.

    Attributes:
        due: how many first rows are still to be found where the counts are known beforehand; else endless.
    """

    counts: Counter[str] = field(default_factory=Counter)
    rows: dict[str, list[NamedRow]] = field(default_factory=dict)
    due: float = float("inf")

    @classmethod
    def expecting(cls, counts: Mapping[str, int]) -> "Tally":
        return cls(due=sum(min(count, ROWS_NAMED) for count in counts.values()))

    def add(self, what: str, row: NamedRow) -> None:
        self.counts[what] += 1
        self.due -= note(self.rows.setdefault(what, []), row)

    def kinds(self, counts: Mapping[str, int] | None = None) -> tuple[Kind, ...]:
        """The most frequent first, with the counts that were known beforehand if there are any."""
        counted = Counter(self.counts if counts is None else counts)
        return tuple(Kind(what, count, tuple(self.rows.get(what, ()))) for what, count in counted.most_common())


@dataclass
class Told:
    """What the lines of a ledger tell."""

    fates: Counter[str] = field(default_factory=Counter)
    repaired: int = 0
    repairs: Tally = field(default_factory=Tally)
    rejections: Tally = field(default_factory=Tally)
    rejected: list[NamedRow] = field(default_factory=list)
    truncated: list[NamedRow] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        self.fates[line["fate"]] += 1
        if line["fate"] == "rejected":
            kind, _, detail = line["reason"].partition(": ")
            self.rejections.add(kind, named(line, line["field"], detail))
            note(self.rejected, named(line, line["field"], line["reason"]))
            return
        self.repaired += bool(line["repairs"])
        for repair in line["repairs"]:
            self.repairs.add(repair["what"], named(line, repair["where"]))
        if line["fate"] == "truncated":
            note(self.truncated, named(line, None, f"{line['lost_tokens']} tokens lost"))

    def counted(self) -> Fates:
        kept = self.fates["kept"] + self.fates["repaired"]
        return Fates(self.fates.total(), kept, self.repaired, self.fates["truncated"], self.fates["rejected"])


def note(rows: list[NamedRow], row: NamedRow) -> bool:
    """Add one more row unless there are enough; whether it was added."""
    if len(rows) == ROWS_NAMED:
        return False
    rows.append(row)
    return True


def named(line: dict[str, Any], path: str | None, detail: str = "") -> NamedRow:
    """The row of a line, with the field at fault unless the detail says it already."""
    parts = [detail] if path and path in detail else [path, detail]
    return NamedRow(line["file"], line["line"], ": ".join(filter(None, parts)), line["row"])


def read_ledger(path: Path) -> Told:
    """The whole ledger, counted."""
    told = Told()
    with path.open("rb") as file:
        for line in file:
            if PLAIN in line:
                told.fates["kept"] += 1
            else:
                told.add(json.loads(line))
    return told


def first_rows(path: Path, repairs: Mapping[str, int], rejections: Mapping[str, int]) -> Told:
    """The ledger as far as it has to be read to find the first rows of every kind whose count is known already."""
    told = Told(repairs=Tally.expecting(repairs), rejections=Tally.expecting(rejections))
    with path.open("rb") as file:
        for line in file:
            if not told.repairs.due and not told.rejections.due:
                break
            if PLAIN not in line:
                told.add(json.loads(line))
    return told
