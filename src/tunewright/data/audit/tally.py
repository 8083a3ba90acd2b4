"""What the checks of single rows have found so far, small enough to be sent from process to process.

In the order of the rows: how many rows were looked at, and for each check how many it speaks of, the first 20 of them,
and how many there are of each kind. The size does not grow with the rows.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tunewright.data.audit.findings import EXAMPLES_KEPT, Example, Hit, Offenders

KINDS_KEPT = 1000
OTHER_KINDS = "others"


@dataclass
class Found:
    """The rows that one check speaks of."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, row: str, hit: Hit) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append(Example(row, hit.excerpt))
        if hit.kind:
            self._add_kind(hit.kind, 1)

    def _add_kind(self, kind: str, count: int) -> None:
        is_kept = kind in self.kinds or len(self.kinds) < KINDS_KEPT
        self.kinds[kind if is_kept else OTHER_KINDS] += count

    def extend(self, later: "Found") -> None:
        self.count += later.count
        self.examples.extend(later.examples[: EXAMPLES_KEPT - len(self.examples)])
        for kind, count in later.kinds.items():
            self._add_kind(kind, count)

    @property
    def offenders(self) -> Offenders:
        return Offenders(self.count, tuple(self.examples), self.kinds)


@dataclass
class Tally:
    rows: int = 0
    found: dict[str, Found] = field(default_factory=dict)


def merge(tallies: Iterable[Tally]) -> Tally:
    """One tally of all, given in the order of the rows."""
    merged = Tally()
    for tally in tallies:
        merged.rows += tally.rows
        for name, found in tally.found.items():
            merged.found.setdefault(name, Found()).extend(found)
    return merged
