"""How the rows of an optimizer step lie in micro-batches, and the loss over them.

padded         each row whole, padded on the right to the longest of its micro-batch: the reference
packed         rows end to end without padding, in packs of as many tokens as a padded micro-batch may have
shared_prefix  packed, and what rows begin with in common is computed once: within a pack it stands there once, with
               groups within groups; where a step takes several packs, what all rows begin with is computed before them,
               and its keys and values collect the gradients of all packs before one backward pass through it

All give the loss of each supervised token and the gradients of plain padded rows, up to rounding. The output layer sees
supervised positions alone.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tunewright.chat.order import split_by_length
from tunewright.chat.rows import TokenRow, shared_prefix
from tunewright.layouts.attention import packed
from tunewright.layouts.loss import causal_lm, loss_sum
from tunewright.layouts.packing import LEAST_SHARED, Pack, pack, plan_packs

PAD = 0  # Padded positions stand behind their row and are never supervised, so any valid id does.
Kind = Literal["padded", "packed", "shared_prefix"]
# What a model raises whose attention is made otherwise than `packed_attention` takes it.
LAYOUT_FAILURES = (TypeError, ValueError, RuntimeError, AttributeError)


@dataclass(frozen=True)
class Layout:
    """Computes losses over rows in one of the layouts.

    Attributes:
        model: the model with its adapter.
        kind: which layout.
        device: where the model is.
        batch_size: rows of a padded micro-batch.
        budget: tokens that a pack may have.
        keeps_prefix: whether keys and values of a prefix can be kept for several packs; checkpointing drops them.
    """

    model: Any
    kind: Kind
    device: torch.device | str
    batch_size: int
    budget: int = 0
    keeps_prefix: bool = True

    def loss_sums(self, rows: Sequence[TokenRow], scale: float | None) -> list[torch.Tensor]:
        """The summed loss of each micro-batch, float32; with `scale` also the gradients of `scale` times the whole sum.

        Args:
            rows: of an optimizer step.
            scale: what the loss is multiplied by before the backward pass; None computes no gradients.
        """
        learning: AbstractContextManager[Any] = nullcontext() if scale is not None else torch.no_grad()
        with learning:
            if self.kind == "padded":
                batches = split_by_length(rows, self.batch_size)
                return [self._learn(padded_loss(self.model, batch, self.device), scale) for batch in batches]
            with packed(causal_lm(self.model)):
                return self._packed_sums(rows, scale)

    def tokens(self, rows: Sequence[TokenRow]) -> int:
        """How many tokens pass through the model for these rows: no padding, and what is shared once."""
        if self.kind != "shared_prefix":
            return sum(len(row.ids) for row in rows)
        common, packs = self._packs(rows)
        return len(common) + sum(each.tokens for each in packs)

    def micro_batches(self, rows: Sequence[TokenRow]) -> int:
        """How many passes through the model these rows take, where no prefix is kept for several packs."""
        if self.kind == "padded":
            return len(split_by_length(rows, self.batch_size))
        return len(plan_packs(rows, self.budget, 0, self.kind == "shared_prefix"))

    def smaller(self, rows: Sequence[TokenRow]) -> "Layout | None":
        """The same layout with micro-batches half as large; None where each of these rows is one by itself already."""
        if self.kind == "padded":
            return replace(self, batch_size=self.batch_size // 2) if min(self.batch_size, len(rows)) > 1 else None
        sharing = self.kind == "shared_prefix"
        tokens = [pack(part, 0, sharing).tokens for part in plan_packs(rows, self.budget, 0, sharing) if len(part) > 1]
        return replace(self, budget=max(tokens) // 2) if tokens else None

    def _packed_sums(self, rows: Sequence[TokenRow], scale: float | None) -> list[torch.Tensor]:
        common, packs = self._packs(rows)
        if not len(common):
            return [self._learn(pack_loss(self.model, each, self.device), scale) for each in packs]
        prefix = SharedPrefix(self.model, common, self.device)
        sums = [self._learn(pack_loss(self.model, each, self.device, prefix.cache()), scale) for each in packs]
        if scale is not None:
            prefix.backward()
        return sums

    def _packs(self, rows: Sequence[TokenRow]) -> tuple[NDArray[np.int32], list[Pack]]:
        """What is computed before all packs, which may be nothing, and the packs behind it."""
        sharing = self.kind == "shared_prefix"
        parts, common = plan_packs(rows, self.budget, 0, sharing), rows[0].ids[:0]
        if sharing and self.keeps_prefix and len(parts) > 1 and len(prefix := shared_prefix(rows)) >= LEAST_SHARED:
            parts, common = plan_packs(rows, self.budget, len(prefix), sharing), prefix
        return common, [pack(part, len(common), sharing) for part in parts]

    def _learn(self, loss: torch.Tensor, scale: float | None) -> torch.Tensor:
        if scale is not None:
            (loss * scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def plain_loss(model: Any, row: TokenRow, device: torch.device | str) -> float:
    """The summed loss of one row by the model's own forward pass, all logits computed."""
    ids_T, mask_T = torch.from_numpy(row.ids.astype(np.int64)).to(device), torch.from_numpy(row.mask).to(device)
    logits_TV = causal_lm(model)(input_ids=ids_T[None], use_cache=False).logits[0]
    found = F.cross_entropy(logits_TV[:-1].float(), ids_T[1:], reduction="none")
    return float(found[mask_T[1:]].double().sum())


def padded_loss(model: Any, rows: Sequence[TokenRow], device: torch.device | str) -> torch.Tensor:
    """The summed loss of rows, each padded on the right, where causality hides the padding."""
    width = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), width), PAD, dtype=np.int64)
    supervised = np.zeros((len(rows), width), dtype=np.bool_)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)], supervised[index, : len(row.ids)] = row.ids, row.mask
    found = np.flatnonzero(supervised)
    sources, targets = (torch.from_numpy(numbers).to(device) for numbers in (found - 1, ids.flat[found]))
    hidden_BTH = hidden_states(model, ids, np.tile(np.arange(width), (len(rows), 1)), device)
    return loss_sum(model, hidden_BTH.flatten(0, 1).index_select(0, sources), targets)


def pack_loss(model: Any, rows: Pack, device: torch.device | str, cache: Any = None) -> torch.Tensor:
    """The summed loss of a pack, which may attend to the prefix in `cache`; inside `packed(model)` only."""
    options = {"past_key_values": cache, "use_cache": True} if cache is not None else {}
    hidden_1TH = hidden_states(model, rows.ids[None], rows.positions[None], device, segments=rows.segments, **options)
    sources, targets = (torch.from_numpy(numbers).to(device) for numbers in (rows.sources, rows.targets))
    return loss_sum(model, hidden_1TH[0].index_select(0, sources), targets)


def hidden_states(
    model: Any, ids: NDArray[np.int64], positions: NDArray[np.int64], device: torch.device | str, **options: Any
) -> torch.Tensor:
    """What the body gives for ids and positions [B, T]: [B, T, H]."""
    ids_BT, positions_BT = (torch.from_numpy(each).to(device) for each in (ids, positions))
    options = {"use_cache": False, **options}
    body = causal_lm(model).base_model
    hidden: torch.Tensor = body(input_ids=ids_BT, position_ids=positions_BT, **options).last_hidden_state
    return hidden


class SharedPrefix:
    """The keys and values of what all rows of a step begin with, computed once; inside `packed(model)` only.

    Args:
        model: the model with its adapter.
        ids: int32 [P], the prefix.
        device: where the model is.
    """

    def __init__(self, model: Any, ids: NDArray[np.int32], device: torch.device | str) -> None:
        from transformers import DynamicCache

        whole = pack([TokenRow(ids, np.zeros(len(ids), np.bool_), len(ids))])
        cache = DynamicCache()
        hidden_states(
            model, whole.ids[None], whole.positions[None], device,
            segments=whole.segments, past_key_values=cache, use_cache=True,
        )  # fmt: skip
        self._computed = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        # Gradients of many packs are added up here, so the leaves are float32 whatever the model computes in.
        self._leaves = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in self._computed]

    def cache(self) -> Any:
        """A cache that holds the prefix, for one forward pass."""
        from transformers import DynamicCache

        cache = DynamicCache()
        tensors = [leaf.to(computed.dtype) for leaf, computed in zip(self._leaves, self._computed, strict=True)]
        for layer in range(len(tensors) // 2):
            cache.update(tensors[2 * layer], tensors[2 * layer + 1], layer)
        return cache

    def backward(self) -> None:
        """Carry the gradients that the packs left on keys and values back through the prefix."""
        reached = [
            (computed, leaf.grad.to(computed.dtype))
            for computed, leaf in zip(self._computed, self._leaves, strict=True)
            if leaf.grad is not None
        ]
        torch.autograd.backward([computed for computed, _ in reached], [gradient for _, gradient in reached])
