"""What a check gives back: evidence, and the rows that it speaks of.

A value that is a share lies between 0 and 1. `examples` holds the first 20 rows; the evidence's detail shows three.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from tunewright.evidence import Evidence, Verdict

EXAMPLES_KEPT = 20
EXAMPLES_SHOWN = 3
KINDS_SHOWN = 3
EXCERPT_CHARACTERS = 60


class Hit(NamedTuple):
    """What a check found in one row.

    Attributes:
        excerpt: a few words of it.
        kind: what the rows are counted by, such as the names of two fields; empty if there is but one kind.
    """

    excerpt: str
    kind: str = ""


class Example(NamedTuple):
    """A row by its id, with a few words of what was found in it."""

    row: str
    excerpt: str


@dataclass(frozen=True)
class Finding:
    evidence: Evidence
    examples: tuple[Example, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self.evidence), "examples": [example._asdict() for example in self.examples]}

    def with_verdict(self, verdict: Verdict) -> "Finding":
        return replace(self, evidence=replace(self.evidence, verdict=verdict))


@dataclass(frozen=True)
class Offenders:
    """The rows that a check speaks of: how many there are, the first of them, and how many of each kind."""

    count: int
    examples: Sequence[Example] = ()
    kinds: Mapping[str, int] | None = None

    def described(self) -> str:
        kinds = sorted((self.kinds or {}).items(), key=lambda item: (-item[1], item[0]))
        text = f" ({', '.join(f'{count} × {kind}' for kind, count in kinds[:KINDS_SHOWN])})" if kinds else ""
        shown = "; ".join(f"{example.row} ({example.excerpt})" for example in self.examples[:EXAMPLES_SHOWN])
        return f"{text}: {shown}." if shown else f"{text}."


def finding_of(
    name: str, offenders: Offenders, total: int, limit: float, verdict: Verdict, what: str, mend: str
) -> Finding:
    """Takes the given verdict if more than the share `limit` of `total` rows offend; with a limit of 0, if any does.

    `mend` follows in the detail if the rows are over the limit.

    The value is the share, or with a limit of 0 the number of rows.
    """
    share = offenders.count / max(total, 1)
    if share <= limit:
        verdict, mend = "pass", ""
    value, against = (round(share, 4), f"<= {limit:g}") if limit else (offenders.count, "= 0")
    detail = f"{offenders.count} of {total} rows {what}{offenders.described()} {mend}".rstrip()
    return Finding(Evidence(name, value, against, verdict, detail), tuple(offenders.examples[:EXAMPLES_KEPT]))


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 4 * EXCERPT_CHARACTERS].split())
    is_whole = len(text) <= EXCERPT_CHARACTERS
    return f'"{line}"' if is_whole else f'"{line[:EXCERPT_CHARACTERS]}" of {len(text)} characters'


def ending(text: str) -> str:
    """The end of a text on one line."""
    line = " ".join(text[-4 * EXCERPT_CHARACTERS :].split())
    return f'ends in "{line[-EXCERPT_CHARACTERS:]}"'


def surroundings(text: str, start: int, end: int) -> str:
    """A piece of a text with a little of what stands around it, on one line."""
    return f'"{" ".join(text[max(0, start - 20) : end + 20].split())}"'
