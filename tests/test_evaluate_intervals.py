import numpy as np
import pytest

from tunewright.evaluate.intervals import bootstrap


def test_interval_of_equal_scores_is_a_point() -> None:
    means = bootstrap(np.full((1, 2, 10), 0.25), seed=1)
    assert means.interval(0, 1).as_json() == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_interval_has_the_width_that_theory_gives() -> None:
    scores = np.array([1.0] * 60 + [0.0] * 40)[None, None]
    interval = bootstrap(scores, seed=42).interval(0, 0)
    half = 1.96 * (0.6 * 0.4 / 100) ** 0.5
    assert interval.value == pytest.approx(0.6)
    assert interval.low == pytest.approx(0.6 - half, abs=0.015)
    assert interval.high == pytest.approx(0.6 + half, abs=0.015)


def test_difference_is_paired_by_row() -> None:
    base = np.random.default_rng(0).random(50)
    means = bootstrap(np.stack([base, base + 0.1])[None], seed=3)
    difference = means.difference(0, engine=1, baseline=0)
    assert [difference.value, difference.low, difference.high] == pytest.approx([0.1, 0.1, 0.1])
    assert means.interval(0, 0).high - means.interval(0, 0).low > 0.1


def test_same_seed_gives_the_same_interval() -> None:
    scores = np.random.default_rng(0).random((2, 3, 20))
    first, second, other = (bootstrap(scores, seed).interval(1, 2) for seed in (7, 7, 8))
    assert first == second
    assert first != other


def test_single_row_is_its_own_interval() -> None:
    assert bootstrap(np.ones((1, 1, 1)), seed=0).interval(0, 0).as_json() == {"value": 1.0, "low": 1.0, "high": 1.0}
