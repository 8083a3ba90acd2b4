"""How far each artifact may be from what was recorded: the limits of parity."""

from typing import NamedTuple

from tunewright.artifacts import RunDirectory
from tunewright.recipe import VerifyKeys

Limits = dict[str, float]


class Nearness(NamedTuple):
    """Least shares of equal first choices, at all positions and at clear ones, and the largest mean KL in nats."""

    top1: float
    clear_top1: float
    mean_kl: float


# What rounding to few bits may do. Measured, beside what damage does: docs/decisions/010-limits-of-each-format.md.
AROUND_FIVE_BITS = Nearness(0.80, 0.94, 0.15)
FEW_BITS = {"q6_k": Nearness(0.91, 0.99, 0.025), "q5_k_m": AROUND_FIVE_BITS, "q4_k_m": AROUND_FIVE_BITS}
EIGHT_BITS_OR_MORE = Nearness(0.98, 0.99, 0.01)


def exact_limits(config: VerifyKeys) -> Limits:
    """For what computes the same numbers, up to the order of additions."""
    return {"top1_agreement": 1.0, "clear_top1_agreement": 1.0, "mean_kl": config.adapter_kl_limit}


def rounded_limits(config: VerifyKeys) -> Limits:
    """For the same weights in 16 bits."""
    return {**exact_limits(config), "top1_agreement": config.merged_top1_limit, "mean_kl": config.merged_kl_limit}


def gguf_limits(config: VerifyKeys, name: str) -> Limits:
    """For a GGUF of this format; what the recipe sets holds for every format."""
    nearness = FEW_BITS.get(name, EIGHT_BITS_OR_MORE)
    return {
        "top1_agreement": config.gguf_top1_limit or nearness.top1,
        "clear_top1_agreement": config.gguf_clear_top1_limit or nearness.clear_top1,
        "mean_kl": config.gguf_kl_limit or nearness.mean_kl,
    }


def served_kl_limit(config: VerifyKeys, run: RunDirectory) -> float:
    """For an endpoint, which may serve any format that the run has exported: that of the roughest."""
    return max(gguf_limits(config, name)["mean_kl"] for name in ["q8_0", *run.gguf_files])
