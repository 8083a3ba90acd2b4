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


def packed_predict(config: PlanKeys, limit: int) -> int:
    """Weights of 160 bytes, 80 in 8 bits and 40 in 4, and one byte for each token of a micro-batch."""
    return {None: 160, 8: 80, 4: 40}[config.bits] + config.per_device_train_batch_size * limit


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (160 + 200, {}),
        (80 + 200, {"load_in_8bit": True}),
        (40 + 200, {"load_in_4bit": True}),
        (40 + 199, {"load_in_4bit": True, "max_length": 192}),
    ],
)
def test_fewer_bits_come_before_shorter_rows_and_eight_before_four(budget: int, expected: dict[str, object]) -> None:
    fit = find_fit(CONFIG, packed_predict, budget, longest=200)
    assert fit is not None
    found = {change["key"]: change["to"] for change in fit.changes}
    assert {key: found[key] for key in ("load_in_8bit", "load_in_4bit", "max_length") if key in found} == expected
    assert fit.peak_bytes <= budget


def test_what_the_changes_cost_is_said() -> None:
    prices = []
    for budget in (160 + 200, 80 + 200, 40 + 199):
        fit = find_fit(CONFIG, packed_predict, budget, longest=200)
        assert fit is not None
        prices.append(fit.price)
    assert prices[0] == ", and the same is learned"
    assert "fewer bits" in prices[1]
    assert "longer rows would then be cut" in prices[2]


def test_a_base_with_dora_is_not_packed() -> None:
    fit = find_fit(CONFIG.model_copy(update={"use_dora": True}), packed_predict, 160 + 128, longest=200)
    assert fit is not None
    assert {change["key"] for change in fit.changes} >= {"max_length"}
    assert not {change["key"] for change in fit.changes} & {"load_in_8bit", "load_in_4bit"}


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
