"""How far each format may be from what was recorded."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tunewright.artifacts import RunDirectory
from tunewright.engines.interface import TopLogprobs
from tunewright.recipe import VerifyKeys
from tunewright.verify.limits import (
    exact_limits,
    gguf_limits,
    less_chance,
    over_positions,
    served_limits,
    top1_left_by,
    with_near_ties,
)


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


def logprobs(logits_NV: torch.Tensor) -> list[TopLogprobs]:
    top = logits_NV.log_softmax(dim=-1).topk(32, dim=-1)
    return [TopLogprobs(tuple(i), tuple(v)) for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)]


@pytest.mark.parametrize("error", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_as_many_first_choices_are_turned_as_errors_of_that_kl_turn(error: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(7)
    logits_NV = torch.randn(20_000, 300, generator=generator) * scale
    noisy_NV = logits_NV + torch.randn(logits_NV.shape, generator=generator) * error
    p, q = logits_NV.log_softmax(dim=-1), noisy_NV.log_softmax(dim=-1)
    mean_kl = float((p.exp() * (p - q)).sum(dim=-1).mean())
    turned = float((p.argmax(dim=-1) != q.argmax(dim=-1)).float().mean())
    assert 1 - top1_left_by(mean_kl, logprobs(logits_NV)) == pytest.approx(turned, rel=0.1)


CERTAIN, TIED = TopLogprobs((1, 2), (-1e-9, -20.0)), TopLogprobs((1, 2), (math.log(0.5),) * 2)


def test_near_ties_lower_the_limit_of_rounded_files_alone_and_at_most_as_their_kl_may() -> None:
    recorded = [CERTAIN] * 90 + [TIED] * 10  # of which any error turns half
    q8_0 = gguf_limits(VerifyKeys(), "q8_0")
    assert with_near_ties(q8_0, recorded, 0.001)["top1_agreement"] == pytest.approx(0.95)
    assert with_near_ties(q8_0, [CERTAIN] * 100, 0.001) == with_near_ties(q8_0, recorded, 0.0) == q8_0
    nearer = [replace(TIED, logprobs=(-0.6, -0.8))] * 100
    assert with_near_ties(q8_0, nearer, math.inf) == with_near_ties(q8_0, nearer, 0.01)
    exact, few_bits = exact_limits(VerifyKeys()), gguf_limits(VerifyKeys(), "q4_k_m")
    assert with_near_ties(exact, recorded, 0.001) == exact
    assert with_near_ties(few_bits, recorded, 0.001) == few_bits


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
