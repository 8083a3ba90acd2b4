"""A base whose linear layers are kept in 4 or 8 bits while an adapter is trained on it.

In: a base and the bits; 4 are NF4 with double quantization, 8 are whole numbers with a scale for each row, both packed
by bitsandbytes. Out: a model whose layers unpack their weight for each product and never keep it.
Always: a row gives the same whatever it is computed with, and in training what it gives afterwards. bitsandbytes' own
8-bit product rounds activations by what else is in the batch, and its 4-bit one rounds them on some CPUs, outside
training alone. What came out of loading is counted, never believed.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from tunewright.errors import ModelError
from tunewright.recipe import Bits

BLOCK, NESTED_BLOCK, TABLE, NESTED_TABLE = 64, 256, 16, 256


@dataclass(frozen=True)
class QuantizedWeights:
    """What of a model is kept in fewer bits.

    Attributes:
        layers: how many linear layers.
        weights: how many numbers they hold.
        stored_bytes: what these take, with their scales.
    """

    layers: int
    weights: int
    stored_bytes: int

    def as_json(self) -> dict[str, int]:
        return asdict(self)


def quantization_config(bits: Bits, dtype: torch.dtype) -> Any:
    """What transformers takes for a base in so many bits that computes in `dtype`."""
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def quantized_layers(model: Any) -> Iterator[Any]:
    """The layers of bitsandbytes, without those that peft puts around them."""
    if "bitsandbytes" not in sys.modules:  # Then no model can have any, and the library need not be loaded to see it.
        return iter(())
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    return (module for module in model.modules() if isinstance(module, (Linear4bit, Linear8bitLt)))


def pack(weight: torch.Tensor, bits: Bits, device: str) -> torch.nn.Parameter:
    """A weight [out, in] as loading packs it for `quantization_config`."""
    from bitsandbytes.nn import Int8Params, Params4bit

    if bits == 8:
        whole: Any = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        whole = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4")
    packed: torch.nn.Parameter = whole.to(device)
    return packed


def packed_sha256(weight: Any) -> str:
    """SHA-256 of a packed weight: of all that unpacking it depends on beside tables that all layers share."""
    state = getattr(weight, "quant_state", None)
    tensors = packed_parts(weight)
    if state is not None and state.nested:
        tensors.append(state.offset)
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def packed_tensors(layer: Any) -> list[torch.Tensor]:
    """What a layer keeps of its weight; nothing where it is whole."""
    return packed_parts(layer.weight)


def packed_parts(weight: Any) -> list[torch.Tensor]:
    """The packed numbers of a weight and their scales, without tables that all layers share."""
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return [weight.data, state.absmax, state.state2.absmax] if state.nested else [weight.data, state.absmax]
    return [weight.data, weight.SCB] if getattr(weight, "SCB", None) is not None else []


def count_quantized(model: Any) -> QuantizedWeights:
    """What is really packed."""
    packed = [(layer, tensors) for layer in quantized_layers(model) if (tensors := packed_tensors(layer))]
    return QuantizedWeights(
        len(packed),
        sum(layer.in_features * layer.out_features for layer, _ in packed),
        sum(tensor.nbytes for _, tensors in packed for tensor in tensors),
    )


def validate_quantized(where: str, model: Any, bits: Bits) -> None:
    """Raise `ModelError` if a model that was asked for in few bits came out of loading in 16 or 32."""
    whole = [layer for layer in quantized_layers(model) if not packed_tensors(layer)]
    if whole or count_quantized(model).layers == 0:
        stored = sum(parameter.nbytes for parameter in model.parameters())
        raise ModelError(
            where,
            f"{bits} bits were asked for, but its weights came out in {model.dtype} ({stored / 2**30:.2f} GiB)",
            expected=f"linear layers in {bits} bits",
            mend="Check with `pip list` that bitsandbytes is whole; this base may have no layer that it can pack.",
        )


def validate_as_planned(where: str, found: QuantizedWeights, planned: dict[str, int]) -> None:
    """Raise `ModelError` if what is packed is not what the plan counted on."""
    if found.as_json() != planned:
        raise ModelError(
            where,
            f"{found.layers} layers came out packed, in {found.stored_bytes} bytes",
            expected=f"{planned['layers']} layers in {planned['stored_bytes']} bytes, as planned",
            mend="Plan again with the libraries that train.",
        )


def compute_unpacked(model: Any, dtype: torch.dtype) -> None:
    """Let every packed layer of `model` compute with its unpacked weight in `dtype`."""
    for layer in quantized_layers(model):
        layer.unpacked_dtype = dtype
        layer.unpacked_weight = partial(unpacked, layer)
        layer.forward = MethodType(_forward, layer)


def unpacked(layer: Any) -> torch.Tensor:
    """A packed layer's weight [out, in] in the dtype that the layer computes in."""
    return unpack(layer.weight, layer.unpacked_dtype)


def unpack(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """A packed weight [out, in] in `dtype`."""
    from bitsandbytes import functional

    state = getattr(weight, "quant_state", None)
    found: torch.Tensor
    if state is not None:
        found = functional.dequantize_4bit(weight.data, state)
    else:
        found = functional.int8_vectorwise_dequant(weight.data, weight.SCB)
    return found.to(dtype)


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _UnpackedLinear.apply(x, layer.bias, layer.unpacked_weight)  # type: ignore[no-untyped-call]
    return result


class _UnpackedLinear(torch.autograd.Function):
    """y = x·Wᵀ + bias, with W unpacked once forward and once backward."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, weight_of: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        ctx.weight_of = weight_of
        weight = weight_of()
        return torch.nn.functional.linear(x.to(weight.dtype), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight = ctx.weight_of()
        bias = gradient.flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        return gradient.to(weight.dtype) @ weight, bias, None


def outline_quantized(model: Any, bits: Bits, dtype: torch.dtype) -> None:
    """Put packed layers into a model on the meta device, where loading would put them."""
    from transformers.quantizers import AutoHfQuantizer

    quantizer = AutoHfQuantizer.from_config(quantization_config(bits, dtype), pre_quantized=False)
    quantizer.preprocess_model(model, dtype=dtype, device_map={"": "cpu"})
    quantizer.postprocess_model(model)


def pack_without_data(model: Any, dtype: torch.dtype, device: str) -> None:
    """Give the packed layers of such a model weights of the shapes that packing gives; call it in a fake mode."""
    from bitsandbytes.nn import Linear4bit

    for layer in quantized_layers(model):
        layer.weight = (_packed_in_four if isinstance(layer, Linear4bit) else _packed_in_eight)(layer, dtype, device)
    compute_unpacked(model, dtype)


def _packed_in_four(layer: Any, dtype: torch.dtype, device: str) -> Any:
    from bitsandbytes.functional import QuantState

    size = layer.in_features * layer.out_features
    blocks = -(-size // BLOCK)
    weight: Any = _frozen(torch.empty(-(-size // 2), 1, dtype=torch.uint8, device=device))
    scales = torch.empty(-(-blocks // NESTED_BLOCK), device=device)
    nested = QuantState(
        scales, code=torch.empty(NESTED_TABLE, device=device), blocksize=NESTED_BLOCK, dtype=scales.dtype
    )
    weight.quant_state = QuantState(
        torch.empty(blocks, dtype=torch.uint8, device=device),
        shape=torch.Size((layer.out_features, layer.in_features)),
        dtype=dtype,
        blocksize=BLOCK,
        code=torch.empty(TABLE, device=device),
        quant_type="nf4",
        offset=torch.empty((), device=device),
        state2=nested,
    )
    return weight


def _packed_in_eight(layer: Any, dtype: torch.dtype, device: str) -> Any:
    weight: Any = _frozen(torch.empty(layer.out_features, layer.in_features, dtype=torch.int8, device=device))
    weight.SCB = torch.empty(layer.out_features, device=device)
    return weight


def _frozen(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)
