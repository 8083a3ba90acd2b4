"""Supervised rows on disk: one safetensors file of flat arrays, written in blocks and mapped into memory when read.

ids             int32 [N]    the token ids of all rows, one after the other
mask            uint8 [N]    1 where the token is learned
offsets         int64 [R+1]  where each row begins; the last entry is N
prompt_lengths  int32 [R]    tokens before the row's last supervised span

The format (https://github.com/huggingface/safetensors#format): the header's length as a little-endian 64-bit number,
the header as JSON text that is filled up with spaces to a multiple of eight, then the arrays. As the library does,
arrays with wider numbers come first and then the names decide, so that every array is aligned.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.supervise import SupervisedRow
from tunewright.errors import ArtifactError

# In the order of the file.
ARRAYS: dict[str, tuple[str, type[np.generic]]] = {
    "offsets": ("I64", np.int64),
    "ids": ("I32", np.int32),
    "prompt_lengths": ("I32", np.int32),
    "mask": ("U8", np.uint8),
}
DTYPES = dict(ARRAYS.values())


@dataclass(frozen=True)
class RowBlock:
    """Some rows as flat arrays, one after the other.

    Attributes:
        ids, mask: int32 [N] and bool [N].
        lengths: tokens of each row, int32 [R].
        prompt_lengths: tokens before each row's last supervised span, int32 [R].
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    lengths: NDArray[np.int32]
    prompt_lengths: NDArray[np.int32]

    @classmethod
    def of(cls, rows: Sequence[SupervisedRow]) -> "RowBlock":
        return cls(
            np.concatenate([np.zeros(0, np.int32), *(row.ids for row in rows)]),
            np.concatenate([np.zeros(0, np.bool_), *(row.mask for row in rows)]),
            np.array([len(row.ids) for row in rows], dtype=np.int32),
            np.array([row.last_prompt_length for row in rows], dtype=np.int32),
        )


class RowWriter:
    """Writes a file of rows block by block; memory does not grow with their number.

    As a context manager it puts the file together at the end, unless an error came up. Each array waits in a file of
    its own beside `path`, since its place is known only when all rows are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = self.tokens = 0
        self._parts: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        self._parts = {name: self._part(name).open("w+b") for name in ARRAYS}
        self._append("offsets", np.zeros(1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._assemble()
        finally:
            for name, file in self._parts.items():
                file.close()
                self._part(name).unlink()

    def append(self, block: RowBlock) -> None:
        """Add rows that follow those that are there."""
        self._append("ids", block.ids)
        self._append("mask", block.mask)
        self._append("prompt_lengths", block.prompt_lengths)
        self._append("offsets", self.tokens + np.cumsum(block.lengths, dtype=np.int64))
        self.rows += len(block.lengths)
        self.tokens += len(block.ids)

    def _append(self, name: str, values: NDArray[Any]) -> None:
        self._parts[name].write(values.astype(ARRAYS[name][1], copy=False).tobytes())

    def _part(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{name}")

    def _assemble(self) -> None:
        with self.path.open("wb") as file:
            file.write(self._header())
            for part in self._parts.values():
                part.seek(0)
                shutil.copyfileobj(part, file, 1 << 22)

    def _header(self) -> bytes:
        entries, start = {}, 0
        for name, (dtype, kind) in ARRAYS.items():
            size = self._parts[name].tell()
            shape = [size // np.dtype(kind).itemsize]
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
            start += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def write_rows(path: Path, rows: Sequence[SupervisedRow]) -> None:
    with RowWriter(path) as writer:
        writer.append(RowBlock.of(rows))


@dataclass(frozen=True)
class TokenRow:
    """One row as it was written: ids int32 [T], mask bool [T], tokens before the last supervised span."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    prompt_length: int


class TokenRows:
    """The rows of one file, by index. The arrays are mapped: only rows that are looked at take memory."""

    def __init__(self, path: Path) -> None:
        arrays = map_arrays(path)
        self._ids = arrays["ids"]
        self._mask = arrays["mask"].view(np.bool_)
        self._offsets = arrays["offsets"]
        self._prompt_lengths = arrays["prompt_lengths"]

    def __len__(self) -> int:
        return len(self._prompt_lengths)

    def __getitem__(self, index: int) -> TokenRow:
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return TokenRow(self._ids[start:end], self._mask[start:end], int(self._prompt_lengths[index]))

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        lengths: list[int] = np.diff(self._offsets).tolist()
        return lengths


def map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file, mapped; what is written to them does not reach the file.

    Raises:
        ArtifactError: the file is missing, or is not what `RowWriter` writes.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(size))
        arrays = {name: _map_array(path, 8 + size, entry) for name, entry in entries.items() if name in ARRAYS}
        if arrays.keys() != ARRAYS.keys():
            raise ValueError(f"arrays {sorted(arrays)}")
    except FileNotFoundError:
        raise ArtifactError(str(path), "the file is missing", mend="Run the stage that writes it again.") from None
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ArtifactError(
            str(path), f"not a file of rows ({error})", mend="Run the stage that writes it again."
        ) from None
    return arrays


def _map_array(path: Path, start: int, entry: dict[str, Any]) -> NDArray[Any]:
    kind, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    if shape == (0,):
        return np.zeros(0, kind)
    mapped = np.memmap(path, dtype=kind, mode="c", offset=start + entry["data_offsets"][0], shape=shape)
    return mapped.view(np.ndarray)


def shared_prefix(rows: Iterable[SupervisedRow | TokenRow]) -> NDArray[np.int32]:
    """The first tokens that all rows have in common, none of them supervised; int32.

    The token before the first supervised one predicts it, so it stays with each row; so does at least one token.
    """
    shared: NDArray[np.int32] | None = None
    for row in rows:
        supervised = np.flatnonzero(row.mask)
        end = min(len(row.ids) - 1, int(supervised[0]) - 1 if len(supervised) else len(row.ids))
        own = row.ids[: max(end, 0)]
        shared = own if shared is None else common_start(shared, own)
    return np.zeros(0, np.int32) if shared is None else shared


def common_start(left: NDArray[np.int32], right: NDArray[np.int32]) -> NDArray[np.int32]:
    """The longest beginning that both have."""
    length = min(len(left), len(right))
    differing = np.flatnonzero(left[:length] != right[:length])
    return left[: int(differing[0]) if len(differing) else length]
