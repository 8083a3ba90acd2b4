"""The LoRA linear layer as one operation: y = x·Wᵀ + (s·x·Aᵀ)·Bᵀ, with the gradients written out.

peft computes the two paths apart, scales the wide one and adds; each of these passes over [tokens, out] costs what
reading the result again would, forward and backward. Here the scale falls on the narrow side [tokens, r], and both sums
happen inside the matrix products. Shapes: x is [..., in], W [out, in], A [r, in], B [out, r]; the weights W are frozen
and get no gradient. A weight that is packed in fewer bits is unpacked for each product and never kept.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_of: Callable[[], torch.Tensor],
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        narrow = (flat @ a.t()).mul_(scaling)
        weight = weight_of()
        wide = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        wide.addmm_(narrow, b.t())
        ctx.save_for_backward(flat, a, b, narrow)
        ctx.weight_of, ctx.scaling = weight_of, scaling
        return wide.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        flat, a, b, narrow = ctx.saved_tensors
        wide = gradient.reshape(-1, gradient.shape[-1])
        narrow_gradient = (wide @ b).mul_(ctx.scaling)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            weight = ctx.weight_of()
            x_gradient = (wide @ weight).addmm_(narrow_gradient, a).view(*gradient.shape[:-1], weight.shape[1])
        return x_gradient, None, None, narrow_gradient.t() @ flat, wide.t() @ narrow, None


def _forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    (adapter,) = module.active_adapters
    a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    base = module.base_layer
    result: torch.Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
        x, _weight_of(base), base.bias, a, b, module.scaling[adapter]
    )
    return result


def _weight_of(base: Any) -> Callable[[], torch.Tensor]:
    """What gives a linear layer's weight, unpacked where it is kept in fewer bits."""
    return getattr(base, "unpacked_weight", None) or (lambda: base.weight)


def fuse_lora_layers(model: Any) -> int:
    """Let every plain LoRA layer of a peft model compute in one operation; how many there were.

    A layer is left to peft where one operation would not be the same: dropout, DoRA and the like, a bias on B or one
    that is trained, a base layer that computes in another dtype than the adapter.
    """
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    fused = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper) and _is_plain(module):
            module.forward = MethodType(_forward, module)
            fused += 1
    return fused


def _is_plain(module: Any) -> bool:
    base = module.base_layer
    is_packed = hasattr(base, "unpacked_weight")
    if not (is_packed or type(base) is torch.nn.Linear) or len(module.active_adapters) != 1:
        return False
    (adapter,) = module.active_adapters
    a, b = module.lora_A[adapter], module.lora_B[adapter]
    computed_dtype = base.unpacked_dtype if is_packed else base.weight.dtype
    return (
        isinstance(module.lora_dropout[adapter], torch.nn.Identity)
        and not module.lora_variant
        and b.bias is None
        and {a.weight.dtype, b.weight.dtype} == {computed_dtype}
        and not any(parameter.requires_grad for parameter in base.parameters())
    )
