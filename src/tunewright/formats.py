"""What each GGUF format of a run costs and is good for, from what was measured of it.

In go the manifests of export, verify and evaluate; out comes one row for each format: size, mean KL, top-1, task score,
and its use in plain words. Always: the use follows from this run's figures alone; what was not measured is None, and
the words say so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunewright.artifacts import Manifest
from tunewright.evidence import Evidence

LIMITED = ("prompt_ids_equal", "top1_agreement", "clear_top1_agreement", "mean_kl", "degenerate_answers")
Score = dict[str, float]


@dataclass(frozen=True)
class Format:
    """What was measured of one GGUF.

    Attributes:
        size_ratio: its size over that of the merged 16-bit weights; None where those are not recorded.
        mean_kl, top1: against the recorded canaries.
        failed: the names of figures beyond their limits.
        score: the headline metric on held-out rows, with its interval.
        loss: the score minus that of the merged checkpoint, row by row, with its interval.
    """

    name: str
    bytes: int
    size_ratio: float | None
    mean_kl: float | None
    top1: float | None
    failed: tuple[str, ...]
    score: Score | None
    loss: Score | None

    @property
    def is_measured(self) -> bool:
        return self.mean_kl is not None

    @property
    def is_worse(self) -> bool:
        """Whether the task score is lower than the checkpoint's by more than chance."""
        return self.loss is not None and self.loss["high"] < 0

    def is_beaten_by(self, other: "Format") -> bool:
        """Whether the other one is at least as good in size and nearness, and better in one of them."""
        if other.mean_kl is None or self.mean_kl is None or other.failed or (other.is_worse and not self.is_worse):
            return False
        ours, theirs = (self.bytes, self.mean_kl), (other.bytes, other.mean_kl)
        return theirs[0] <= ours[0] and theirs[1] <= ours[1] and theirs != ours


def formats_of(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """A row for each exported format, the smallest first; empty before there are any."""
    exported = manifests.get("export")
    sizes = exported.facts.get("bytes", {}) if exported else {}
    found = sorted((measured(name, size, manifests) for name, size in sizes.items()), key=lambda each: each.bytes)
    return [{**asdict(each), "failed": list(each.failed), "use": use_of(each, found)} for each in found]


def measured(name: str, size: int, manifests: Mapping[str, Manifest]) -> Format:
    verified = {item.name: item for item in manifests["verify"].evidence} if "verify" in manifests else {}
    evaluated = manifests["evaluate"].facts if "evaluate" in manifests else {}
    failed = [key for key in LIMITED if key_fails(verified, f"{name}_{key}")]
    whole = merged_bytes(manifests)
    return Format(
        name,
        size,
        round(size / whole, 4) if whole else None,
        number_of(verified, f"{name}_mean_kl"),
        number_of(verified, f"{name}_top1_agreement"),
        tuple(failed),
        evaluated.get("headline_scores", {}).get(name),
        evaluated.get("headline_losses", {}).get(name),
    )


def key_fails(evidence: Mapping[str, Evidence], name: str) -> bool:
    return name in evidence and evidence[name].verdict == "fail"


def number_of(evidence: Mapping[str, Evidence], name: str) -> float | None:
    value = evidence[name].value if name in evidence else None
    return float(value) if isinstance(value, (int, float)) else None


def merged_bytes(manifests: Mapping[str, Manifest]) -> int:
    files = manifests["merge"].files if "merge" in manifests else {}
    return sum(record.bytes for path, record in files.items() if path.endswith(".safetensors"))


def use_of(each: Format, all_formats: Sequence[Format]) -> str:
    """What a format is good for, in words; the formats are in the order of their sizes."""
    if not each.is_measured:
        return "not measured yet"
    if each.failed:
        return f"not for serving: {', '.join(each.failed)} beyond the limit"
    if better := next((other for other in all_formats if each.is_beaten_by(other)), None):
        return f"no reason to take it: {better.name} is {smaller(better, each)} and {nearer(better, each)}"
    if each.is_worse:
        return f"only where nothing larger fits: it loses {lost_points(each)} points of the task score"
    sound = [other for other in all_formats if sound_choice(other, all_formats)]
    if each is sound[0]:
        return f"to serve: {'the smallest' if len(all_formats) > 1 else 'the one that was made,'} {unharmed(each)}"
    reason = "nearest to what was trained" if each is sound[-1] else "nearer to what was trained"
    return f"{reason}, at {each.bytes / sound[0].bytes:.2g} times the size of {sound[0].name}: {spare_use(each, sound)}"


def sound_choice(each: Format, all_formats: Sequence[Format]) -> bool:
    beaten = any(each.is_beaten_by(other) for other in all_formats)
    return each.is_measured and not (each.failed or each.is_worse or beaten)


def smaller(better: Format, worse: Format) -> str:
    return "as small" if better.bytes == worse.bytes else f"{1 - better.bytes / worse.bytes:.0%} smaller"


def nearer(better: Format, worse: Format) -> str:
    return "as near to what was trained" if better.mean_kl == worse.mean_kl else "nearer to what was trained"


def unharmed(each: Format) -> str:
    if each.loss is None:
        return "within all limits; no task score was measured"
    reach = 100 * max(each.loss["high"] - each.loss["value"], each.loss["value"] - each.loss["low"])
    return f"without a measured loss of the task score (to within {reach:.1f} points)"


def lost_points(each: Format) -> str:
    loss = each.loss or {"value": 0.0, "low": 0.0, "high": 0.0}
    most, least = (-100 * loss[end] for end in ("low", "high"))
    return f"{-100 * loss['value']:.1f} ({least:.1f} to {most:.1f})"


def spare_use(each: Format, sound: Sequence[Format]) -> str:
    return "to quantize from, or where memory is no matter" if each is sound[-1] else "where the memory is there"
