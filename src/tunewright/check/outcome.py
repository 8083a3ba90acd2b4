"""What a check found, in one form for the terminal, for scripts and for the page.

`Outcome.as_json` is a contract that others script against; `docs/check.md` has it in words.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunewright.evidence import Evidence

ROWS_NAMED = 20
ROWS_SHOWN = 3
RANKS = {"fail": 0, "warn": 1, "pass": 2}
ROW_ID = re.compile(r"(?P<file>.*):(?P<line>\d+)(?:\.\d+)?(?:/\d+)?(?:#\d+)?", re.DOTALL)


@dataclass(frozen=True)
class NamedRow:
    """A row of the input, with a few words on it.

    Attributes:
        file, line: where it stands, as in the ledger; of Parquet the line is the row's number.
        excerpt: what was found there.
        row: its id, as in the ledger, which tells apart rows on one line and conversations of one row.
    """

    file: str
    line: int
    excerpt: str
    row: str

    @classmethod
    def of(cls, row: str, excerpt: str = "") -> "NamedRow":
        """The row with this id: `file:LINE`, then perhaps `.2`, `/2` or `#2` (of a line, a row, a conversation)."""
        match = ROW_ID.fullmatch(row)
        return cls(match["file"], int(match["line"]), excerpt, row) if match else cls(row, 0, excerpt, row)


@dataclass(frozen=True)
class Kind:
    """A kind of repair or rejection: how often it came up, and where first."""

    what: str
    count: int
    rows: tuple[NamedRow, ...] = ()


@dataclass(frozen=True)
class Judged:
    """A piece of evidence with the rows that it speaks of."""

    evidence: Evidence
    rows: tuple[NamedRow, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**self.evidence.as_json(), "rows": [asdict(row) for row in self.rows[:ROWS_NAMED]]}

    def in_parts(self) -> tuple[str, str]:
        """The detail's sentence on what was found, and what to do about it, without the rows between them."""
        head, shown, mend = self.evidence.detail.partition(self._shown())
        return (f"{head}.", mend.strip()) if shown else (head, "")

    def _shown(self) -> str:
        """The first rows as an audit's detail names them (see `tunewright.data.audit.findings`)."""
        listed = [f"{row.row} ({row.excerpt})" for row in self.rows]
        for count in range(min(ROWS_SHOWN, len(listed)), 0, -1):
            if (text := f": {'; '.join(listed[:count])}.") in self.evidence.detail:
                return text
        return "\0"


@dataclass(frozen=True)
class Fates:
    """What became of the rows: kept + truncated + rejected = rows in; repaired ones are kept or truncated."""

    rows_in: int
    kept: int
    repaired: int
    truncated: int
    rejected: int


@dataclass(frozen=True)
class Lengths:
    """Tokens per row for a base.

    Attributes:
        tokens: of every row that can be trained on, none longer than the limit.
        longest: tokens of the longest row before anything is cut, which is the smallest limit that cuts nothing.
        max_length: the limit that rows are held to; `max_length_from` says why it is that.
        context: the longest text that the base can read.
        over: what lies beyond the limit: `rows`, `tokens`, `supervised_tokens` and their share of all of these.
    """

    tokens: Sequence[int]
    longest: int
    max_length: int
    max_length_from: str
    context: int
    over: dict[str, Any]

    def percentiles(self) -> dict[str, int]:
        """By nearest rank."""
        ordered = sorted(self.tokens)
        return {str(share): ordered[-(-share * len(ordered) // 100) - 1] for share in (50, 90, 95, 99) if ordered}

    def as_json(self) -> dict[str, Any]:
        cut = ("rows", "tokens", "supervised_tokens", "supervised_share")
        return {
            "rows": len(self.tokens),
            "longest": self.longest,
            "percentiles": self.percentiles(),
            "max_length": self.max_length,
            "max_length_from": self.max_length_from,
            "context": self.context,
            "would_cut": {name: self.over[name] for name in cut},
            "smallest_that_cuts_nothing": self.longest,
        }


@dataclass(frozen=True)
class Outcome:
    """All that a check found.

    Attributes:
        facts: of the data stage.
        evidence: in the order in which it was measured.
        accepted: names of evidence whose failure does not count.
        lengths: None where no base was named.
    """

    facts: dict[str, Any]
    fates: Fates
    repairs: tuple[Kind, ...]
    rejections: tuple[Kind, ...]
    evidence: tuple[Judged, ...]
    accepted: frozenset[str] = frozenset()
    lengths: Lengths | None = None

    @property
    def failed(self) -> tuple[Judged, ...]:
        """Gates that failed and were not accepted."""
        found = (item for item in self.evidence if item.evidence.verdict == "fail")
        return tuple(item for item in found if item.evidence.name not in self.accepted)

    @property
    def passed(self) -> tuple[Judged, ...]:
        """What was held against a limit and passed; the rest are figures that nothing was asked of."""
        return tuple(item for item in self.evidence if item.evidence.verdict == "pass" and item.evidence.limit)

    @property
    def worst_first(self) -> list[Judged]:
        return sorted(self.evidence, key=lambda item: RANKS[item.evidence.verdict])

    def as_json(self) -> dict[str, Any]:
        formats: dict[str, int] = self.facts["formats"]
        return {
            "format": max(formats, key=formats.__getitem__),
            "formats": formats,
            "files": [{"file": name, "formats": found} for name, found in self.facts["formats_by_file"].items()],
            **asdict(self.fates),
            "repairs": {kind.what: kind.count for kind in self.repairs},
            "rejections": {kind.what: kind.count for kind in self.rejections},
            "system_prompts": self.facts["system_prompts"],
            "ignored_keys": self.facts["ignored_keys"],
            "uncertain": self.facts["uncertain"],
            "train_rows": self.facts["train_rows"],
            "eval_rows": self.facts["eval_rows"],
            "lengths": self.lengths.as_json() if self.lengths else None,
            "evidence": [item.as_json() for item in self.evidence],
        }


def check_rejected_rows(fates: Fates, rejections: Sequence[Kind], rows: Sequence[NamedRow]) -> Judged:
    """A warning where rows were rejected: they are left out of training, and nothing else comes of it."""
    if not fates.rejected:
        return Judged(Evidence("rejected_rows", 0, "= 0", "pass", "Every row can be used."))
    kinds = ", ".join(f"{kind.count} × {kind.what}" for kind in rejections)
    shown = "; ".join(f"{row.row} ({row.excerpt})" for row in rows[:ROWS_SHOWN])
    detail = (
        f"{fates.rejected} of {fates.rows_in} rows cannot be used ({kinds}): {shown}. "
        "Mend them. `tunewright run` stops at rows that cannot be read, unless it is told --on-bad-row reject."
    )
    return Judged(Evidence("rejected_rows", fates.rejected, "= 0", "warn", detail), tuple(rows))
