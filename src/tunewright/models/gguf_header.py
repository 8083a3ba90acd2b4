"""The header of a GGUF file: its metadata and where each tensor lies.

In goes a path; out come the metadata as Python values and every tensor's type, shape and place. Always: all of it was
within the file, so that a file that was cut off or overwritten is an `ArtifactError` that names the cause.
The official `gguf.GGUFReader` is not used for this: it takes seconds for a large vocabulary, and says of a file that
was cut off only that an array cannot be reshaped. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.errors import ArtifactError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
# Value type to struct format (little-endian).
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor in a GGUF file.

    Attributes:
        name: llama.cpp's name, such as `blk.0.attn_q.weight`.
        shape: outermost axis first, as in torch (the file has it the other way round).
        type: name of the ggml type, such as `Q8_0`.
        start: first byte within the file.
        bytes: length.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    start: int
    bytes: int

    @property
    def end(self) -> int:
        return self.start + self.bytes


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, tensors by name, the file's length, and the length that its tensors ask for.

    `metadata_end` is where the list of tensors begins.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    file_bytes: int
    needed_bytes: int
    metadata_end: int


class _Cursor:
    """Reads values one after the other and never beyond the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise damaged(self.path, f"the file ends at byte {len(self.data)}; its header needs bytes up to {end}")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{code}", self.take(struct.calcsize(code) * count))

    def number(self, code: str) -> Any:
        return self.numbers(code)[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def count(self, what: str, least_bytes: int) -> int:
        """A number of things of at least `least_bytes` each, which must fit into the rest of the file."""
        count = int(self.number("Q"))
        if count * least_bytes > len(self.data) - self.position:
            raise damaged(self.path, f"the header names {count} {what}, more than the file can hold")
        return count

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            raise damaged(self.path, f"the header has a value of the unknown type {kind} before byte {self.position}")
        return self.number(SCALARS[kind])

    def _array(self) -> list[Any]:
        kind = self.number("I")
        if kind in SCALARS:
            return list(self.numbers(SCALARS[kind], self.count("values", struct.calcsize(SCALARS[kind]))))
        return [self.value(kind) for _ in range(self.count("values", 8))]


def damaged(path: Path, found: str) -> ArtifactError:
    return ArtifactError(str(path), found, mend="The file is damaged or was cut off: export it again.")


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of the GGUF file at `path`.

    Raises:
        ArtifactError: the file is missing, is no GGUF, was cut off, or its header makes no sense.
    """
    if not path.is_file():
        raise ArtifactError(str(path), "the file is missing", mend="Run the stage that writes it again.")
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise ArtifactError(str(path), "no GGUF file", expected="one that begins with the letters GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    cursor = _Cursor(path, data)
    cursor.take(len(MAGIC))
    version = cursor.number("I")
    if version not in VERSIONS:
        raise ArtifactError(str(path), f"GGUF version {version}", expected="version 2 or 3, little-endian")
    tensor_count = cursor.count("tensors", 24)
    key_count = cursor.count("keys", 12)
    metadata = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(key_count)}
    metadata_end = cursor.position
    places = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = int(metadata.get("general.alignment", DEFAULT_ALIGNMENT)) or DEFAULT_ALIGNMENT
    start = math.ceil(cursor.position / alignment) * alignment
    tensors = {name: _tensor(path, name, shape, kind, start + offset) for name, shape, kind, offset in places}
    if len(tensors) != tensor_count:
        raise damaged(path, "two tensors have the same name")
    _validate_within_file(path, tensors, len(data))
    last = max((tensor.end for tensor in tensors.values()), default=start)
    return GgufHeader(path, metadata, tensors, len(data), math.ceil(last / alignment) * alignment, metadata_end)


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text()
    axes = cursor.number("I")
    if axes > 4:
        raise damaged(cursor.path, f"tensor {name!r} has {axes} axes")
    shape = cursor.numbers("Q", axes)
    kind, offset = cursor.number("I"), cursor.number("Q")
    return name, tuple(reversed(shape)), kind, offset


def _tensor(path: Path, name: str, shape: tuple[int, ...], kind: int, start: int) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        ggml_type = GGMLQuantizationType(kind)
    except ValueError:
        raise damaged(path, f"tensor {name!r} has the unknown type {kind}") from None
    block, block_bytes = GGML_QUANT_SIZES[ggml_type]
    return GgufTensor(name, shape, str(ggml_type.name), start, math.prod(shape) // block * block_bytes)


def _validate_within_file(path: Path, tensors: dict[str, GgufTensor], file_bytes: int) -> None:
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        if tensor.end > file_bytes:
            raise damaged(
                path, f"the file ends at byte {file_bytes}; tensor {tensor.name} needs bytes up to {tensor.end}"
            )
