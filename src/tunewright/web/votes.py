"""Votes of blind comparisons: kept with the run in `votes.json`, which is written whole or not at all.

In: which of two answers a person found better, before it was said whose they are. Out: how often either won, with an
interval. A vote counts for the adapter that it was given on, and for no later one.
"""

import threading
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from tunewright.artifacts import write_json
from tunewright.errors import ArtifactError, JobNotFoundError, UsageError
from tunewright.web.runs import Runs

Winner = Literal["tuned", "base", "tie"]
VOTES = "votes.json"
MOST_VOTES = 1000
# Of a normal distribution, so many standard deviations to either side hold 95 %.
DEVIATIONS = 1.959964


@dataclass(frozen=True)
class Vote:
    """One vote, with what it was about.

    Attributes:
        left: whose answer stood on the left.
        adapter: SHA-256 of the adapter's weights.
    """

    winner: Winner
    left: str
    prompt: str
    base: str
    tuned: str
    adapter: str
    time: float


class Share(NamedTuple):
    """The part of decided votes that the tuned model won, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Tally:
    """What votes came to.

    Attributes:
        share: None before a vote was decided.
        older: votes on adapters that the run had before; they are kept and not counted.
    """

    tuned: int = 0
    base: int = 0
    ties: int = 0
    older: int = 0

    @property
    def share(self) -> Share | None:
        decided = self.tuned + self.base
        return wilson(self.tuned, decided) if decided else None

    def as_json(self) -> dict[str, Any]:
        share = self.share
        return {**asdict(self), "tuned_share": share._asdict() if share else None}


def wilson(wins: int, total: int) -> Share:
    """A share with its 95 % interval by Wilson (1927), which holds for few votes, and for none or all of them won."""
    value, square = wins / total, DEVIATIONS**2
    middle = (value + square / (2 * total)) / (1 + square / total)
    half = DEVIATIONS / (1 + square / total) * (value * (1 - value) / total + square / (4 * total**2)) ** 0.5
    return Share(round(value, 4), round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4))


class Votes:
    """The votes of all runs of a store."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self._lock = threading.Lock()

    def add(self, name: str, winner: Winner, left: str, prompt: str, answers: dict[str, str], adapter: str) -> None:
        """Keep a vote; once this returns it is not lost.

        Raises:
            UsageError: the run has as many as are kept.
            ArtifactError: the votes that are there cannot be read.
        """
        with self._lock:
            kept = self._kept(name)
            if len(kept) >= MOST_VOTES:
                raise UsageError(f"run {name}", f"it has {MOST_VOTES} votes", "fewer", f"Move its {VOTES} away.")
            vote = Vote(winner, left, prompt, answers["base"], answers["tuned"], adapter, round(time.time(), 3))
            write_json(self.runs.root / self.runs.summary(name).name / VOTES, {"votes": [*kept, asdict(vote)]})

    def tally(self, name: str) -> Tally:
        """What the votes on the run's present adapter came to."""
        now = adapter_of(self.runs, name)
        try:
            kept = self._kept(name)
        except ArtifactError:
            kept = []
        winners = [vote.get("winner") for vote in kept if vote.get("adapter") == now]
        tuned, base, ties = (winners.count(winner) for winner in ("tuned", "base", "tie"))
        return Tally(tuned, base, ties, older=len(kept) - len(winners))

    def _kept(self, name: str) -> list[dict[str, Any]]:
        try:
            found = self.runs.read_json(name, VOTES)["votes"]
            return [{**vote} for vote in found]
        except JobNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, RecursionError):
            mend = "Move it away; the next vote begins a new one."
            raise ArtifactError(f"{name}/{VOTES}", "it holds no votes that can be read", mend=mend) from None


def adapter_of(runs: Runs, name: str) -> str:
    """SHA-256 of the adapter's weights; empty where the run has none."""
    record = runs.files_of(name, "train").get("adapter/adapter_model.safetensors")
    return str(record.get("sha256", "")) if isinstance(record, dict) else ""
