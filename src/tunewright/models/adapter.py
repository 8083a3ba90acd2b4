"""A peft adapter on disk, or weights that were trained whole: configuration, tensors, and whether they can be merged.

Always: what cannot be merged exactly is refused by name, before anything is written.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tunewright.artifacts import read_json
from tunewright.errors import MergeError
from tunewright.models.safetensors_file import StoredTensor, TensorReader, file_tensors
from tunewright.models.whole import is_whole

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
# Kinds of LoRA whose result is no single matrix, or not W + s·B·A.
REFUSED = {
    "arrow_config": "it routes each token to its own matrices",
    "alora_invocation_tokens": "it acts on some tokens only",
    "layer_replication": "it repeats layers of the base",
    "use_bdlora": "its matrices are block diagonal",
    "velora_config": "it is a variant that merging does not know",
    "monteclora_config": "it is a variant that merging does not know",
    "kasa_config": "it changes the base when it is attached",
    "megatron_config": "it is split over processes",
    "use_qalora": "it pools its input",
}
# Ways to begin that leave the base as it was. The others (PiSSA, OLoRA, LoftQ, …) change it.
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
CACHED_FACTORS = 8
BLOCK_ELEMENTS = 1 << 22


@dataclass
class Adapter:
    """The adapter in a directory; reading its tensors is safe from several threads. Use as a context manager.

    Raises:
        MergeError: it is of a kind that cannot be merged; the message names it.
        ArtifactError: its files are missing or damaged.
    """

    directory: Path
    config: dict[str, Any] = field(init=False)
    tensors: dict[str, StoredTensor] = field(init=False)
    _reader: TensorReader = field(default_factory=TensorReader)
    _cache: "OrderedDict[str, torch.Tensor]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.config = read_json(self.directory / CONFIG_FILE)
        validate_kind(self.config, self.directory / CONFIG_FILE)
        self.tensors = file_tensors(self.directory / ADAPTER_FILE)

    @property
    def is_whole(self) -> bool:
        """Whether it holds every weight of the model, and not what is to be added to them."""
        return is_whole(self.config)

    @property
    def where(self) -> str:
        return str(self.directory / ADAPTER_FILE)

    def __enter__(self) -> "Adapter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.__exit__(kind, error, trace)

    def factor(self, key: str) -> torch.Tensor:
        """A tensor of the adapter in float32; the last few are kept, since blocks of one tensor ask for the same."""
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            factor = self._reader.read(self.tensors[key]).float()
            self._cache[key] = factor
            if len(self._cache) > CACHED_FACTORS:
                self._cache.popitem(last=False)
            return factor

    def is_finite(self, key: str) -> bool:
        """Whether every number of a tensor is finite; a block is read at a time."""
        tensor = self.tensors[key]
        rows = max(BLOCK_ELEMENTS // max(tensor.row_elements, 1), 1)
        blocks = (self._reader.read(tensor, n, min(n + rows, tensor.rows)) for n in range(0, tensor.rows, rows))
        return all(bool(torch.isfinite(block).all()) for block in blocks)

    def is_zero(self, key: str) -> bool:
        return not bool(self.factor(key).any())


def validate_kind(config: dict[str, Any], path: Path) -> None:
    """Raise `MergeError` that names what cannot be merged."""
    if is_whole(config):
        return
    if config.get("peft_type") != "LORA":
        raise MergeError(str(path), f"the adapter's peft_type is {config.get('peft_type')}", expected="LORA")
    for name, reason in REFUSED.items():
        if config.get(name):
            raise MergeError(str(path), f"the adapter uses {name}: {reason}", mend="Train a plain LoRA, or a DoRA.")
    start = config.get("init_lora_weights", True)
    if start not in STARTS:
        raise MergeError(
            str(path),
            f"the adapter began as {start!r} (init_lora_weights), which changes the base before training",
            mend="Save it again with peft's path_initial_model_for_weight_conversion, then merge that.",
        )
