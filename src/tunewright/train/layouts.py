"""How rows lie in a micro-batch, and the loss of an optimizer step over them.

    padded         each row whole, padded on the right to the longest
    shared_prefix  the tokens that all rows begin with are computed once for each optimizer step; each micro-batch then
                   holds the rest of its rows and attends to the prefix's keys and values, which collect the gradients
                   of all micro-batches before one backward pass through the prefix

Both give the loss of each supervised token and the gradients of plain padded rows, up to rounding. The output layer
sees supervised positions alone: a hook on it drops the others, so that scaling or capping of logits that a model does
afterwards still happens.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tunewright.chat.rows import TokenRow

PAD = 0  # Padded positions are masked out and never supervised, so any valid id does.


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, without the shared prefix.

    Attributes:
        ids_BT: int64, padded on the right.
        predicts_BT: bool, true where the next token is supervised.
        targets_N: int64, the supervised tokens in the order of `predicts_BT`.
        prefix_length: tokens of the shared prefix that stand before each row.
    """

    ids_BT: torch.Tensor
    predicts_BT: torch.Tensor
    targets_N: torch.Tensor
    prefix_length: int

    @property
    def tokens(self) -> int:
        return self.ids_BT.numel()


def build_micro_batch(rows: Sequence[TokenRow], prefix_length: int, device: torch.device | str) -> MicroBatch:
    """A micro-batch of `rows`, each without its first `prefix_length` tokens."""
    width = max(len(row.ids) for row in rows) - prefix_length
    ids = np.full((len(rows), width), PAD, dtype=np.int64)
    supervised = np.zeros((len(rows), width), dtype=np.bool_)
    for index, row in enumerate(rows):
        length = len(row.ids) - prefix_length
        ids[index, :length] = row.ids[prefix_length:]
        supervised[index, :length] = row.mask[prefix_length:]
    predicts = np.zeros_like(supervised)
    predicts[:, :-1] = supervised[:, 1:]
    return MicroBatch(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(predicts).to(device),
        torch.from_numpy(ids[:, 1:][supervised[:, 1:]]).to(device),
        prefix_length,
    )


@contextmanager
def only_supervised_logits(model: Any, predicts_BT: torch.Tensor) -> Iterator[None]:
    """Within this context the output layer gets hidden states [1, N, H] of the supervised positions alone."""

    def select(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (hidden_BTH, *rest) = inputs
        return (hidden_BTH[predicts_BT].unsqueeze(0), *rest)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def prefix_mask(batch: MicroBatch, dtype: torch.dtype) -> torch.Tensor:
    """What each position may see: the whole prefix and itself and what stands before it; additive, [1, 1, T, P + T].

    Padding stands after a row's last token, where causality hides it, so that one mask serves all rows, and rows
    without a prefix need none.
    """
    width = batch.ids_BT.shape[1]
    hidden = torch.full((width, batch.prefix_length + width), float("-inf"), dtype=dtype, device=batch.ids_BT.device)
    return hidden.triu(batch.prefix_length + 1)[None, None]


def loss_sum(model: Any, batch: MicroBatch, cache: Any = None) -> torch.Tensor:
    """The sum of cross-entropies (nats) over the batch's supervised tokens, a float32 scalar with its graph."""
    rows, width = batch.ids_BT.shape
    positions_T = torch.arange(batch.prefix_length, batch.prefix_length + width, device=batch.ids_BT.device)
    with only_supervised_logits(model, batch.predicts_BT):
        logits_NV = model(
            input_ids=batch.ids_BT,
            attention_mask=prefix_mask(batch, model.dtype) if batch.prefix_length else None,
            position_ids=positions_T.expand(rows, width),
            past_key_values=cache,
            use_cache=cache is not None,
        ).logits[0]
    return F.cross_entropy(logits_NV.float(), batch.targets_N, reduction="sum")


class SharedPrefix:
    """The keys and values of the prefix that all rows share, computed once for each optimizer step.

    Args:
        model: the model with its adapter.
        ids: int32 [P], the prefix.
        device: where the model is.
    """

    def __init__(self, model: Any, ids: NDArray[np.int32], device: torch.device | str) -> None:
        ids_1P = torch.from_numpy(ids.astype(np.int64)).unsqueeze(0).to(device)
        output = model(input_ids=ids_1P, use_cache=True, logits_to_keep=1)
        self._computed = [tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)]
        # Gradients of many micro-batches are added up here, so the leaves are float32 whatever the model computes in.
        self._leaves = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in self._computed]

    def cache(self, rows: int) -> Any:
        """A cache that holds the prefix for `rows` rows, for one forward pass."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(len(self._leaves) // 2):
            keys, values = (
                leaf.to(computed.dtype).expand(rows, -1, -1, -1)
                for leaf, computed in zip(
                    self._leaves[2 * layer :], self._computed[2 * layer : 2 * layer + 2], strict=False
                )
            )
            cache.update(keys, values, layer)
        return cache

    def backward(self) -> None:
        """Carry the gradients that the micro-batches left on keys and values back through the prefix."""
        reached = [
            (computed, leaf.grad.to(computed.dtype))
            for computed, leaf in zip(self._computed, self._leaves, strict=True)
            if leaf.grad is not None
        ]
        torch.autograd.backward([computed for computed, _ in reached], [gradient for _, gradient in reached])


class Layout:
    """Computes losses over rows in one of the layouts.

    Args:
        model: the model with its adapter.
        prefix: int32 [P], the shared prefix; empty for the padded layout.
        device: where the model is.
    """

    def __init__(self, model: Any, prefix: NDArray[np.int32], device: torch.device | str) -> None:
        self.model = model
        self.prefix = prefix
        self.device = device

    @property
    def name(self) -> str:
        return "shared_prefix" if len(self.prefix) else "padded"

    def loss_sums(self, micro_batches: Sequence[Sequence[TokenRow]], scale: float | None) -> list[float]:
        """The summed loss of each micro-batch; with `scale` also the gradients of `scale` times the whole sum.

        Args:
            micro_batches: rows, each beginning with the prefix.
            scale: what the loss is multiplied by before the backward pass; None computes no gradients.
        """
        learning: AbstractContextManager[Any] = nullcontext() if scale is not None else torch.no_grad()
        with learning:
            prefix = SharedPrefix(self.model, self.prefix, self.device) if len(self.prefix) else None
            sums = []
            for rows in micro_batches:
                batch = build_micro_batch(rows, len(self.prefix), self.device)
                loss = loss_sum(self.model, batch, prefix.cache(len(rows)) if prefix else None)
                if scale is not None:
                    (loss * scale).backward()  # type: ignore[no-untyped-call]
                sums.append(loss.item())
            if prefix and scale is not None:
                prefix.backward()
        return sums
