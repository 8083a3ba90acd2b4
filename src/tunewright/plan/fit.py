"""The cheapest change of a recipe that makes its step fit into the memory there is.

In: the recipe, what a step of a changed recipe would take, and the budget. Out: the changes, cheapest first kind first:
smaller micro-batches (a few percent of speed), then checkpointing (a third), and only then shorter rows. Always: the
effective batch stays as it was asked for, so that the same is learned.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tunewright.recipe import PlanKeys

LENGTH_STEP = 64
Predict = Callable[[PlanKeys, int], int]
"""Peak bytes of a recipe with rows cut to so many tokens."""


@dataclass(frozen=True)
class Fit:
    """A recipe that fits.

    Attributes:
        changes: keys of the recipe with what they were and what they should be.
        peak_bytes: what it then takes.
    """

    changes: list[dict[str, Any]]
    peak_bytes: int

    @property
    def options(self) -> str:
        """The changes as they are written on a command line."""
        return " ".join(f"-o {change['key']}={str(change['to']).lower()}" for change in self.changes)


def find_fit(config: PlanKeys, predict: Predict, budget_bytes: int, longest: int) -> Fit | None:
    """The first of the changes, from cheap to dear, that fits; None where none does."""
    for checkpointing in dict.fromkeys((config.gradient_checkpointing, True)):
        candidates = list(with_micro_batches(config, checkpointing))
        if predict(candidates[-1], longest) > budget_bytes:
            continue
        for candidate in candidates:
            if (peak := predict(candidate, longest)) <= budget_bytes:
                return Fit(changes_between(config, candidate), peak)
    return shorter(config, predict, budget_bytes, longest)


def with_micro_batches(config: PlanKeys, checkpointing: bool) -> Iterator[PlanKeys]:
    """The recipe with every smaller micro-batch that divides the effective batch, the largest first."""
    effective = config.effective_batch_size
    for size in range(config.per_device_train_batch_size, 0, -1):
        if effective % size == 0:
            keys = {
                "per_device_train_batch_size": size,
                "gradient_accumulation_steps": effective // size,
                "gradient_checkpointing": checkpointing,
            }
            yield config.model_copy(update=keys)


def shorter(config: PlanKeys, predict: Predict, budget_bytes: int, longest: int) -> Fit | None:
    """The longest rows that fit one by one with checkpointing, in steps of 64 tokens."""
    smallest = list(with_micro_batches(config, checkpointing=True))[-1]
    low, high = 0, longest // LENGTH_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if predict(smallest, middle * LENGTH_STEP) <= budget_bytes:
            low = middle
        else:
            high = middle - 1
    if low == 0:
        return None
    changed = smallest.model_copy(update={"max_length": low * LENGTH_STEP})
    length = {"key": "max_length", "from": None, "to": low * LENGTH_STEP}
    return Fit([*changes_between(config, smallest), length], predict(changed, low * LENGTH_STEP))


def changes_between(before: PlanKeys, after: PlanKeys) -> list[dict[str, Any]]:
    old, new = before.model_dump(), after.model_dump()
    return [{"key": key, "from": old[key], "to": new[key]} for key in old if old[key] != new[key]]
