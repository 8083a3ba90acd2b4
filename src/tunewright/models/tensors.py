"""The tensors of a checkpoint directory, one at a time, straight from safetensors, whatever the sharding."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tunewright.errors import ArtifactError

INDEX_FILE = "model.safetensors.index.json"


class CheckpointTensors:
    """Read access to every tensor of a checkpoint by name; only what is asked for comes into memory.

    Use as a context manager. `ArtifactError` names the file if it is no valid safetensors file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file_of = _file_of_each_tensor(directory)
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> "CheckpointTensors":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_of)

    def __len__(self) -> int:
        return len(self.file_of)

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file(name).get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the file's header alone."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def _file(self, name: str) -> Any:
        file = self.file_of[name]
        if file not in self._open:
            self._open[file] = self._stack.enter_context(_opened(self.directory / file))
        return self._open[file]


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")  # type: ignore[no-untyped-call,unused-ignore]
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            str(path), f"not a whole safetensors file ({error})", mend="Fetch or make it again."
        ) from None


def _file_of_each_tensor(directory: Path) -> dict[str, str]:
    index = directory / INDEX_FILE
    if index.is_file():
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return dict(sorted(weight_map.items()))
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    names: dict[str, str] = {}
    for file in files:
        with _opened(directory / file) as tensors:
            names.update(dict.fromkeys(tensors.keys(), file))
    return dict(sorted(names.items()))


def sha256_of_tensor(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and the tensor's bytes in row-major order."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def tensor_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of each tensor of a checkpoint, by name."""
    with CheckpointTensors(directory) as tensors:
        return {name: sha256_of_tensor(tensors[name]) for name in tensors}
