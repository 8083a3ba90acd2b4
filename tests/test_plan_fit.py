"""The cheapest change that fits: smaller micro-batches, then checkpointing, shorter rows last; the same is learned."""

import pytest

from tunewright.plan.fit import find_fit
from tunewright.recipe import PlanKeys

CONFIG = PlanKeys(per_device_train_batch_size=6, gradient_accumulation_steps=2)


def predict(config: PlanKeys, limit: int) -> int:
    """100 bytes of weights, and for each token of a micro-batch 4 bytes, or 1 with checkpointing."""
    return 100 + config.per_device_train_batch_size * limit * (1 if config.gradient_checkpointing else 4)


def changed(budget: int) -> dict[str, object]:
    fit = find_fit(CONFIG, predict, budget, longest=200)
    assert fit is not None
    assert fit.peak_bytes <= budget
    keys = {change["key"]: change["to"] for change in fit.changes}
    size = keys.get("per_device_train_batch_size", 6)
    assert int(size) * int(keys.get("gradient_accumulation_steps", 2)) == CONFIG.effective_batch_size
    return keys


def test_the_largest_micro_batch_that_fits_and_divides_the_effective_batch_is_taken() -> None:
    assert changed(100 + 4 * 200 * 5) == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}


def test_checkpointing_comes_only_where_single_rows_do_not_fit() -> None:
    assert changed(100 + 4 * 200) == {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 12}
    keys = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "gradient_checkpointing": True}
    assert changed(100 + 4 * 200 - 1) == keys


def test_length_is_cut_last_of_all_and_no_further_than_needed() -> None:
    assert changed(100 + 199)["max_length"] == 192
    assert changed(100 + 130)["max_length"] == 128


def test_nothing_is_proposed_where_nothing_fits() -> None:
    assert find_fit(CONFIG, predict, 120, longest=200) is None


def test_changes_are_written_as_options_of_the_command_line() -> None:
    fit = find_fit(CONFIG, predict, 100 + 3 * 200, longest=200)
    assert fit is not None
    expected = "-o per_device_train_batch_size=3 -o gradient_accumulation_steps=4 -o gradient_checkpointing=true"
    assert fit.options == expected


@pytest.mark.parametrize("budget", range(150, 5000, 37))
def test_every_fit_fits(budget: int) -> None:
    fit = find_fit(CONFIG, predict, budget, longest=200)
    assert fit is None or fit.peak_bytes <= budget
