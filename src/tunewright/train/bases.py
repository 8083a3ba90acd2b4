"""Into which base is an adapter merged that was trained over fewer bits? Both are measured on the held-out rows.

In: the losses of the same rows with the adapter over the base as it is stored, and over the base as it comes out of the
bits (the dequantized one), rounded to 16 bits as a merge rounds. Out: which one the merge takes, and why.
Always: the stored base is taken unless the rows tell, beyond chance, that the other does better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunewright.recipe import MergeInto

RESAMPLES, TAIL_PERCENT = 2000, 2.5
LEAST_ROWS = 5  # Fewer rows say too little of how far their mean can be trusted.


@dataclass(frozen=True)
class Choice:
    """What was measured, and what is taken.

    Attributes:
        better: the base that the merge takes.
        reason: a sentence with the figures.
        original, dequantized: mean loss per supervised token over each base; None where there was nothing to measure.
        gain: by how much the dequantized base has less, with the ends of its 95 % interval.
    """

    better: MergeInto
    reason: str
    original: float | None = None
    dequantized: float | None = None
    gain: tuple[float, float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        measured = {"loss_original": self.original, "loss_dequantized": self.dequantized, "gain": self.gain}
        return {"better": self.better, "reason": self.reason, **measured}


def choose(original: Sequence[float], dequantized: Sequence[float], tokens: Sequence[int], seed: int) -> Choice:
    """The better base by a paired bootstrap over rows: summed losses over each base, and supervised tokens, by row."""
    if not tokens:
        return Choice("original", "There are no held-out rows to tell the bases apart by.")
    losses, counts = np.array([original, dequantized]), np.array(tokens)
    first, second = (float(mean) for mean in losses.sum(axis=1) / counts.sum())
    gain = gain_interval(losses[0] - losses[1], counts, seed)
    differs = len(tokens) >= LEAST_ROWS and (gain[1] > 0 or gain[2] < 0)
    better: MergeInto = "dequantized" if differs and gain[0] > 0 else "original"
    outcome = (
        f"the {better} base does better" if differs else "these rows cannot tell them apart, so the original is taken"
    )
    reason = (
        f"Held-out loss {first:.4f} with the adapter over the original base and {second:.4f} over the dequantized one, "
        f"a gain of {gain[0]:+.4f} (95 % of {RESAMPLES} resamples of {len(tokens)} rows: {gain[1]:+.4f} to "
        f"{gain[2]:+.4f}): {outcome}."
    )
    return Choice(better, reason, first, second, gain)


def gain_interval(differences: NDArray[np.float64], tokens: NDArray[np.int64], seed: int) -> tuple[float, float, float]:
    """The mean difference per token, and the low and high end of its 95 % percentile interval."""
    drawn = np.random.default_rng(seed).integers(len(tokens), size=(RESAMPLES, len(tokens)))
    resampled = differences[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    low, high = np.percentile(resampled, [TAIL_PERCENT, 100 - TAIL_PERCENT])
    return float(differences.sum() / tokens.sum()), float(low), float(high)
