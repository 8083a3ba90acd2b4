"""Which 16-bit dtype a merged checkpoint gets, and why."""

import torch

from tunewright.models.merge_plan import OpenMerge

HALF_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(dtype: str, merge: OpenMerge) -> tuple[torch.dtype, str]:
    """The dtype of the merged checkpoint and the reason for it.

    Args:
        dtype: `bfloat16`, `float16`, or `auto`: the base's own if it is one of them, else the one that loses less.
    """
    if dtype != "auto":
        return HALF_DTYPES[dtype], "The recipe asks for it."
    of_base = [tensor for tensor in merge.plan.tensors.values() if tensor.replaced_by is None]
    found = {tensor.source.dtype for tensor in of_base if tensor.is_touched} or {t.source.dtype for t in of_base}
    if len(found) == 1 and next(iter(found)) in HALF_DTYPES.values():
        return next(iter(found)), "It is the base's own, so that every other tensor stays the base's byte by byte."
    losses = {half: rounding_loss(half, merge) for half in HALF_DTYPES.values()}
    best = min(losses, key=lambda half: losses[half])
    shown = ", ".join(f"{str(half).removeprefix('torch.')} {loss:.3e}" for half, loss in losses.items())
    return best, f"It loses less to rounding (sum of squares: {shown})."


def rounding_loss(dtype: torch.dtype, merge: OpenMerge) -> float:
    """Sum of the squared rounding errors of the merged tensors; infinite where they overflow."""
    total = 0.0
    for name in merge.plan.touched:
        for first, last in merge.plan.tensors[name].blocks():
            exact = merge.rows(name, first, last).float()
            total += float((exact - exact.to(dtype).float()).square().sum())
    return total
