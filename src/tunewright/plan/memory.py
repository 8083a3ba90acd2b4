"""The peak memory of one training step, predicted without weights and without the device.

In goes a model configuration, the dtypes, the recipe and the rows of one step with their layout. The real
architecture is built on fake tensors (shape, dtype and device, but no data), the step that training makes is run on
them by the same code, with the optimizer state in place, and every storage is counted from the operation that makes it
to the moment that Python or autograd lets go of it. Out comes the highest sum, and what it was made of.

What is not in the figure: the CUDA context, blocks that an allocator keeps without using them, the interpreter and its
libraries, and scratch memory that an operator takes and gives back inside itself. On the CPU the second of these is
large unless the training process pins glibc's M_MMAP_THRESHOLD (1 MiB, say): left alone, glibc raises it to 32 MiB as
soon as it sees large blocks freed, and then keeps activations in a heap that it cannot give back. Measured on a 135M
Llama in float32, the resident peak was 1.01 to 1.04 times the prediction with the threshold pinned, and 1.3 to 1.8
times without.
"""

import copy
import math
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, PretrainedConfig, masking_utils

from tunewright.chat.rows import TokenRow
from tunewright.errors import ModelError
from tunewright.layouts.fused_lora import fuse_lora_layers
from tunewright.layouts.layout import Kind, Layout
from tunewright.models.base import decoder_layers, with_adapter
from tunewright.models.lora import lora_config
from tunewright.models.optimizer import open_optimizer
from tunewright.models.quantized import (
    QuantizedWeights,
    count_quantized,
    outline_quantized,
    pack_without_data,
    packed_tensors,
    quantized_layers,
)
from tunewright.recipe import TrainKeys

Device = Literal["cpu", "cuda"]
PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits")

# The CUDA caching allocator hands out multiples of 512 bytes (kMinBlockSize in c10/cuda/CUDACachingAllocator.h).
# The CPU allocator aligns to 64; there the difference is below 1 MiB for any model.
ALLOCATION_BYTES = 512


@dataclass(frozen=True)
class Step:
    """What of an optimizer step is traced: rows of its most expensive micro-batches, and how they lie.

    Attributes:
        rows: of two micro-batches where there are several, since gradients are there from the second one on.
        kind, batch_size, budget, keeps_prefix: as in `Layout`.
    """

    rows: Sequence[TokenRow]
    kind: Kind
    batch_size: int
    budget: int
    keeps_prefix: bool = True


@dataclass(frozen=True)
class MemoryPrediction:
    """What one step needs at its peak.

    Attributes:
        peak_bytes: the highest number of bytes that tensors hold at one time.
        breakdown: bytes at that time by part (`PARTS`), summing to `peak_bytes`. Weights, adapter, gradients and
            optimizer are exact sizes; activations take everything else, buffers and the allocator's rounding too.
        seconds_to_trace: how long the prediction took.
        traced_device: whose kernels were traced: `cpu` stands in for `cuda` on a machine without CUDA.
        quantized: what of the base is kept in fewer bits; None where nothing is.
        layer_bytes: the frozen weights of each layer.
    """

    peak_bytes: int
    breakdown: dict[str, int]
    seconds_to_trace: float
    traced_device: Device = "cpu"
    quantized: QuantizedWeights | None = None
    layer_bytes: Sequence[int] = ()

    def sharded(self, processes: int) -> "MemoryPrediction":
        """The same step where each process keeps its part of the layers, and two whole ones: this one and the next."""
        kept = sum(self.layer_bytes) // processes + sum(sorted(self.layer_bytes)[-2:])
        spared = max(0, sum(self.layer_bytes) - kept)
        breakdown = {**self.breakdown, "weights": self.breakdown["weights"] - spared}
        return replace(self, peak_bytes=self.peak_bytes - spared, breakdown=breakdown)


@dataclass(frozen=True)
class Allocation:
    """The start or the end of one storage's life."""

    serial: int
    stored_bytes: int
    is_release: bool

    @property
    def taken_bytes(self) -> int:
        """Bytes that the allocator takes (positive) or gives back (negative)."""
        rounded = -(-self.stored_bytes // ALLOCATION_BYTES) * ALLOCATION_BYTES
        return -rounded if self.is_release else rounded


class AboveCeilingError(Exception):
    """A step takes more memory than is of interest."""


class StorageLog(TorchDispatchMode):
    """Records when each storage that an operator returns comes to life and when it dies.

    Storages can be labelled with a part at any time in their lives; tensors shaped like the logits label themselves.
    Where they take more than `ceiling` bytes, `AboveCeilingError` ends what allocates them.
    """

    def __init__(self, vocab_size: int, ceiling: float = math.inf) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.vocab_size = vocab_size
        self.ceiling = ceiling
        self.allocations: list[Allocation] = []
        self.parts: dict[int, str] = {}
        self.current_bytes = 0
        self.peak_bytes = 0
        self.peak_index = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.record, result)
        return result

    def record(self, tensor: torch.Tensor) -> torch.Tensor:
        """Log the storage of `tensor` unless it is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._live:
            birth = Allocation(len(self.allocations), storage.nbytes(), is_release=False)
            self._live[key] = birth.serial
            self._append(birth)
            weakref.finalize(storage, self._release, key, birth).atexit = False
            if tensor.ndim and tensor.shape[-1] == self.vocab_size:
                self.parts[birth.serial] = "logits"
        return tensor

    def label(self, tensor: torch.Tensor, part: str) -> None:
        """Count the storage of `tensor` as `part`, from its birth on."""
        self.record(tensor)
        self.parts[self._live[tensor.untyped_storage()._cdata]] = part

    def _release(self, key: int, birth: Allocation) -> None:
        del self._live[key]
        self._append(Allocation(birth.serial, birth.stored_bytes, is_release=True))

    def _append(self, allocation: Allocation) -> None:
        self.allocations.append(allocation)
        self.current_bytes += allocation.taken_bytes
        if self.current_bytes > self.peak_bytes:
            self.peak_bytes = self.current_bytes
            self.peak_index = len(self.allocations)
            if self.peak_bytes > self.ceiling:
                raise AboveCeilingError

    def breakdown(self) -> dict[str, int]:
        """Bytes by part at the peak; what no label covers counts as activations."""
        live: dict[int, int] = {}
        for allocation in self.allocations[: self.peak_index]:
            if allocation.is_release:
                del live[allocation.serial]
            else:
                live[allocation.serial] = allocation.stored_bytes
        parts = dict.fromkeys(PARTS, 0)
        for serial, stored_bytes in live.items():
            parts[self.parts.get(serial, "activations")] += stored_bytes
        parts["activations"] += self.peak_bytes - sum(parts.values())
        return parts


def predict_peak_bytes(
    config: PretrainedConfig,
    keys: TrainKeys,
    *,
    base_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    adapter_dtype: torch.dtype = torch.float32,
    step: Step,
    device: Device = "cpu",
    ceiling: float = math.inf,
) -> MemoryPrediction:
    """The peak memory of one step `forward, backward, clip_grad_norm_, optimizer` of what the recipe trains.

    Args:
        config: the base's configuration; it is not changed.
        keys: the recipe: the adapter's shape, the optimizer, checkpointing (`use_reentrant=False`), the base's bits.
        base_dtype: the dtype in which the base's weights are held.
        compute_dtype: the dtype of autocast if it differs from `base_dtype`; the same dtype means no autocast.
        adapter_dtype: the dtype of the adapter, its gradients and its optimizer state.
        step: the rows and their layout.
        device: where the step will run. Without CUDA here, the CPU's kernels stand in for those of `cuda`: autograd in
            torch needs a driver for `cuda` tensors, fake ones too. Both devices have attention that keeps no scores,
            but float32 attention with grouped heads and no mask may keep them on `cuda` alone.
        ceiling: bytes. A step that takes more is not followed further, and its peak is what it has reached.

    Raises:
        ModelError: the architecture is not a causal language model that can be run without data.
    """
    start = time.perf_counter()
    traced: Device = "cuda" if device == "cuda" and torch.cuda.is_available() else "cpu"
    autocast_dtype = None if compute_dtype == base_dtype else compute_dtype
    vocab_size = config.get_text_config().vocab_size
    log = StorageLog(vocab_size, ceiling)
    try:
        model = _meta_model(config, keys, base_dtype)
        with FakeTensorMode(allow_non_fake_inputs=True), _unpacked_positions():
            if keys.bits:
                pack_without_data(model, base_dtype, traced)
            _make_fake(model, adapter_dtype, traced)
            if keys.gradient_checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": False})
                model.enable_input_require_grads()
            fuse_lora_layers(model)
            model.train()
            optimizer = _optimizer_with_state(model, keys, device)
            layout = Layout(model, step.kind, traced, step.batch_size, step.budget, step.keeps_prefix)
            with suppress(AboveCeilingError), log:
                _label_parts(model, optimizer, log, "weights" if keys.is_full else "adapter")
                _run_step(layout, step.rows, optimizer, _autocast(traced, autocast_dtype))
    except _UNTRACEABLE as error:
        raise ModelError(
            f"model type {config.model_type!r}",
            f"its memory cannot be predicted ({type(error).__name__}: {error})",
            "a causal language model whose operators do not depend on the data",
        ) from error
    quantized = count_quantized(model) if keys.bits else None
    layers = [_frozen_bytes(layer) for layer in decoder_layers(model)] if keys.fsdp else []
    return MemoryPrediction(log.peak_bytes, log.breakdown(), time.perf_counter() - start, traced, quantized, layers)


def _frozen_bytes(layer: torch.nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in layer.parameters() if not each.requires_grad)


_UNTRACEABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


def _meta_model(config: PretrainedConfig, keys: TrainKeys, base_dtype: torch.dtype) -> Any:
    """The base, with an adapter unless it is trained whole, all parameters and buffers on the meta device."""
    lora = lora_config(keys, lora_dropout=0.0, init_lora_weights=False)
    with torch.device("meta"):
        base = _meta_base(config, base_dtype)
        if keys.bits:
            outline_quantized(base, keys.bits, base_dtype)
        if keys.is_full:
            return base
        return with_adapter(base, lora, autocast_adapter_dtype=False, low_cpu_mem_usage=True)


def _meta_base(config: PretrainedConfig, dtype: torch.dtype) -> Any:
    try:
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(
            f"model type {config.model_type!r}",
            f"transformers cannot build it as its config.json says ({type(error).__name__}: {error})",
            mend="Look at rope_scaling and the sizes in config.json, or fetch the base again.",
        ) from error


def _make_fake(model: Any, adapter_dtype: torch.dtype, device: Device) -> None:
    """Replace meta parameters and buffers by fake ones on `device`; tied parameters stay tied.

    Building on fake tensors at once would draw random weights, which needs the device itself.
    """
    packed = {layer.weight for layer in quantized_layers(model)}
    fakes: dict[torch.Tensor, torch.Tensor] = {weight: weight for weight in packed}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in fakes:
                dtype = adapter_dtype if parameter.requires_grad else parameter.dtype
                fake = torch.empty_strided(parameter.shape, parameter.stride(), dtype=dtype, device=device)
                fakes[parameter] = torch.nn.Parameter(fake, requires_grad=parameter.requires_grad)
            module._parameters[name] = fakes.get(parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)


def _optimizer_with_state(model: Any, keys: TrainKeys, device: Device) -> torch.optim.Optimizer:
    """The optimizer as it stands from the second step on, when its state is there while the activations are.

    Left to itself torch would take the for-loop for tensors that are not plain, and so for fake ones.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with unset_fake_temporarily():  # bitsandbytes computes its tables of values when it is opened.
        optimizer = open_optimizer(keys, trainable, "cpu", foreach=device == "cuda")
    for parameter in trainable:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _label_parts(model: Any, optimizer: torch.optim.Optimizer, log: StorageLog, trained: str) -> None:
    """Tell `log` what is there before the step, the trained part by its name, and of gradients as they come."""
    for parameter in model.parameters():
        log.label(parameter, trained if parameter.requires_grad else "weights")
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: log.label(p.grad, "gradients"))
    for layer in quantized_layers(model):
        for tensor in packed_tensors(layer):
            log.label(tensor, "weights")
    for buffer in model.buffers():
        log.record(buffer)
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                log.label(value, "optimizer")


def _run_step(
    layout: Layout, rows: Sequence[TokenRow], optimizer: torch.optim.Optimizer, autocast: AbstractContextManager[None]
) -> None:
    """The step that training makes."""
    with autocast:
        layout.loss_sums(rows, scale=1.0)
    trainable = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(trainable, 1.0, foreach=True)
    optimizer.step()


@contextmanager
def _unpacked_positions() -> Iterator[None]:
    """Let transformers take the positions for those of whole rows, as it finds with real ones.

    It reads the positions' values to see whether a row holds several sequences. On fake tensors it cannot, and builds
    a mask that the real step does not have.
    """
    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


def _autocast(device: Device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device, dtype)
