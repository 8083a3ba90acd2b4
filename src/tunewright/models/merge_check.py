"""Is a merged checkpoint exactly the base with the adapter in it? If not, what happened to it?

Every merged tensor is recomputed as round(W + s·B·A) and compared bit by bit; every other tensor has to be the base's
own. Where that fails, the difference is tried against the accidents that are known to happen: merged twice, not merged,
merged from a base that went through 4 bits, a few flipped bits.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunewright.artifacts import read_json
from tunewright.events import Events
from tunewright.evidence import Evidence, equal
from tunewright.models.adapter import Adapter
from tunewright.models.tensors import CheckpointTensors

# The 16 levels of NF4 (Dettmers et al. 2023, QLoRA, appendix E), as bitsandbytes has them.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
    ]
)
NF4_BLOCK = 64
FEW_ELEMENTS = 8
TEXT_KEYS = ("quantization_config", "compression_config")


@dataclass
class _Findings:
    wrong: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)
    compared: int = 0
    merged: int = 0
    moved: int = 0
    largest_delta: float = 0.0


def check_merged(base_path: Path, adapter_path: Path, merged_path: Path, events: Events) -> list[Evidence]:
    """Evidence that `merged_path` is the base with the adapter merged once, tensor by tensor."""
    with (
        CheckpointTensors(base_path) as base,
        CheckpointTensors(merged_path) as merged,
        Adapter(adapter_path, base) as adapter,
    ):
        missing, extra = sorted(set(base) - set(merged)), sorted(set(merged) - set(base))
        findings = _Findings()
        progress = events.progress("tensors", len(merged))
        for name in merged:
            if name in base:
                _compare(name, base[name], merged[name], adapter, findings)
            progress.advance()
        keys = len(adapter.tensors)
        used = 2 * sum(name in merged for name in adapter.pairs)
    return [
        equal("merged_tensor_names", len(missing) + len(extra), 0, _names_detail(missing, extra)),
        equal("adapter_keys_used", used, keys, "Each key of the adapter is used exactly once."),
        equal("merged_tensors_exact", len(findings.wrong), 0, _wrong_detail(findings)),
        equal("untouched_tensors_identical", len(findings.changed), 0, _changed_detail(findings)),
        equal("tensors_not_finite", len(findings.not_finite), 0, ", ".join(findings.not_finite[:3])),
        equal("adapter_changes_the_base", findings.moved > 0, True, f"{findings.moved} tensors moved."),
        *check_config(merged_path),
    ]


def check_config(merged_path: Path) -> list[Evidence]:
    """That nothing in `config.json` tells a loader to treat 16-bit weights as quantized."""
    config = read_json(merged_path / "config.json")
    found = [key for key in TEXT_KEYS if key in config]
    detail = f"config.json has {', '.join(found)}: loaders would take the weights for quantized." if found else ""
    return [equal("quantization_config_absent", not found, True, detail)]


def _compare(name: str, weight: torch.Tensor, found: torch.Tensor, adapter: Adapter, findings: _Findings) -> None:
    findings.compared += 1
    if not bool(torch.isfinite(found).all()):
        findings.not_finite.append(name)
    if name not in adapter.pairs:
        expected = weight.to(found.dtype)
        if not _same_bits(expected, found):
            findings.changed[name] = _few_elements(expected, found) or "differs from the base"
        return
    findings.merged += 1
    exact = adapter.merged(name, weight)
    findings.moved += not _same_bits(weight.to(found.dtype), found)
    expected = exact.to(found.dtype)
    if not _same_bits(expected, found):
        findings.wrong[name] = diagnose(weight.float(), adapter.delta(name), expected, found)


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bool(torch.equal(_bits(left), _bits(right)))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def _few_elements(expected: torch.Tensor, found: torch.Tensor) -> str:
    """Names the elements that differ if they are few, else nothing."""
    if expected.shape != found.shape:
        return f"has shape {list(found.shape)}, expected {list(expected.shape)}"
    different = (expected != found).nonzero().tolist()
    if not 0 < len(different) <= FEW_ELEMENTS:
        return ""
    first = tuple(different[0])
    values = f"{first} is {float(found[first]):.6g}, expected {float(expected[first]):.6g}"
    return f"differs in {len(different)} element{'s' if len(different) > 1 else ''}: {values}"


def diagnose(weight: torch.Tensor, delta: torch.Tensor, expected: torch.Tensor, found: torch.Tensor) -> str:
    """The likeliest reason why `found` is not round(W + Δ), in words; all tensors of one shape, W and Δ in float32."""
    few = _few_elements(expected, found)
    if few:
        return few
    move = found.float() - weight
    times = float((move * delta).sum() / (delta * delta).sum().clamp_min(1e-30))
    rest = found.float() - delta
    if _nearer(rest, through_nf4(weight), weight):
        return "comes from a base that went through 4 bits (NF4) and back"
    if abs(times - 2) < 0.1 and _nearer(found.float(), weight + 2 * delta, weight + delta):
        return "has the adapter merged twice"
    if abs(times) < 0.1:
        return "does not have this adapter in it"
    return f"moved {times:.2f} times as far along the adapter's change as it should"


def _nearer(found: torch.Tensor, candidate: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether `found` is much nearer to `candidate` than to `other`."""
    return float((found - candidate).norm()) < 0.25 * float((found - other).norm())


def through_nf4(weight: torch.Tensor) -> torch.Tensor:
    """What float32 weights become by NF4 quantization in blocks of 64 and back."""
    flat = weight.flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % NF4_BLOCK)).view(-1, NF4_BLOCK)
    scale = padded.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    boundaries = (NF4[1:] + NF4[:-1]) / 2
    levels = NF4[torch.bucketize(padded / scale, boundaries)]
    return (levels * scale).flatten()[: len(flat)].view_as(weight)


def _names_detail(missing: list[str], extra: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"missing: {', '.join(missing[:3])}")
    if extra:
        parts.append(f"left over: {', '.join(extra[:3])}")
    return "; ".join(parts)


def _wrong_detail(findings: _Findings) -> str:
    if not findings.wrong:
        return f"{findings.merged} merged tensors are round(W + s·B·A), bit by bit."
    reasons = sorted(set(findings.wrong.values()))
    name, reason = next(iter(findings.wrong.items()))
    count = f"{len(findings.wrong)} of {findings.merged} merged tensors are not round(W + s·B·A)"
    return f"{count}: {name} {reason}." if len(reasons) > 1 or len(findings.wrong) == 1 else f"{count}: each {reason}."


def _changed_detail(findings: _Findings) -> str:
    if not findings.changed:
        return f"{findings.compared - findings.merged} tensors without an adapter are the base's own, byte by byte."
    name, reason = next(iter(findings.changed.items()))
    return f"{name} {reason}."


def check_base(recorded: dict[str, Any], files: dict[str, str], tensors: dict[str, str]) -> Evidence:
    """That the base is the one that was trained on; names the tensors or files that changed."""
    changed = _changed_names(recorded["tensors"], tensors) or _changed_names(recorded["files"], files)
    detail = "Every tensor and file of the base is the one that was trained on."
    if changed:
        detail = f"The base {recorded['name']} is not the one that was trained on: {', '.join(changed[:3])} changed."
    return equal("base_unchanged", len(changed), 0, detail)


def _changed_names(recorded: dict[str, str], found: dict[str, str]) -> list[str]:
    return [name for name in sorted({*recorded, *found}) if recorded.get(name) != found.get(name)]
