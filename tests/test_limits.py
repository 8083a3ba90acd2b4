"""How far each format may be from what was recorded."""

from pathlib import Path

import pytest

from tunewright.artifacts import RunDirectory
from tunewright.recipe import VerifyKeys
from tunewright.verify.limits import gguf_limits, less_chance, over_positions, served_limits


def test_fewer_bits_may_be_further_away() -> None:
    limits = [gguf_limits(VerifyKeys(), name) for name in ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")]
    assert limits[0] == limits[1] == {"top1_agreement": 0.98, "clear_top1_agreement": 0.99, "mean_kl": 0.01}
    assert limits[2:] == [{"mean_kl": 0.1}, {"mean_kl": 0.25}, {"mean_kl": 0.25}]
    assert over_positions(limits[4], 40, 20) == limits[4]


@pytest.mark.parametrize(
    ("share", "count", "departures"),
    [(0.98, 42, 2), (0.98, 512, 16), (0.98, 100_000, 2086), (0.99, 41, 1), (0.94, 15, 2), (1.0, 5, 0), (0.98, 1, 0)],
)
def test_a_share_may_be_below_its_limit_by_what_chance_explains(share: float, count: int, departures: int) -> None:
    least = less_chance(share, count)
    assert (count - departures) / count >= least
    assert (count - departures - 1) / count < least


def test_over_no_position_there_is_no_least_share() -> None:
    limits = over_positions(gguf_limits(VerifyKeys(), "q8_0"), 40, 0)
    assert limits == {"top1_agreement": less_chance(0.98, 40), "clear_top1_agreement": 0.0, "mean_kl": 0.01}


def test_what_the_recipe_sets_holds_for_every_format() -> None:
    config = VerifyKeys(gguf_kl_limit=0.5, gguf_top1_limit=0.7, gguf_clear_top1_limit=0.6)
    wanted = {"top1_agreement": 0.7, "clear_top1_agreement": 0.6, "mean_kl": 0.5}
    assert gguf_limits(config, "q4_k_m") == gguf_limits(config, "q8_0") == wanted


def test_an_endpoint_may_be_as_far_away_as_the_roughest_exported_format(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    run = RunDirectory(tmp_path)
    usual = {"top1_agreement": 0.95, "clear_top1_agreement": 0.99, "mean_kl": 0.01}
    assert served_limits(VerifyKeys(), run) == usual
    (tmp_path / "export" / "model-q4_k_m.gguf").touch()
    (tmp_path / "export" / "model-f16.gguf").touch()
    roughest = {"top1_agreement": 0.75, "clear_top1_agreement": 0.85, "mean_kl": 0.25}
    assert served_limits(VerifyKeys(), run) == roughest
