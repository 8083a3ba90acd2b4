"""Why is a merged tensor not what it should be? The accidents that are known to happen, told apart by arithmetic."""

import math
from dataclasses import dataclass

import torch

# The 16 levels of NF4 (Dettmers et al. 2023, QLoRA, appendix E), as bitsandbytes has them.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
    ]
)
NF4_BLOCK = 64
FEW_ELEMENTS = 8
SCALE_TOLERANCE = 0.05


def few_elements(expected: torch.Tensor, found: torch.Tensor) -> str:
    """Names the elements that differ if they are few, else nothing."""
    different = (expected != found).nonzero().tolist()
    if not 0 < len(different) <= FEW_ELEMENTS:
        return ""
    first = tuple(different[0])
    values = f"{first} is {float(found[first]):.6g}, expected {float(expected[first]):.6g}"
    return f"differs in {len(different)} element{'s' if len(different) > 1 else ''}: {values}"


@dataclass(frozen=True)
class Scale:
    """How far an adapter's change goes: the factor, and the rank that it is made from."""

    factor: float
    rank: int

    def mistaken(self, times: float) -> str:
        """What was done to the factor if the change went `times` as far as it should; empty if nothing known."""
        root = math.sqrt(self.rank)
        accidents = {
            "alpha and rank swapped": self.factor**-2,
            "the scale alpha / rank left out": 1 / self.factor,
            "a plain scale taken for rank-stabilized": root,
            "a rank-stabilized scale taken for plain": 1 / root,
        }
        return " or ".join(name for name, factor in accidents.items() if abs(times / factor - 1) < SCALE_TOLERANCE)


def diagnose(
    weight: torch.Tensor, delta: torch.Tensor, expected: torch.Tensor, found: torch.Tensor, scale: Scale | None = None
) -> str:
    """The likeliest reason why `found` is not round(W + Δ), in words; all tensors of one shape, W and Δ in float32."""
    if known := few_elements(expected, found) or displaced(expected, found):
        return known
    move = found.float() - weight
    times = float((move * delta).sum() / (delta * delta).sum().clamp_min(1e-30))
    if _nearer(found.float() - delta, through_nf4(weight), weight):
        return "comes from a base that went through 4 bits (NF4) and back"
    if is_merged_twice(weight, delta, expected.dtype, found):
        return "has the adapter merged twice"
    is_square = delta.dim() == 2 and delta.shape[0] == delta.shape[1]
    if is_square and _nearer(found.float(), weight + delta.T, weight + delta):
        return "has the adapter's change transposed"
    if abs(times) < 0.1:
        return "does not have this adapter in it"
    if abs(times + 1) < SCALE_TOLERANCE:
        return "has the adapter subtracted"
    mistaken = scale.mistaken(times) if scale else ""
    reason = f": {mistaken}" if mistaken else ""
    return f"moved {times:.2f} times as far along the adapter's change as it should{reason}"


def is_merged_twice(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype, found: torch.Tensor) -> bool:
    """Whether Δ was added twice, each time with its rounding: a doubled scale is rounded once."""
    twice = ((weight + delta).to(dtype).float() + delta).to(dtype)
    doubled = (weight + 2 * delta).to(dtype)
    return bool((found == twice).sum() > (found == doubled).sum()) and _nearer(found.float(), twice.float(), weight)


def displaced(expected: torch.Tensor, found: torch.Tensor) -> str:
    """Names what was done to a whole tensor whose numbers are still there."""
    for step, side in ((1, "down"), (-1, "up")):
        if torch.equal(found, expected.roll(step, 0)):
            return f"has its rows shifted by one {side}: each row is that of its neighbour"
    if torch.equal(found.float(), (expected.float() + 1).to(found.dtype).float()):
        return "is 1 more in every element: the norm was folded twice"
    return ""


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
