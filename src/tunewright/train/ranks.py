"""The processes that train one adapter together, one for each device, as torchrun or accelerate start them.

The first does the whole job; the others do nothing but take their share of each optimizer step. Each computes the
gradients of its rows' summed loss; the sum over all is the gradient of the step as one process would compute it. So the
number of processes changes nothing that is learned but the order of additions: the effective batch stays as it was
asked for. In: rows, gradients, numbers. Out: this process's share, and sums over all of them.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from tunewright.chat.rows import TokenRow
from tunewright.models.base import decoder_layers
from tunewright.parallel import launched_processes

# The others wait while the first one reads data, merges and verifies.
PATIENCE = timedelta(days=7)
BUCKET_NUMBERS = 1 << 24
# What the first process tells the others: to train beside it, and that all is done.
TRAIN, END = "train", "end"


@dataclass(frozen=True)
class Ranks:
    """The processes of this run.

    Attributes:
        rank: this one's number; 0 does the whole job.
        count: how many there are; with 1 nothing is ever sent.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, rows: Sequence[TokenRow]) -> list[TokenRow]:
        """This process's rows: dealt out by length, back and forth, so that all have about as many tokens."""
        if self.count == 1:
            return list(rows)
        ordered = sorted(rows, key=lambda row: -len(row.ids))
        rounds = range(0, len(ordered), self.count)
        places = (
            start + (self.rank if turn % 2 == 0 else self.count - 1 - self.rank) for turn, start in enumerate(rounds)
        )
        return [ordered[place] for place in places if place < len(ordered)]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Put the sum of all processes' gradients in the place of each one's; a missing gradient counts as zeros."""
        if self.count == 1:
            return
        bucket: list[torch.Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(each.numel() for each in bucket) >= BUCKET_NUMBERS:
                sum_in_place(bucket)
                bucket = []
        if bucket:
            sum_in_place(bucket)

    def sum(self, value: float) -> float:
        """The sum of a number over all processes, in float64."""
        if self.count == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return float(total)

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.count == 1:
            return number
        largest = torch.tensor([number])
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest)

    def tell(self, word: Any = None) -> Any:
        """What the first process says here, in every process."""
        if self.count == 1:
            return word
        words = [word]
        torch.distributed.broadcast_object_list(words, src=0)
        return words[0]


def sum_in_place(tensors: Sequence[torch.Tensor]) -> None:
    """Sum tensors over all processes, in one message for each dtype."""
    for dtype in dict.fromkeys(each.dtype for each in tensors):
        alike = [each for each in tensors if each.dtype == dtype]
        joined = torch.cat([each.flatten() for each in alike])
        torch.distributed.all_reduce(joined)
        for each, summed in zip(alike, torch.split(joined, [each.numel() for each in alike]), strict=True):
            each.copy_(summed.view_as(each))


def shard_layers(model: Any, device: str) -> None:
    """Let each process keep a part of the layers' frozen weights, on `device`; a layer is whole while it computes.

    What is trained stays whole everywhere, so that gradients, checkpoints and the optimizer are as without sharding.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for layer in decoder_layers(model):
        trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
        # A layer that belongs to no sharded module would else stay whole after a pass without gradients.
        fully_shard(layer.to(device), mesh=mesh, reshard_after_forward=True, ignored_params=trained)


def open_ranks() -> Ranks:
    """The processes that this one was started with; itself alone where nothing says otherwise."""
    if launched_processes() == 1:
        return Ranks()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
