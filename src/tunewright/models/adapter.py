"""A LoRA adapter on disk, and the arithmetic of merging it: W + s·B·A in float32, rounded once.

Shapes follow peft: A is [r, in], B is [out, r], W is [out, in]; s is lora_alpha / r (Hu et al. 2021), or
lora_alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tunewright.artifacts import read_json
from tunewright.errors import MergeError
from tunewright.models.tensors import CheckpointTensors

PREFIX = "base_model.model."
UNSUPPORTED = ("use_dora", "modules_to_save", "alpha_pattern", "layer_replication", "fan_in_fan_out", "lora_bias")


@dataclass(frozen=True)
class LoraPair:
    """The two matrices that change one tensor of the base, by their keys in the adapter file."""

    a_key: str
    b_key: str
    scale: float


class Adapter:
    """The adapter in a directory, matched against the tensors of a base.

    Use as a context manager.

    Attributes:
        pairs: for each tensor of the base that the adapter changes, its pair.

    Raises:
        MergeError: a key is left over or missing on either side, a shape does not fit, or the adapter is of a kind
            that is not supported; the message names it.
    """

    def __init__(self, directory: Path, base: CheckpointTensors) -> None:
        self.directory = directory
        self.config: dict[str, Any] = read_json(directory / "adapter_config.json")
        _validate_kind(self.config, directory)
        self.tensors = CheckpointTensors(directory)
        self.pairs = self._match(base)

    def __enter__(self) -> "Adapter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tensors.__exit__(kind, error, trace)

    def delta(self, name: str) -> torch.Tensor:
        """s·B·A of the base's tensor `name`, float32 [out, in]."""
        pair = self.pairs[name]
        return pair.scale * (self.tensors[pair.b_key].float() @ self.tensors[pair.a_key].float())

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """W + s·B·A in float32, not yet rounded."""
        return weight.float() + self.delta(name)

    def _match(self, base: CheckpointTensors) -> dict[str, LoraPair]:
        where = str(self.directory / "adapter_model.safetensors")
        modules = sorted({_module_of(key, where) for key in self.tensors})
        pairs = {}
        for module in modules:
            name, pair = f"{module}.weight", self._pair(module, where)
            if name not in base:
                raise MergeError(
                    where, f"it changes {name!r}, which the base has not", mend="Merge into the base it was trained on."
                )
            self._validate_shapes(name, pair, base.shape(name), where)
            pairs[name] = pair
        if not pairs:
            raise MergeError(where, "the adapter has no LoRA weights", mend="Train again.")
        return pairs

    def _pair(self, module: str, where: str) -> LoraPair:
        keys = [f"{PREFIX}{module}.lora_{side}.weight" for side in "AB"]
        for key, other in (keys, keys[::-1]):
            if key not in self.tensors:
                raise MergeError(where, f"{key!r} is missing", expected=f"a partner for {other!r}", mend="Train again.")
        rank = self.tensors.shape(keys[0])[0]
        alpha = float(self.config["lora_alpha"])
        scale = alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank
        return LoraPair(keys[0], keys[1], scale)

    def _validate_shapes(self, name: str, pair: LoraPair, weight: tuple[int, ...], where: str) -> None:
        a, b = self.tensors.shape(pair.a_key), self.tensors.shape(pair.b_key)
        if (b[0], a[1]) != weight or a[0] != b[1]:
            raise MergeError(
                where,
                f"B {list(b)} times A {list(a)} does not fit {name} {list(weight)}",
                mend="Merge into the base it was trained on.",
            )


def _validate_kind(config: dict[str, Any], directory: Path) -> None:
    found = [name for name in UNSUPPORTED if config.get(name)]
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type {config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        found.append(f"bias {config['bias']}")
    if found:
        raise MergeError(
            str(directory / "adapter_config.json"), f"the adapter uses {', '.join(found)}", expected="plain LoRA"
        )


def _module_of(key: str, where: str) -> str:
    for suffix in (".lora_A.weight", ".lora_B.weight"):
        if key.startswith(PREFIX) and key.endswith(suffix):
            return key[len(PREFIX) : -len(suffix)]
    raise MergeError(where, f"unknown key {key!r}", expected=f"{PREFIX}….lora_A.weight or ….lora_B.weight")
