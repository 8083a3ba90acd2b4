"""What an adapter does to one tensor of the base, in float32, in peft's order of operations.

Each change takes rows of the tensor and gives the same rows changed. Shapes follow peft: A is [r, in], B is [out, r],
W is [out, in]; for an embedding A is [r, vocabulary], B is [width, r], W is [vocabulary, width]. The scale s is
lora_alpha / r (Hu et al. 2021), or lora_alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023). DoRA (Liu et al. 2024) keeps
a magnitude for each output: W' = m · (W + s·B·A) / ‖W + s·B·A‖.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

Factors = Callable[[str], torch.Tensor]
"""Gives a tensor of the adapter by its key, in float32."""


class Change(Protocol):
    """A change to one tensor.

    Attributes:
        by_rows: whether rows can be changed one block at a time; else all rows are asked for at once.
    """

    @property
    def by_rows(self) -> bool: ...

    @property
    def keys(self) -> tuple[str, ...]: ...

    def apply(self, weight: torch.Tensor, first: int, factors: Factors) -> torch.Tensor:
        """Rows `first` and on, which are in `weight` (float32, may be overwritten), as they are with the adapter."""

    def delta(self, shape: tuple[int, ...], factors: Factors) -> torch.Tensor:
        """What is added to the whole tensor of this shape before any rescaling."""


@dataclass(frozen=True)
class TwoFactors(ABC):
    """Adds rows of a product of A and B."""

    a_key: str
    b_key: str
    scale: float

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.a_key, self.b_key)

    @abstractmethod
    def rows(self, first: int, last: int, factors: Factors) -> torch.Tensor:
        """Rows `first` to `last` of what is added, float32."""

    def apply(self, weight: torch.Tensor, first: int, factors: Factors) -> torch.Tensor:
        return weight.add_(self.rows(first, first + len(weight), factors))

    def delta(self, shape: tuple[int, ...], factors: Factors) -> torch.Tensor:
        return self.rows(0, shape[0], factors)


@dataclass(frozen=True)
class Lora(TwoFactors):
    """W + s·B·A of a linear layer; `transposed` where W is [in, out], as in GPT-2's Conv1D."""

    transposed: bool = False

    @property
    def by_rows(self) -> bool:
        return not self.transposed

    def rows(self, first: int, last: int, factors: Factors) -> torch.Tensor:
        a, b = factors(self.a_key), factors(self.b_key)
        if self.transposed:
            return ((b @ a).T * self.scale)[first:last]
        return (b[first:last] @ a).mul_(self.scale)


@dataclass(frozen=True)
class EmbeddingLora(TwoFactors):
    """W + (s·B·A)ᵀ of an embedding."""

    by_rows: bool = True

    def rows(self, first: int, last: int, factors: Factors) -> torch.Tensor:
        a, b = factors(self.a_key), factors(self.b_key)
        return (b @ a[:, first:last]).T * self.scale


@dataclass(frozen=True)
class Dora:
    """A LoRA whose result is brought to a trained length: along rows of W, or along columns (`per_column`)."""

    lora: Lora | EmbeddingLora
    magnitude_key: str
    per_column: bool

    @property
    def by_rows(self) -> bool:
        return not self.per_column

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.lora.keys, self.magnitude_key)

    def apply(self, weight: torch.Tensor, first: int, factors: Factors) -> torch.Tensor:
        magnitude = factors(self.magnitude_key)
        moved = weight.add_(self.lora.rows(first, first + len(weight), factors))
        if self.per_column:
            return moved.mul_((magnitude / torch.linalg.norm(moved.T, dim=1)).view(1, -1))
        lengths = torch.linalg.norm(moved, dim=1)
        return moved.mul_((magnitude[first : first + len(weight)] / lengths).view(-1, 1))

    def delta(self, shape: tuple[int, ...], factors: Factors) -> torch.Tensor:
        return self.lora.delta(shape, factors)


@dataclass(frozen=True)
class ExpertLora(TwoFactors):
    """A LoRA over a stack of experts, [experts, out, in] or, `transposed`, [experts, in, out].

    peft keeps A as [experts·r, in] and B as [out, r·experts]. A checkpoint may hold each expert's part as a tensor of
    its own: then `expert` says whose, and `begin` and `end` which of the stack's next-to-last axis it has.
    """

    experts: int
    transposed: bool
    expert: int | None = None
    begin: int = 0
    end: int | None = None

    @property
    def by_rows(self) -> bool:
        return self.expert is None

    def stack(self, first: int, last: int, factors: Factors) -> torch.Tensor:
        a, b = factors(self.a_key), factors(self.b_key)
        a = a.reshape(self.experts, -1, a.shape[-1])[first:last]
        b = b.reshape(b.shape[0], -1, self.experts)[:, :, first:last]
        axes = "o r e, e r i -> e i o" if self.transposed else "o r e, e r i -> e o i"
        return torch.einsum(axes, b, a) * self.scale

    def rows(self, first: int, last: int, factors: Factors) -> torch.Tensor:
        if self.expert is None:
            return self.stack(first, last, factors)
        return self.stack(self.expert, self.expert + 1, factors)[0, self.begin : self.end]


@dataclass(frozen=True)
class BiasLora:
    """b + s·(the bias of B)."""

    key: str
    scale: float
    by_rows: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def apply(self, weight: torch.Tensor, first: int, factors: Factors) -> torch.Tensor:
        return weight.add_(self.delta(tuple(weight.shape), factors))

    def delta(self, shape: tuple[int, ...], factors: Factors) -> torch.Tensor:
        return factors(self.key) * self.scale


@dataclass(frozen=True)
class TokenRows:
    """The rows of some tokens, trained by themselves, in the place of the base's."""

    key: str
    tokens: tuple[int, ...]
    by_rows: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def apply(self, weight: torch.Tensor, first: int, factors: Factors) -> torch.Tensor:
        inside = [(index, token - first) for index, token in enumerate(self.tokens) if 0 <= token - first < len(weight)]
        if inside:
            trained, rows = zip(*inside, strict=True)
            weight[list(rows)] = factors(self.key)[list(trained)]
        return weight

    def delta(self, shape: tuple[int, ...], factors: Factors) -> torch.Tensor:
        return torch.zeros(shape)
