"""Bootstrap intervals: how far a mean over few rows can be trusted.

In: scores float64 [metrics M, engines E, rows R]. Out: means with 95 % percentile intervals (Efron and Tibshirani,
An Introduction to the Bootstrap, 1993, chapter 13).
Always: each resample draws the same rows for every metric and engine, so that differences are paired; the same seed
gives the same intervals.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean, and the low and high end of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        return {name: round(number, 6) for name, number in asdict(self).items()}


@dataclass(frozen=True)
class Bootstrap:
    """Means of metrics by engines.

    Attributes:
        means: float64 [M, E], of the rows as they are.
        resampled: float64 [RESAMPLES, M, E], of the resampled rows.
    """

    means: Array
    resampled: Array

    def interval(self, metric: int, engine: int) -> Interval:
        return _interval(self.means, self.resampled, lambda means: means[..., metric, engine])

    def difference(self, metric: int, engine: int, baseline: int) -> Interval:
        """Of `engine` minus `baseline`, row by row."""
        return _interval(
            self.means, self.resampled, lambda means: means[..., metric, engine] - means[..., metric, baseline]
        )


def bootstrap(scores_MER: Array, seed: int) -> Bootstrap:
    """Resample the rows (the last axis, at least one) with replacement."""
    rows = scores_MER.shape[-1]
    generator = np.random.default_rng(seed)
    resampled = [scores_MER[..., generator.integers(rows, size=rows)].mean(axis=-1) for _ in range(RESAMPLES)]
    return Bootstrap(scores_MER.mean(axis=-1), np.stack(resampled))


def _interval(means_ME: Array, resampled_SME: Array, of: Callable[[Array], Array]) -> Interval:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(of(resampled_SME), [tail, 100 - tail])
    return Interval(float(of(means_ME)), float(low), float(high))
