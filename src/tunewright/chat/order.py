"""Which rows an optimizer step learns from: a pure function of the seed and the step, so that a resumed run sees the
same rows as one that was never interrupted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunewright.chat.rows import TokenRow
from tunewright.recipe import TrainKeys

UNWARMED_STEPS = 10_000  # What transformers' inverse square root takes where there is no warm-up.


@dataclass(frozen=True)
class Schedule:
    """How many steps there are, and the rows of each.

    Attributes:
        rows: training rows.
        batch_size: rows per optimizer step; the last step may have fewer.
        rows_to_see: rows over all epochs together.
        seed: of the permutation of each epoch.
    """

    rows: int
    batch_size: int
    rows_to_see: int
    seed: int

    @property
    def steps(self) -> int:
        return math.ceil(self.rows_to_see / self.batch_size)

    def rows_of_step(self, step: int) -> list[int]:
        """Indices of the rows of `step` (from 0): the next ones in the stream of shuffled epochs."""
        first = step * self.batch_size
        last = min(first + self.batch_size, self.rows_to_see)
        permutations = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(self.rows)
            for epoch in range(first // self.rows, (last - 1) // self.rows + 1)
        }
        return [int(permutations[index // self.rows][index % self.rows]) for index in range(first, last)]

    def epoch_after(self, step: int) -> float:
        """Epochs seen once `step` (from 0) is done."""
        return round(min((step + 1) * self.batch_size, self.rows_to_see) / self.rows, 4)


def plan_schedule(config: TrainKeys, rows: int) -> Schedule:
    batch_size = config.effective_batch_size
    rows_to_see = config.max_steps * batch_size if config.max_steps else round(rows * config.num_train_epochs)
    return Schedule(rows, batch_size, max(rows_to_see, 1), config.seed)


def split_by_length(rows: Sequence[TokenRow], size: int) -> list[list[TokenRow]]:
    """Micro-batches of at most `size` rows, rows of like length together so that little is padded."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def learning_rate_factor(config: TrainKeys, step: int, steps: int) -> float:
    """What `learning_rate` is multiplied by at `step` (from 0): linear warm-up, then what the schedule says.

    The schedules are those of transformers, of which `constant` alone has no warm-up; the first step is never lost at a
    rate of zero.
    """
    kind = config.lr_scheduler_type
    warmup = 0 if kind == "constant" else round(config.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    if kind == "inverse_sqrt":
        return math.sqrt(warmup / step if warmup else UNWARMED_STEPS / (step + UNWARMED_STEPS))
    if kind in ("constant", "constant_with_warmup"):
        return 1.0
    return _decay(config, (step - warmup) / max(steps - warmup, 1))


def _decay(config: TrainKeys, progress: float) -> float:
    """The factor after a share `progress` of the steps behind the warm-up."""
    settings = config.lr_scheduler_kwargs
    if config.lr_scheduler_type in ("linear", "polynomial"):
        end = settings.get("lr_end", 0.0) / config.learning_rate
        return float(end + (1 - end) * (1 - progress) ** settings.get("power", 1.0))
    least = settings.get("min_lr_rate", 0.1) if config.lr_scheduler_type == "cosine_with_min_lr" else 0.0
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))
