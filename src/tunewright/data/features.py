"""What is kept of each usable conversation once its text has gone by: a few numbers, one column each.

Hashes are 64 bits of BLAKE2b; 0 stands for none. Two different texts share one with a probability of 1 in 10^19, so
that among 10 million rows a false equality is expected in 3 of a million data sets.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunewright.data.audit.language import language_of
from tunewright.data.audit.rows import AuditRow

COLUMNS: dict[str, type[np.generic]] = {
    "key": np.uint64,  # of the input row with the seed: what decides who is held out
    "tree": np.uint64,  # rows that stay on one side of the split
    "stratum": np.uint64,
    "messages": np.uint64,  # the whole conversation
    "context": np.uint64,  # system prompt, tools and prompt
    "target": np.uint64,
    "system": np.uint64,
    "schema": np.uint64,  # the shape of a JSON target
    "target_characters": np.uint32,
    "prompt_characters": np.uint32,
    "system_characters": np.uint32,
    "target_language": np.uint8,
    "prompt_language": np.uint8,
    "held_out": np.uint8,
    "bytes": np.uint32,  # of the conversation's line on disk
}


def hash64(text: str | bytes | None) -> int:
    """64 bits of BLAKE2b, never 0; 0 for None."""
    if text is None:
        return 0
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def features_of(row: AuditRow, key: int, stratum: str | None, held_out: bool, line: bytes) -> tuple[int, ...]:
    """The row's values in the order of `COLUMNS`.

    Args:
        key: hash of the input row with the seed.
        stratum: the value of the field that the split is stratified by.
        line: the conversation as it is written to disk.
    """
    system = row.system
    return (
        key,
        hash64(row.conversation.tree),
        hash64(stratum),
        hash64(line.partition(b'"messages"')[2]),
        hash64("\0".join("none" if text is None else f"some{text}" for text in row.context)),
        hash64(row.target),
        hash64(system),
        hash64(row.schema),
        len(row.target),
        len(row.prompt),
        len(system or ""),
        language_of(row.last.prose),
        language_of(row.prompt),
        held_out,
        len(line),
    )


def as_columns(rows: Sequence[tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Rows of values as one array for each column."""
    values = zip(*rows, strict=True) if rows else ([] for _ in COLUMNS)
    return {name: np.array(column, dtype=dtype) for (name, dtype), column in zip(COLUMNS.items(), values, strict=True)}
