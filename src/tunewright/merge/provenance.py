"""Has a base that calls itself 16-bit been through 4 bits? The adapter would be merged into what was lost there."""

import torch

from tunewright.errors import MergeError
from tunewright.models.base import Base
from tunewright.models.safetensors_file import StoredTensor, TensorReader, stored_tensors

BLOCK = 64
LEVELS = 16
BLOCKS_LOOKED_AT = 256
TENSORS_LOOKED_AT = 16


def validate_sixteen_bits(base: Base) -> None:
    """Raise `MergeError` if the weights have no more values than 4 bits can tell apart.

    In each block of 64 weights of a 16-bit model nearly all values differ; after 4 bits with a scale for each block
    there are at most 16. The embedded base is what it is: its hash is its identity.
    """
    if base.name.startswith("embedded:"):
        return
    matrices = {name: tensor for name, tensor in stored_tensors(base.path).items() if is_weight_matrix(tensor)}
    chosen = list(matrices)[:: max(len(matrices) // TENSORS_LOOKED_AT, 1)]
    with TensorReader() as reader:
        coarse = [name for name in chosen if has_few_levels(reader, matrices[name])]
    if len(coarse) * 2 > len(chosen):
        raise MergeError(
            str(base.path),
            f"the base was quantized to 4 bits and back: {coarse[0]} has at most {LEVELS} different values in each "
            f"block of {BLOCK}",
            expected="the 16-bit original",
            mend="Name the original checkpoint: what was lost in 4 bits does not come back.",
        )


def is_weight_matrix(tensor: StoredTensor) -> bool:
    return len(tensor.shape) >= 2 and tensor.row_elements % BLOCK == 0 and tensor.dtype.is_floating_point


def has_few_levels(reader: TensorReader, tensor: StoredTensor) -> bool:
    rows = min(tensor.rows, max(BLOCKS_LOOKED_AT * BLOCK // tensor.row_elements, 1))
    blocks = reader.read(tensor, 0, rows).float().reshape(-1, BLOCK)[:BLOCKS_LOOKED_AT]
    ordered = blocks.sort(dim=1).values
    values = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(dim=1)
    # Blocks that are constant, or nearly, say nothing: an untrained row may be all zeros.
    telling = values[values > 2]
    return bool(len(telling) > 0 and torch.all(telling <= LEVELS))
