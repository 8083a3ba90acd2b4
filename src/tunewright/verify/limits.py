"""How far each artifact may be from what was recorded: the limits of parity."""

import math
from collections.abc import Sequence
from statistics import NormalDist, mean
from typing import NamedTuple

from tunewright.artifacts import RunDirectory
from tunewright.engines.canaries import CLEAR_LEAD
from tunewright.engines.interface import TopLogprobs
from tunewright.recipe import VerifyKeys

Limits = dict[str, float]


class Nearness(NamedTuple):
    """The largest mean KL in nats, and the least shares of equal first choices, at all positions and at clear ones."""

    mean_kl: float
    top1: float | None = None
    clear_top1: float | None = None


# What rounding to few bits may do. Measured, beside what damage does: docs/decisions/010-limits-of-each-format.md.
AROUND_FIVE_BITS = Nearness(0.25)
FEW_BITS = {"q6_k": Nearness(0.1), "q5_k_m": AROUND_FIVE_BITS, "q4_k_m": AROUND_FIVE_BITS}
EIGHT_BITS_OR_MORE = Nearness(0.01, 0.98, 0.99)
# Of an endpoint's answers, each up to where it departs: few positions, at most one miss in each answer, and often no
# probabilities to go by.
SERVED = {"top1_agreement": 0.95, "clear_top1_agreement": 0.99}
SERVED_FEW_BITS = {"top1_agreement": 0.75, "clear_top1_agreement": 0.85}
TWO_SIDED_95 = 1.96  # standard deviations of a normal distribution


def exact_limits(config: VerifyKeys) -> Limits:
    """For what computes the same numbers, up to the order of additions."""
    return {"top1_agreement": 1.0, "clear_top1_agreement": 1.0, "mean_kl": config.adapter_kl_limit}


def rounded_limits(config: VerifyKeys) -> Limits:
    """For the same weights in 16 bits."""
    return {**exact_limits(config), "top1_agreement": config.merged_top1_limit, "mean_kl": config.merged_kl_limit}


def gguf_limits(config: VerifyKeys, name: str) -> Limits:
    """For a GGUF of this format; what the recipe sets holds for every format. What has no limit is left out."""
    nearness = FEW_BITS.get(name, EIGHT_BITS_OR_MORE)
    limits = {
        "top1_agreement": config.gguf_top1_limit or nearness.top1,
        "clear_top1_agreement": config.gguf_clear_top1_limit or nearness.clear_top1,
        "mean_kl": config.gguf_kl_limit or nearness.mean_kl,
    }
    return {figure: limit for figure, limit in limits.items() if limit is not None}


def with_near_ties(limits: Limits, recorded: Sequence[TopLogprobs], mean_kl: float) -> Limits:
    """The limits for answers that hold so many near ties: no more is asked for than errors of the file's KL leave.

    A share of 1 stays: it is asked of what computes the same numbers.
    """
    least = limits.get("top1_agreement", 1.0)
    if least == 1:
        return limits
    return {**limits, "top1_agreement": min(least, top1_left_by(min(mean_kl, limits["mean_kl"]), recorded))}


def top1_left_by(mean_kl: float, recorded: Sequence[TopLogprobs]) -> float:
    """The share of recorded first choices that errors of this mean KL, in nats, leave in their place.

    Independent errors of variance v on the logits give a KL of v / 2 * (1 - sum p²) at a position, by the second order
    of its series (half the Fisher information of the softmax). They turn a lead of l over the second choice with the
    chance Φ(-l / sqrt(2 v)). Third choices are left out, and clear leads, for which nothing is to be excused.
    Against measured files: docs/decisions/012-near-ties.md.
    """
    spread = mean(1 - sum(math.exp(2 * logprob) for logprob in position.logprobs) for position in recorded)
    if mean_kl <= 0 or spread <= 0:
        return 1.0
    error_of_lead = NormalDist(0, math.sqrt(4 * mean_kl / spread))
    return mean(1.0 if position.lead >= CLEAR_LEAD else error_of_lead.cdf(position.lead) for position in recorded)


def over_positions(limits: Limits, positions: int, clear_positions: int) -> Limits:
    """The limits for figures that were taken over so many positions."""
    shares = {"top1_agreement": positions, "clear_top1_agreement": clear_positions}
    return {**limits, **{name: less_chance(limits[name], count) for name, count in shares.items() if name in limits}}


def less_chance(share: float, count: int) -> float:
    """The least share among `count` that a true share of `share` explains, with 95 % confidence (the score test).

    Rounding turns the order of near equals, and how many of them a run's answers have is chance: one among forty is
    no failure of 98 %. A share of 1 leaves nothing to chance.
    """
    return share - TWO_SIDED_95 * math.sqrt(share * (1 - share) / count) if count else 0.0


def served_limits(config: VerifyKeys, run: RunDirectory) -> Limits:
    """For an endpoint, which may serve any format that the run has exported: those of the roughest."""
    formats = ["q8_0", *run.gguf_files]
    shares = SERVED_FEW_BITS if any(name in FEW_BITS for name in formats) else SERVED
    return {**shares, "mean_kl": max(gguf_limits(config, name)["mean_kl"] for name in formats)}
