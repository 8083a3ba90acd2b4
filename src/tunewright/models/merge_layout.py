"""How a merged checkpoint lies in files: which tensor in which shard at which byte, all known beforehand."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tunewright.artifacts import write_json
from tunewright.models.merge_plan import MergePlan
from tunewright.models.safetensors_file import header_bytes
from tunewright.models.tensors import INDEX_FILE

SHARD_BYTES = 2**30


@dataclass
class Shard:
    """One file of the merged checkpoint.

    Attributes:
        tensors: dtype and shape by name, in the order of their bytes.
    """

    file: str = ""
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def header(self) -> bytes:
        return header_bytes(self.tensors)

    @property
    def data_bytes(self) -> int:
        return sum(tensor_bytes(*entry) for entry in self.tensors.values())

    def offsets(self) -> Iterator[tuple[str, int]]:
        """Each tensor with the byte of the file at which it begins."""
        position = len(self.header)
        for name, entry in self.tensors.items():
            yield name, position
            position += tensor_bytes(*entry)


def tensor_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize


def lay_out(plan: MergePlan, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """The shards of the merged checkpoint in `dtype`, each of at most `shard_bytes` unless one tensor is larger.

    Within a shard wider dtypes come first, so that every tensor lies at a multiple of its own width.
    """
    shards = [Shard()]
    size = 0
    for name, planned in plan.tensors.items():
        stored = planned.source
        entry = (dtype if stored.dtype.is_floating_point else stored.dtype, stored.shape)
        if shards[-1].tensors and size + tensor_bytes(*entry) > shard_bytes:
            shards.append(Shard())
            size = 0
        shards[-1].tensors[name] = entry
        size += tensor_bytes(*entry)
    for number, shard in enumerate(shards, 1):
        shard.tensors = dict(sorted(shard.tensors.items(), key=lambda item: -item[1][0].itemsize))
        one = len(shards) == 1
        shard.file = "model.safetensors" if one else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    return shards


def write_index(directory: Path, shards: list[Shard]) -> None:
    """The index that readers need where there are several shards."""
    if len(shards) > 1:
        total = sum(shard.data_bytes for shard in shards)
        weight_map = {name: shard.file for shard in shards for name in shard.tensors}
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


@dataclass(frozen=True)
class VirtualWeights:
    """Merged weights that stand in no file: the plan that makes them, and where a reader will look for each.

    Attributes:
        dtype: what they are rounded to.
        bytes: how many bytes they have then.
        places: a tensor's name by file name and position in the file.
    """

    plan: MergePlan
    dtype: torch.dtype
    bytes: int
    places: dict[tuple[str, int], str]


def write_virtual(directory: Path, plan: MergePlan, dtype: torch.dtype) -> VirtualWeights:
    """Write shards that are nothing but their headers, for a reader that is told where the tensors come from."""
    shards = lay_out(plan, dtype)
    for shard in shards:
        (directory / shard.file).write_bytes(shard.header)
    write_index(directory, shards)
    places = {(shard.file, position): name for shard in shards for name, position in shard.offsets()}
    return VirtualWeights(plan, dtype, sum(shard.data_bytes for shard in shards), places)
