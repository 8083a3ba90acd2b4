"""Why are a GGUF tensor's values not the checkpoint's? The accidents that are known to happen, told apart by trying.

In go the values that should be there and those that are, as float32, and a function that says whether two agree within
what rounding costs; out come words, empty where no accident fits.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Agree = Callable[[Floats, Floats], bool]

BLOCK = 32
FEW_LEVELS = 16  # What 4 bits can tell apart.
SORTED_TOLERANCE = 1e-3


def diagnose_values(expected: Floats, found: Floats, in_checkpoint_order: Floats | None, agree: Agree) -> str:
    """The likeliest reason for the difference.

    Args:
        expected: as the file should hold it; rotary rows interleaved where they are.
        in_checkpoint_order: the same with rows as the checkpoint has them, where that is another order.
        agree: takes expected and found values.
    """
    if in_checkpoint_order is not None and agree(in_checkpoint_order, found):
        return "its rows stand as the checkpoint has them, the permutation of the rotary halves is lost"
    if agree(expected + 1, found):
        return "it is 1 more in every element, the norm was folded twice"
    for step in (1, -1):
        if agree(np.roll(expected, step, axis=0), found):
            return "its rows are shifted by one"
    if expected.ndim == 2 and expected.shape[1] % BLOCK == 0:
        if has_few_levels(found) and not has_few_levels(expected):
            return "it went through 4 bits before, it was quantized twice"
        if have_same_blocks(expected, found):
            return f"its blocks of {BLOCK} values stand in another order"
    return ""


def has_few_levels(values: Floats) -> bool:
    """Whether no block has more different values than 4 bits can tell apart, beyond blocks that are nearly constant."""
    ordered = np.sort(values.reshape(-1, BLOCK), axis=1)
    levels = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    telling = levels[levels > 2]
    return bool(len(telling)) and int(telling.max()) <= FEW_LEVELS


def have_same_blocks(expected: Floats, found: Floats) -> bool:
    """Whether both hold blocks of the same largest values, whatever their order."""
    one, other = (np.sort(np.abs(values.reshape(-1, BLOCK)).max(axis=1)) for values in (expected, found))
    return bool(np.allclose(one, other, rtol=SORTED_TOLERANCE))
