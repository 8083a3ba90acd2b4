"""Supervised rows on disk: one safetensors file of flat arrays, mapped into memory when read.

ids             int32 [N]    the token ids of all rows, one after the other
mask            uint8 [N]    1 where the token is learned
offsets         int64 [R+1]  where each row begins; the last entry is N
prompt_lengths  int32 [R]    tokens before the row's last supervised span
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tunewright.chat.supervise import SupervisedRow


def write_rows(path: Path, rows: Sequence[SupervisedRow]) -> None:
    lengths = [len(row.ids) for row in rows]
    save_file(
        {
            "ids": np.concatenate([row.ids for row in rows]) if rows else np.zeros(0, np.int32),
            "mask": np.concatenate([row.mask for row in rows]).astype(np.uint8) if rows else np.zeros(0, np.uint8),
            "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            "prompt_lengths": np.array([row.last_prompt_length for row in rows], dtype=np.int32),
        },
        path,
    )


@dataclass(frozen=True)
class TokenRow:
    """One row as it was written: ids int32 [T], mask bool [T], tokens before the last supervised span."""

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]
    prompt_length: int


class TokenRows:
    """The rows of one file, by index."""

    def __init__(self, path: Path) -> None:
        arrays = load_file(path)
        self._ids = arrays["ids"]
        self._mask = arrays["mask"].astype(np.bool_)
        self._offsets = arrays["offsets"]
        self._prompt_lengths = arrays["prompt_lengths"]

    def __len__(self) -> int:
        return len(self._prompt_lengths)

    def __getitem__(self, index: int) -> TokenRow:
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        return TokenRow(self._ids[start:end], self._mask[start:end], int(self._prompt_lengths[index]))

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [int(length) for length in np.diff(self._offsets)]


def shared_prefix_length(rows: Sequence[SupervisedRow] | Sequence[TokenRow]) -> int:
    """How many first tokens all rows have in common, none of them supervised and none a row's last unlearned token.

    The token before the first supervised one predicts it, so it stays with each row; so does at least one token.
    """
    if len(rows) < 2:
        return 0
    first = rows[0]
    shared = len(first.ids)
    for row in rows:
        supervised = np.flatnonzero(row.mask)
        limit = min(shared, len(row.ids) - 1, int(supervised[0]) - 1 if len(supervised) else shared)
        differing = np.flatnonzero(first.ids[:limit] != row.ids[:limit])
        shared = int(differing[0]) if len(differing) else limit
    return max(shared, 0)
