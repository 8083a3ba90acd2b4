"""The cheapest change of a recipe that makes its step fit into the memory there is.

In: the recipe, what a step of a changed recipe would take, and the budget. Out: the changes, cheapest first kind first:
smaller micro-batches (a few percent of speed), then checkpointing (a third), then a base in 8 and in 4 bits (some of
what it knows), and only then shorter rows. Always: the effective batch stays as it was asked for.
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

    @property
    def price(self) -> str:
        """What the changes cost beside speed, as the end of a sentence."""
        keys = {change["key"] for change in self.changes if change["to"]}
        if "max_length" in keys:
            return "; longer rows would then be cut"
        if keys & {"load_in_8bit", "load_in_4bit"}:
            return "; the adapter is then learned on a base of fewer bits"
        return ", and the same is learned"


def find_fit(config: PlanKeys, predict: Predict, budget_bytes: int, longest: int) -> Fit | None:
    """The first of the changes, from cheap to dear, that fits; None where none does."""
    for packed in with_fewer_bits(config):
        for checkpointing in dict.fromkeys((config.gradient_checkpointing, True)):
            candidates = list(with_micro_batches(packed, checkpointing))
            if predict(candidates[-1], longest) > budget_bytes:
                continue
            for candidate in candidates:
                if (peak := predict(candidate, longest)) <= budget_bytes:
                    return Fit(changes_between(config, candidate), peak)
    return shorter(config, predict, budget_bytes, longest)


def with_fewer_bits(config: PlanKeys) -> list[PlanKeys]:
    """The recipe as it is, then with the base in 8 and in 4 bits, if these are fewer; DoRA and `full` need it whole."""
    fewer = [] if config.use_dora or config.is_full else [bits for bits in (8, 4) if bits < (config.bits or 16)]
    packed = [{"load_in_8bit": bits == 8, "load_in_4bit": bits == 4} for bits in fewer]
    return [config, *(config.model_copy(update=keys) for keys in packed)]


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
    """The longest rows that fit one by one with checkpointing and the fewest bits, in steps of 64 tokens."""
    smallest = list(with_micro_batches(with_fewer_bits(config)[-1], checkpointing=True))[-1]
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
