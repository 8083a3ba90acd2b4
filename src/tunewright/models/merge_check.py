"""Is a merged checkpoint exactly the base with the adapter in it? If not, what happened to it?

Every merged tensor is recomputed and compared bit by bit; every other tensor has to be the base's own. Where that
fails, the difference is tried against the accidents that are known to happen: `merge_diagnosis` names them.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunewright.artifacts import read_json
from tunewright.events import Events
from tunewright.evidence import Evidence, equal
from tunewright.models.checkpoint_directory import merged_config, with_older_names
from tunewright.models.dequantized import QuantizedBase
from tunewright.models.merge_changes import Change, Lora
from tunewright.models.merge_diagnosis import Scale, diagnose, displaced, few_elements
from tunewright.models.merge_plan import MergePlan, OpenMerge, plan_merge
from tunewright.models.safetensors_file import StoredTensor, TensorReader, stored_tensors
from tunewright.parallel import threads_for_blocks

TEXT_KEYS = ("quantization_config", "compression_config")
DIAGNOSED = 8
HALF_BYTES = 2
TELLING_VALUES = 4  # A row of so few different numbers, such as a norm of ones, is like many others.


@dataclass
class Findings:
    """What was found wrong, by tensor."""

    different: set[str] = field(default_factory=set)
    not_finite: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Looked:
    """What one block showed."""

    name: str
    same: bool
    finite: bool
    moved: bool


@dataclass
class Comparison:
    """A merge recomputed beside the checkpoint that it should have given."""

    merge: OpenMerge
    found: dict[str, StoredTensor]
    reader: TensorReader

    def look(self, name: str, first: int, last: int) -> Looked:
        found = self.reader.read(self.found[name], first, last)
        dtype = found.dtype
        same = same_bits(self.merge.rounded(name, dtype, first, last), found)
        touched = self.merge.plan.tensors[name].is_touched
        moved = touched and not same_bits(self.merge.stored(name, dtype, first, last), found)
        return Looked(name, same, is_finite(found), moved)

    def blocks(self) -> Iterator[tuple[str, int, int]]:
        for name in self.shared:
            for first, last in self.merge.plan.tensors[name].blocks():
                yield name, first, last

    @property
    def shared(self) -> list[str]:
        """Tensors that are there, with the shape that they should have."""
        planned = self.merge.plan.tensors
        return [name for name in planned if name in self.found and planned[name].source.shape == self.found[name].shape]


def check_merged(
    base_path: Path, adapter_path: Path, merged_path: Path, events: Events, quantized: QuantizedBase | None = None
) -> list[Evidence]:
    """Evidence that `merged_path` is the base, or what `quantized` makes of it, with the adapter merged once."""
    plan = plan_merge(base_path, adapter_path, quantized)
    found = stored_tensors(merged_path)
    missing, extra = sorted(set(plan.tensors) - set(found)), sorted(set(found) - set(plan.tensors))
    with OpenMerge(plan) as merge, TensorReader() as reader:
        comparison = Comparison(merge, found, reader)
        findings = compare(comparison, events)
        explain(comparison, findings)
    touched = set(plan.touched)
    wrong, changed = findings.different & touched, findings.different - touched
    return [
        equal("merged_tensor_names", len(missing) + len(extra), 0, names_detail(missing, extra)),
        equal("adapter_keys_used", plan.used_keys, plan.adapter_keys, "Each key of the adapter is used exactly once."),
        equal("merged_tensors_exact", len(wrong), 0, wrong_detail(wrong, findings.reasons, plan)),
        equal("untouched_tensors_identical", len(changed), 0, changed_detail(changed, findings.reasons, plan.tensors)),
        equal("tensors_not_finite", len(findings.not_finite), 0, ", ".join(sorted(findings.not_finite)[:3])),
        equal("adapter_changes_the_base", bool(findings.moved), True, f"{len(findings.moved)} tensors moved."),
        *check_config(merged_path, plan.settings),
        check_settings(base_path, merged_path, plan.settings),
    ]


def check_config(merged_path: Path, settings: dict[str, Any] | None = None) -> list[Evidence]:
    """That `config.json` calls nothing quantized, and says of head and vocabulary what the weights are."""
    config = read_json(merged_path / "config.json")
    found = [key for key in TEXT_KEYS if key in config]
    detail = f"config.json has {', '.join(found)}: loaders would take the weights for quantized." if found else ""
    evidence = [equal("quantization_config_absent", not found, True, detail)]
    for key, value in (settings or {}).items():
        text = config.get("text_config")
        stated = config[key] if key in config or not isinstance(text, dict) else text.get(key)
        evidence.append(equal(f"config_{key}", stated, value, "What config.json says, against the merged weights."))
    return evidence


def check_settings(base_path: Path, merged_path: Path, settings: dict[str, Any]) -> Evidence:
    """That `config.json` says what the base's says, but for what changes with the weights."""
    found = read_json(merged_path / "config.json")
    base = merged_config(read_json(base_path / "config.json"), torch.bfloat16, settings)
    expected = with_older_names(base)
    keys = sorted({*expected, *found} - {*TEXT_KEYS, *settings, "dtype", "torch_dtype"})
    other = [key for key in keys if found.get(key) != expected.get(key)]
    told = "; ".join(f"{key} is {found.get(key)!r}, {expected.get(key)!r} in the base" for key in other[:3])
    detail = f"config.json was changed: {told}." if other else "config.json says what the base's says."
    return equal("config_as_the_base", len(other), 0, detail)


def compare(comparison: Comparison, events: Events) -> Findings:
    """Look at every block, on all cores."""
    planned = comparison.merge.plan.tensors
    findings = Findings(different=set(comparison.found) & set(planned) - set(comparison.shared))
    numbers = {name: number for number, name in enumerate(comparison.shared, 1)}
    progress = events.progress("tensors", len(numbers))
    under_way: deque[Future[Looked]] = deque()
    with ThreadPoolExecutor(threads_for_blocks()) as crew:
        for block in comparison.blocks():
            under_way.append(crew.submit(comparison.look, *block))
            if len(under_way) > 2 * threads_for_blocks():
                progress.reach(numbers[note(findings, under_way.popleft().result())])
        while under_way:
            progress.reach(numbers[note(findings, under_way.popleft().result())])
    return findings


def note(findings: Findings, looked: Looked) -> str:
    if not looked.same:
        findings.different.add(looked.name)
    if not looked.finite:
        findings.not_finite.add(looked.name)
    if looked.moved:
        findings.moved.add(looked.name)
    return looked.name


def explain(comparison: Comparison, findings: Findings) -> None:
    """The likeliest reason for the first few tensors that differ."""
    for name in sorted(findings.different)[:DIAGNOSED]:
        findings.reasons[name] = reason(comparison, name)


def reason(comparison: Comparison, name: str) -> str:
    merge, found = comparison.merge, comparison.reader.read(comparison.found[name])
    planned = merge.plan.tensors[name]
    if planned.source.shape != found.shape:
        return f"has shape {list(found.shape)}, expected {list(planned.source.shape)}"
    if found.dtype.is_floating_point and found.dtype.itemsize > HALF_BYTES:
        return f"is stored as {str(found.dtype).removeprefix('torch.')}, not in 16 bits"
    if twin := twin_of(comparison, name, found):
        return f"is {twin}: the two were exchanged"
    expected = merge.rounded(name, found.dtype)
    if planned.packed and same_bits(without_bits(merge, name).to(found.dtype), found):
        return "comes from the base as it is stored, not from the bits that were trained over"
    if planned.change is None:
        known = few_elements(expected, found) or displaced(expected, found)
        return known or reason_unchanged(merge, name, found)
    weight = merge.unchanged(name).float()
    return diagnose(weight, merge.rows(name) - weight, expected, found, scale_of(planned.change, merge))


def reason_unchanged(merge: OpenMerge, name: str, found: torch.Tensor) -> str:
    """Why a tensor differs that should be the base's own, or wholly the adapter's."""
    planned = merge.plan.tensors[name]
    if planned.replaced_by is None:
        return "differs from the dequantized base" if planned.packed else "differs from the base"
    own = same_bits(merge.stored(name, found.dtype), found)
    return "is the base's own, not what was trained" if own else "differs from what was trained"


def without_bits(merge: OpenMerge, name: str) -> torch.Tensor:
    """A tensor as it would be merged into the base as it is stored."""
    planned = merge.plan.tensors[name]
    weight = merge.reader.read(planned.source).float()
    return weight if planned.change is None else planned.change.apply(weight, 0, merge.adapter.factor)


def scale_of(change: Change | None, merge: OpenMerge) -> Scale | None:
    if not isinstance(change, Lora):
        return None
    return Scale(change.scale, merge.adapter.tensors[change.a_key].shape[0])


def twin_of(comparison: Comparison, name: str, found: torch.Tensor) -> str:
    """The name of another tensor of the merge that begins as `found` does; empty if there is none."""
    first = found[:1]

    def begins_so(other: str) -> bool:
        return same_bits(comparison.merge.rounded(other, found.dtype, 0, 1), first)

    if len(set(first.flatten().tolist())) < TELLING_VALUES or begins_so(name):
        return ""
    alike = (each for each in comparison.shared if each != name and comparison.found[each].shape == found.shape)
    return next((other for other in alike if begins_so(other)), "")


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(bits(left), bits(right))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.dtype.is_floating_point or tensor.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def names_detail(missing: list[str], extra: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"missing: {', '.join(missing[:3])}")
    if extra:
        parts.append(f"left over: {', '.join(extra[:3])}")
    return "; ".join(parts)


def wrong_detail(wrong: set[str], reasons: dict[str, str], plan: MergePlan) -> str:
    base, merged = "base" if plan.quantized is None else "dequantized base", len(plan.touched)
    if not wrong:
        return f"{merged} merged tensors are what {base} and adapter give, rounded once, bit by bit."
    known = [(name, reasons[name]) for name in sorted(wrong) if name in reasons]
    name, why = known[0] if known else (min(wrong), "differs")
    count = f"{len(wrong)} of {merged} merged tensors are not what {base} and adapter give"
    alike = len(known) > 1 and len({text for _, text in known}) == 1
    return f"{count}: each {why}." if alike else f"{count}: {name} {why}."


def changed_detail(changed: set[str], reasons: dict[str, str], planned: dict[str, Any]) -> str:
    if not changed:
        untouched = sum(not tensor.is_touched for tensor in planned.values())
        return f"{untouched} tensors without an adapter are the base's own, byte by byte."
    name = min(changed)
    return f"{name} {reasons.get(name, 'differs from the base')}."


def check_base(recorded: dict[str, Any], files: dict[str, str], tensors: dict[str, str]) -> Evidence:
    """That the base is the one that was trained on; names the tensors or files that changed."""
    changed_tensors = changed_names(recorded["tensors"], tensors)
    changed = changed_tensors or changed_names(recorded["files"], files)
    detail = "Every tensor and file of the base is the one that was trained on."
    if changed:
        detail = f"The base {recorded['name']} is not the one that was trained on: {', '.join(changed[:3])} changed."
    if len(changed_tensors) > len(tensors) / 2:
        detail += f" {len(changed_tensors)} of {len(tensors)} tensors did: it is another revision, or another model."
    return equal("base_unchanged", len(changed), 0, detail)


def changed_names(recorded: dict[str, str], found: dict[str, str]) -> list[str]:
    return [name for name in sorted({*recorded, *found}) if recorded.get(name) != found.get(name)]
