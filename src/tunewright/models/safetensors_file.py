"""Safetensors files as ranges of bytes: where each tensor lies, and positioned reads of any rows of it.

In goes a checkpoint directory; out come its tensors, a few rows at a time. Nothing is mapped into memory, so what a
process holds is what it asked for. Reading is safe from several threads. The format is that of the safetensors library:
eight bytes of length, a JSON header, then the tensors in row-major order.
"""

import json
import math
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from tunewright.errors import ArtifactError
from tunewright.models.tensors import INDEX_FILE

LENGTH_BYTES = 8
LARGEST_HEADER = 100 << 20
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: `offset` is where its first byte stands."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def row_elements(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by name, in the order of the files and of the bytes in them.

    Raises:
        ArtifactError: a file is damaged or missing, or the index and the files do not agree.
    """
    index = directory / INDEX_FILE
    if not index.is_file():
        files = sorted(directory.glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in file_tensors(file).items()}
    weight_map = _weight_map(index)
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(weight_map.values())):
        present = file_tensors(directory / file)
        found.update({name: tensor for name, tensor in present.items() if weight_map.get(name) == file})
    missing = sorted(set(weight_map) - set(found))
    if missing:
        raise ArtifactError(
            str(index), f"{missing[0]} is not in {weight_map[missing[0]]}", mend="Fetch the checkpoint again."
        )
    return found


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(str(index), "not an index of tensors", mend="Fetch the checkpoint again.") from None
    return weight_map


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, in the order of their bytes.

    Raises:
        ArtifactError: it is not a whole safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            header = json.loads(file.read(length)) if length <= LARGEST_HEADER else {}
        tensors = {
            name: _stored(path, LENGTH_BYTES + length, entry) for name, entry in header.items() if name[:2] != "__"
        }
        end = max((tensor.offset + tensor.bytes for tensor in tensors.values()), default=-1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, str(error)) from None
    if end != path.stat().st_size:
        raise _damaged(path, f"its tensors end at byte {end}, the file at byte {path.stat().st_size}")
    return dict(sorted(tensors.items(), key=lambda item: item[1].offset))


def _stored(path: Path, data_start: int, entry: dict[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"dtype {entry['dtype']} is not known")
    tensor = StoredTensor(path, DTYPES[entry["dtype"]], tuple(entry["shape"]), data_start + begin)
    if tensor.bytes != end - begin:
        raise ValueError(f"a tensor of {tensor.bytes} bytes is given {end - begin}")
    return tensor


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(str(path), f"not a whole safetensors file ({reason})", mend="Fetch or make it again.")


@dataclass
class TensorReader:
    """Reads rows of stored tensors; holds each file open once. Use as a context manager."""

    _descriptors: dict[Path, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, tensor: StoredTensor, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Rows `first` up to `last` (all by default), in the stored dtype."""
        last = tensor.rows if last is None else last
        shape = (last - first, *tensor.shape[1:]) if tensor.shape else ()
        row_bytes = tensor.row_elements * tensor.dtype.itemsize
        buffer = torch.empty(math.prod(shape) * tensor.dtype.itemsize, dtype=torch.uint8)
        self._fill(tensor, memoryview(buffer.numpy()), tensor.offset + first * row_bytes)  # type: ignore[arg-type]
        return buffer.view(tensor.dtype).view(shape)

    def _fill(self, tensor: StoredTensor, buffer: memoryview, position: int) -> None:
        descriptor = self._descriptor(tensor.path)
        while buffer:
            count = os.preadv(descriptor, [buffer], position)
            if count == 0:
                raise _damaged(tensor.path, f"it ends at byte {position}")
            buffer, position = buffer[count:], position + count

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[path]


def header_bytes(tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The header of a file that holds `tensors` in this order, without gaps, padded so that data begin aligned."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
