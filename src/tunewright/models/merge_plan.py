"""The plan of a merge: for each tensor of the merged checkpoint, where its rows come from and what changes them.

In go a base and an adapter; only their headers and the adapter's small tensors are read. Always: every key of the
adapter is used, every key that peft would have saved is there, every shape fits; what does not is refused by name.
peft itself says what each key means: the adapter is attached to the base's outline, which has no weights, and the plan
is read off its layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tunewright.errors import MergeError
from tunewright.models.adapter import Adapter
from tunewright.models.dequantized import QuantizedBase
from tunewright.models.merge_changes import Change, Dora, EmbeddingLora, ExpertLora, Lora, TokenRows
from tunewright.models.outline import Outline, Place, read_outline, require_known
from tunewright.models.peft_layers import OTHER_BASE, AdapterLayers, plain, read_layers
from tunewright.models.safetensors_file import StoredTensor, TensorReader, stored_tensors
from tunewright.models.whole import PREFIX

BLOCK_ELEMENTS = 1 << 20
QUANTIZED_NAMES = (".SCB", ".absmax", ".quant_map", ".qweight", ".qzeros", ".weight_scale", ".weight_scale_inv")
FULL_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the merged checkpoint: stored rows, of the base or of the adapter, and what changes them.

    Attributes:
        replaced_by: the adapter's key, if the rows are the adapter's.
        replaced: the base's own tensor then, if it has this shape.
        packed: the parameter's name, if the rows are those that come out of the bits that were trained over.
    """

    source: StoredTensor
    change: Change | None = None
    replaced_by: str | None = None
    replaced: StoredTensor | None = None
    packed: str | None = None

    @property
    def of_base(self) -> StoredTensor | None:
        """What stands in the base in this place, if that has this shape."""
        return self.replaced if self.replaced_by is not None else self.source

    @property
    def is_touched(self) -> bool:
        return self.change is not None or self.replaced_by is not None or self.packed is not None

    @property
    def block_rows(self) -> int:
        """How many rows are worked on at once."""
        if self.packed is not None or (self.change is not None and not self.change.by_rows):
            return max(self.source.rows, 1)
        return max(BLOCK_ELEMENTS // max(self.source.row_elements, 1), 1)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First row and end of each block."""
        for first in range(0, self.source.rows, self.block_rows):
            yield first, min(first + self.block_rows, self.source.rows)


@dataclass(frozen=True)
class MergePlan:
    """What a merge will write.

    Attributes:
        tensors: by name, in the order in which the base has them.
        adapter_keys: how many tensors the adapter has; each is used.
        twin_keys: keys that only say again what others say.
        settings: keys of `config.json` that change with the weights.
        quantized: what of the base was trained over in fewer bits, if the merge goes into that.
    """

    base_path: Path
    adapter_path: Path
    tensors: dict[str, PlannedTensor]
    adapter_keys: int
    twin_keys: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    quantized: QuantizedBase | None = None

    @property
    def touched(self) -> list[str]:
        return [name for name, tensor in self.tensors.items() if tensor.is_touched]

    @property
    def used_keys(self) -> int:
        """How many keys of the adapter the tensors are made from."""
        keys = set(self.twin_keys)
        for tensor in self.tensors.values():
            keys.update(tensor.change.keys if tensor.change else ())
            keys.update({tensor.replaced_by} if tensor.replaced_by else ())
        return len(keys)


class OpenMerge:
    """A plan with its files open; gives any rows of any tensor. Safe from several threads. A context manager."""

    def __init__(self, plan: MergePlan) -> None:
        self.plan = plan
        self.reader = TensorReader()
        self.adapter = Adapter(plan.adapter_path)

    def __enter__(self) -> "OpenMerge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.__exit__(kind, error, trace)
        self.adapter.__exit__(kind, error, trace)

    def rows(self, name: str, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Rows of the merged tensor: exact in float32 where the adapter changes it, else as they are stored."""
        planned = self.plan.tensors[name]
        weight = self.unchanged(name, first, last)
        if planned.change is None:
            return weight
        return planned.change.apply(weight.to(torch.float32), first, self.adapter.factor)

    def unchanged(self, name: str, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Rows before the adapter changes them: as they are stored, or as they come out of fewer bits."""
        planned = self.plan.tensors[name]
        if planned.packed is None or self.plan.quantized is None:
            return self.reader.read(planned.source, first, last)
        return self.plan.quantized.dequantized(planned.packed, self.reader.read(planned.source))[first:last]

    def rounded(self, name: str, dtype: torch.dtype, first: int = 0, last: int | None = None) -> torch.Tensor:
        """The same, rounded once to `dtype`; what is no floating point number stays what it is."""
        rows = self.rows(name, first, last)
        return rows.to(dtype) if rows.dtype.is_floating_point else rows

    def stored(self, name: str, dtype: torch.dtype, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Rows as they would be without the adapter, rounded to `dtype`."""
        planned = self.plan.tensors[name]
        before = planned.replaced
        rows = self.unchanged(name, first, last) if before is None else self.reader.read(before, first, last)
        return rows.to(dtype) if rows.dtype.is_floating_point else rows


def plan_merge(base_path: Path, adapter_path: Path, quantized: QuantizedBase | None = None) -> MergePlan:
    """Plan the merge of an adapter into a base.

    Args:
        quantized: what was trained over in fewer bits, to merge into that and not into the weights as they are stored.

    Raises:
        MergeError: they do not fit, or the base is quantized, or the adapter is of a kind that cannot be merged.
        ModelError: transformers does not know the base's architecture.
        ArtifactError: a file is damaged.
    """
    stored = stored_tensors(base_path)
    validate_not_quantized(base_path, stored)
    with Adapter(adapter_path) as adapter:
        outline = read_outline(base_path, list(stored))
        vocab_size = resized_vocabulary(outline, adapter)
        if vocab_size is not None:
            outline = read_outline(base_path, list(stored), vocab_size)
        layers = read_layers(outline.model, adapter)
        heads = settle_heads(outline, layers, adapter)
        validate_effect(adapter, layers)
        tensors = planned_tensors(outline, layers, stored, adapter, heads.untied)
        if adapter.is_whole:
            validate_trained(adapter, tensors)
        if quantized is not None:
            tensors = with_packed(tensors, outline, quantized, adapter)
        settings: dict[str, Any] = {"tie_word_embeddings": False} if heads.untied else {}
        if vocab_size is not None:
            settings["vocab_size"] = vocab_size
        keys = len(adapter.tensors)
        return MergePlan(base_path, adapter_path, tensors, keys, heads.twin_keys, settings, quantized)


def validate_not_quantized(base_path: Path, stored: dict[str, StoredTensor]) -> None:
    """Raise `MergeError` naming a tensor that shows that the base is kept in fewer bits."""
    for name, tensor in stored.items():
        if name.endswith(QUANTIZED_NAMES) or (name.endswith(".weight") and tensor.dtype not in FULL_DTYPES):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise MergeError(
                str(base_path),
                f"the base is quantized: {name} is {dtype}",
                expected="the 16-bit original",
                mend="Name the original checkpoint: an adapter cannot be merged into quantized weights.",
            )


def resized_vocabulary(outline: Outline, adapter: Adapter) -> int | None:
    """The size of the vocabulary, if the adapter brings an embedding of another size than the base's."""
    if outline.embedding is None or adapter.is_whole:
        return None
    rows = outline.model.get_parameter(outline.embedding).shape[0]
    for key, tensor in adapter.tensors.items():
        if plain(key.removeprefix(PREFIX)) in (outline.embedding, outline.head) and tensor.rows != rows:
            return tensor.rows
    return None


@dataclass(frozen=True)
class Heads:
    """What becomes of an embedding and a head that are one parameter.

    Attributes:
        untied: they have to be two from now on.
        twin_keys: keys of the adapter for the head, which say again what those for the embedding say.
    """

    untied: bool = False
    twin_keys: tuple[str, ...] = ()


def settle_heads(outline: Outline, layers: AdapterLayers, adapter: Adapter) -> Heads:
    """See to an embedding and a head that are one parameter.

    They stay one where the adapter was trained to keep them so, or gives both the same weights.

    Raises:
        MergeError: the adapter says that they are one, and changes them differently.
    """
    embedding, head = outline.embedding, outline.head
    if not outline.tied or embedding is None or head is None:
        return Heads()
    if not (layers.reaches(embedding) or layers.reaches(head)):
        return Heads()
    same = same_change(layers, embedding, head, adapter)
    kept = adapter.config.get("ensure_weight_tying") or isinstance(layers.changes.get(embedding), TokenRows)
    if kept and layers.reaches(head) and not same:
        raise MergeError(
            adapter.where,
            f"it was trained with {embedding} and {head} tied, but changes them differently",
            mend="The file is damaged, or was put together by hand: train again.",
        )
    if not (same or kept):
        return Heads(untied=True)
    twins = tuple(set(layers.keys(head)) - set(layers.keys(embedding)))
    layers.copy(head, embedding)
    return Heads(twin_keys=twins)


def same_change(layers: AdapterLayers, embedding: str, head: str, adapter: Adapter) -> bool:
    """Whether the adapter does the same to both: the same weights, or the same product."""
    first, second = layers.keys(embedding), layers.keys(head)
    if len(first) != len(second):
        return False
    one, other = layers.changes.get(embedding), layers.changes.get(head)
    if isinstance(one, EmbeddingLora) and isinstance(other, Lora):
        a, b = adapter.factor(one.a_key), adapter.factor(one.b_key)
        return torch.equal(a.T, adapter.factor(other.b_key)) and torch.equal(b.T, adapter.factor(other.a_key))
    return one is None and other is None and torch.equal(adapter.factor(first[0]), adapter.factor(second[0]))


def validate_effect(adapter: Adapter, layers: AdapterLayers) -> None:
    """Raise `MergeError` if the adapter holds a number that is not finite, or would change nothing."""
    for key in adapter.tensors:
        if not adapter.is_finite(key):
            raise MergeError(adapter.where, f"{key} has numbers that are not finite", mend="Train again.")
    changes = list(layers.changes.values())
    if not layers.replaced and all(isinstance(c, Lora | ExpertLora) and is_idle(c, adapter) for c in changes):
        raise MergeError(
            adapter.where,
            f"the adapter changes nothing: B·A is zero in all of its {len(changes)} modules",
            mend="It was not trained, or it was saved before training: train again.",
        )


def validate_trained(adapter: Adapter, tensors: dict[str, PlannedTensor]) -> None:
    """Raise `MergeError` if weights that were trained whole are all the base's own."""
    with TensorReader() as reader:
        for planned in tensors.values():
            for first, last in planned.blocks() if planned.replaced else ():
                before = reader.read(planned.replaced or planned.source, first, last).float()
                if not torch.equal(reader.read(planned.source, first, last).float(), before):
                    return
    raise MergeError(
        adapter.where,
        f"it changes nothing: all of its {len(adapter.tensors)} tensors are the base's own",
        mend="It was not trained, or it was saved before training: train again.",
    )


def is_idle(change: Lora | ExpertLora, adapter: Adapter) -> bool:
    return change.scale == 0 or adapter.is_zero(change.a_key) or adapter.is_zero(change.b_key)


def planned_tensors(
    outline: Outline, layers: AdapterLayers, stored: dict[str, StoredTensor], adapter: Adapter, untied: bool
) -> dict[str, PlannedTensor]:
    """Each tensor of the checkpoint with what changes it, and a head of its own if it is no longer the embedding."""
    planned = {
        name: planned_tensor(name, tensor, outline.places[name], layers, adapter) for name, tensor in stored.items()
    }
    names = {place.parameter: name for name, place in outline.places.items()}
    head = outline.head or ""
    for parameter in sorted({*layers.changes, *layers.replaced} - set(names)):
        if parameter != head or not outline.tied:
            raise MergeError(adapter.where, f"it changes {parameter!r}, which the base has not", mend=OTHER_BASE)
    if untied and head not in names:
        twin = stored[names[outline.embedding or ""]]
        planned[head] = planned_tensor(head, twin, Place(head), layers, adapter)
    return planned


def with_packed(
    tensors: dict[str, PlannedTensor], outline: Outline, quantized: QuantizedBase, adapter: Adapter
) -> dict[str, PlannedTensor]:
    """The same, with those tensors to come out of fewer bits that training kept in them."""
    names = {place.parameter: name for name, place in outline.places.items() if place.expert is None}
    if unknown := sorted(set(quantized.layers) - set(names)):
        raise MergeError(str(adapter.directory), f"it was trained over {unknown[0]!r}, which the base has not")
    of_base = {names[each]: each for each in quantized.layers if tensors[names[each]].replaced_by is None}
    return {name: replace(tensor, packed=of_base.get(name)) for name, tensor in tensors.items()}


def planned_tensor(
    name: str, stored: StoredTensor, place: Place, layers: AdapterLayers, adapter: Adapter
) -> PlannedTensor:
    key, change = layers.replaced.get(place.parameter), layers.changes.get(place.parameter)
    if key is None and change is None:
        return PlannedTensor(stored)
    require_known(name, place)
    own: StoredTensor | None = None
    if key is not None:
        own, stored = stored, stacked_part(adapter.tensors[key], place)
        own = own if own.shape == stored.shape else None
        if own is None and place.expert is not None:
            raise MergeError(adapter.where, f"a part of {key} has shape {list(stored.shape)}, unlike {name}")
    if change is None:
        return PlannedTensor(stored, None, key, own)
    if place.expert is not None:
        change = expert_part(name, stored, place, change)
    validate_shape(name, stored, change, adapter)
    return PlannedTensor(stored, change, key, own)


def stacked_part(whole: StoredTensor, place: Place) -> StoredTensor:
    """One expert's part of a stack, [experts, parts · out, in]; a tensor that is no stack is its own part."""
    if place.expert is None:
        return whole
    part = replace(whole, shape=(whole.shape[1] // place.parts, *whole.shape[2:]))
    return replace(part, offset=whole.offset + (place.expert * place.parts + place.part) * part.bytes)


def expert_part(name: str, stored: StoredTensor, place: Place, change: Change) -> Change:
    """What changes one expert's part of a stack."""
    if not isinstance(change, ExpertLora) or change.transposed:
        raise MergeError(name, f"a {type(change).__name__} on stacked experts cannot be taken apart")
    rows = stored.shape[0]
    return replace(change, expert=place.expert, begin=place.part * rows, end=(place.part + 1) * rows)


def validate_shape(name: str, stored: StoredTensor, change: Change, adapter: Adapter) -> None:
    """Raise `MergeError` if B·A has not the tensor's shape."""
    lora = change.lora if isinstance(change, Dora) else change
    if not isinstance(lora, Lora):
        return
    a, b = adapter.tensors[lora.a_key].shape, adapter.tensors[lora.b_key].shape
    shape = (a[1], b[0]) if lora.transposed else (b[0], a[1])
    if shape != stored.shape or a[0] != b[1]:
        found = f"B {list(b)} times A {list(a)} does not fit {name} {list(stored.shape)}"
        raise MergeError(adapter.where, found, mend=OTHER_BASE)
