"""Attention over a pack: each segment sees itself causally, and whole what stands before it in its rows.

In: queries [1, H, T, D] of the pack's tokens, keys and values [1, K, P + T, D] (K divides H), where P tokens of a
prefix that was computed before stand in front, and the pack's segments. Out: [1, T, H, D], equal to what each row alone
would compute.

On the CPU the parts are computed by themselves and put together by the logarithms of their sums, as in ring attention
(Liu, Zaharia, Abbeel 2023, https://arxiv.org/abs/2310.01889): nothing is masked, copied or repeated. Elsewhere each
segment attends to a copy of its keys, through whatever kernel torch has for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from tunewright.layouts.packing import Segment

NAME = "tunewright_packed"
Part = tuple[slice, slice, bool]
"""Queries, keys, and whether they are the same tokens, of which each sees itself and those before it."""


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Sequence[Segment],
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in place of its own attention, in every layer; see the module."""
    del module, attention_mask
    if dropout or any(options.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise ValueError("this attention has no dropout, soft cap, sinks or position bias")
    prefix = key.shape[2] - query.shape[2]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu" and query.dtype == key.dtype:
        output = _Parts.apply(query, key, value, parts_of(segments, prefix), scale)  # type: ignore[no-untyped-call]
    else:
        output = attend_by_segment(query, key, value, segments, scale)
    return output.transpose(1, 2), None


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """Within this context, backward passes included, the model computes with `packed_attention`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    usual = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in usual:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in usual:
            config._attn_implementation = name


def parts_of(segments: Sequence[Segment], prefix: int) -> list[Part]:
    """Each segment with itself, then what continues it with the whole segment, then everything with the prefix."""
    end = segments[-1].end
    parts = [(slice(each.start, each.end), slice(prefix + each.start, prefix + each.end), True) for each in segments]
    parts += [
        (slice(each.end, each.reach), slice(prefix + each.start, prefix + each.end), False)
        for each in segments
        if each.reach > each.end
    ]
    return [*parts, (slice(0, end), slice(0, prefix), False)] if prefix else parts


class _Parts(torch.autograd.Function):
    """Attention by parts, through the kernel that torch uses on the CPU."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, parts: Sequence[Part], scale: float
    ) -> torch.Tensor:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        logsums = query.new_empty(query.shape[:3], dtype=torch.float32)
        for queries, keys, causal in parts:
            out, logsum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, causal, scale=scale
            )
            if causal:  # The first part of these queries.
                output[:, :, queries], logsums[:, :, queries] = out, logsum
            else:
                _merge(output[:, :, queries], logsums[:, :, queries], out, logsum)
        ctx.save_for_backward(query, key, value, output, logsums)
        ctx.parts, ctx.scale = parts, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, logsums = ctx.saved_tensors
        # With the sums of all parts, each part's backward pass is its share of the whole one.
        gradients = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for queries, keys, causal in ctx.parts:
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                output[:, :, queries],
                logsums[:, :, queries],
                0.0,
                causal,
                scale=ctx.scale,
            )
            for whole, part, where in zip(gradients, found, (queries, keys, keys), strict=True):
                whole[:, :, where] += part
        return (*gradients, None, None)


def _merge(output: torch.Tensor, logsums: torch.Tensor, out: torch.Tensor, logsum: torch.Tensor) -> None:
    """Take one more part into `output` [1, H, T, D] and `logsums` [1, H, T]."""
    together = torch.logaddexp(logsums, logsum)
    output.mul_((logsums - together).exp().unsqueeze(-1).to(output.dtype))
    output.add_(out * (logsum - together).exp().unsqueeze(-1).to(output.dtype))
    logsums.copy_(together)


def attend_by_segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Sequence[Segment], scale: float
) -> torch.Tensor:
    """The same, segment by segment, each with a copy of the keys and values that it sees."""
    from torch.nn.attention.bias import causal_lower_right

    prefix = key.shape[2] - query.shape[2]
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for each in segments:
        seen = [(0, prefix)] * bool(prefix)
        seen += [(prefix + start, prefix + end) for start, end in (*each.ancestors, (each.start, each.end))]
        keys, values = (torch.cat([tensor[:, :, a:b] for a, b in seen], dim=2) for tensor in (key, value))
        mine = query[:, :, each.start : each.end]
        if keys.shape[2] == mine.shape[2]:
            out = F.scaled_dot_product_attention(mine, keys, values, is_causal=True, scale=scale, enable_gqa=grouped)
        else:
            bias = causal_lower_right(mine.shape[2], keys.shape[2])
            keys, values = (tensor.repeat_interleave(mine.shape[1] // key.shape[1], dim=1) for tensor in (keys, values))
            out = F.scaled_dot_product_attention(mine, keys, values, attn_mask=bias, scale=scale)
        outputs.append(out)
    return torch.cat(outputs, dim=2)
