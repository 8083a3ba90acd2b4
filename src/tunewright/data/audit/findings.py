"""What a check gives back: evidence, and the rows that it speaks of.

A value that is a share lies between 0 and 1. `examples` holds the first 20 rows; the evidence's detail shows three.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunewright.evidence import Evidence, Verdict

EXAMPLES_KEPT = 20
EXAMPLES_SHOWN = 3
EXCERPT_CHARACTERS = 60


@dataclass(frozen=True)
class Example:
    """A row by its id, with a few words of what was found in it."""

    row: str
    excerpt: str


@dataclass(frozen=True)
class Finding:
    evidence: Evidence
    examples: tuple[Example, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**self.evidence.as_json(), "examples": [asdict(example) for example in self.examples]}

    def with_verdict(self, verdict: Verdict) -> "Finding":
        return replace(self, evidence=replace(self.evidence, verdict=verdict))


def share_finding(name: str, offenders: Sequence[Example], total: int, limit: float, what: str, mend: str) -> Finding:
    """Fails if more than the share `limit` of `total` rows offend."""
    share = len(offenders) / total if total else 0.0
    detail = f"{len(offenders)} of {total} rows {what}"
    verdict: Verdict = "pass" if share <= limit else "fail"
    return _finding(Evidence(name, round(share, 4), f"<= {limit:g}", verdict, detail), offenders, mend)


def count_finding(
    name: str, offenders: Sequence[Example], total: int, verdict: Verdict, what: str, mend: str
) -> Finding:
    """Takes the given verdict if a single row offends."""
    detail = f"{len(offenders)} of {total} rows {what}"
    return _finding(Evidence(name, len(offenders), "= 0", verdict if offenders else "pass", detail), offenders, mend)


def _finding(evidence: Evidence, offenders: Sequence[Example], mend: str) -> Finding:
    detail = evidence.detail
    if offenders:
        shown = "; ".join(f"{example.row} ({example.excerpt})" for example in offenders[:EXAMPLES_SHOWN])
        detail += f": {shown}"
    detail += "."
    if evidence.verdict != "pass":
        detail += f" {mend}"
    return Finding(replace(evidence, detail=detail), tuple(offenders[:EXAMPLES_KEPT]))


def excerpt(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 4 * EXCERPT_CHARACTERS].split())
    is_whole = len(text) <= EXCERPT_CHARACTERS
    return f'"{line}"' if is_whole else f'"{line[:EXCERPT_CHARACTERS]}" of {len(text)} characters'


def ending(text: str) -> str:
    """The end of a text on one line."""
    line = " ".join(text[-4 * EXCERPT_CHARACTERS :].split())
    return f'ends in "{line[-EXCERPT_CHARACTERS:]}"'
