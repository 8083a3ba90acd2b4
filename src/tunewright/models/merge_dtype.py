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
    found = dtypes_changed(merge)
    if len(found) == 1 and next(iter(found)) in HALF_DTYPES.values():
        others = any(not tensor.is_touched for tensor in merge.plan.tensors.values())
        kept = ", so that every other tensor stays the base's byte by byte" if others else ""
        return next(iter(found)), f"It is the base's own{kept}."
    losses = {half: rounding_loss(half, merge) for half in HALF_DTYPES.values()}
    best = min(losses, key=lambda half: losses[half])
    shown = ", ".join(f"{str(half).removeprefix('torch.')} {loss:.3e}" for half, loss in losses.items())
    return best, f"It loses less to rounding (sum of squares: {shown})."


def dtypes_changed(merge: OpenMerge) -> set[torch.dtype]:
    """What the base keeps its matrices in that the adapter changes; where there are none, all of its tensors."""
    of_base = [(tensor.is_touched, tensor.of_base) for tensor in merge.plan.tensors.values()]
    changed = {each.dtype for touched, each in of_base if each and touched and len(each.shape) > 1}
    return changed or {each.dtype for _, each in of_base if each}


def rounding_loss(dtype: torch.dtype, merge: OpenMerge) -> float:
    """Sum of the squared rounding errors of the merged tensors; infinite where they overflow."""
    total = 0.0
    for name in merge.plan.touched:
        for first, last in merge.plan.tensors[name].blocks():
            exact = merge.rows(name, first, last).float()
            total += float((exact - exact.to(dtype).float()).square().sum())
    return total
