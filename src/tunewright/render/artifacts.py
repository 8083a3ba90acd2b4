"""The files of the render stage for people and for later stages: names, lengths and a few rows with their masks."""

import json
from collections.abc import Iterable, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tunewright.chat.rows import TokenRow, TokenRows

EXAMPLE_ROWS = 5


def write_lists(path: Path, lists: Mapping[str, Iterable[str]], facts: Mapping[str, Any] | None = None) -> None:
    """A JSON object of `facts` and of long lists, whose entries are JSON texts, written as they come."""
    with path.open("w", encoding="utf-8") as file:
        opening = "{"
        for name, value in (facts or {}).items():
            file.write(f"{opening}\n  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}")
            opening = ","
        for name, entries in lists.items():
            file.write(f"{opening}\n  {json.dumps(name)}: [")
            _write_entries(file, entries)
            file.write("]")
            opening = ","
        file.write("\n}\n")


def _write_entries(file: TextIO, entries: Iterable[str]) -> None:
    separator = "\n    "
    for entry in entries:
        file.write(separator + entry)
        separator = ",\n    "


def example_rows(rows: TokenRows, names: Iterable[str], tokenizer: Any) -> list[dict[str, Any]]:
    """The first rows, each as segments of text that are supervised or not; `names` are JSON texts."""
    return [
        {"id": json.loads(name), "segments": segments(rows[index], tokenizer)}
        for index, name in enumerate(islice(names, EXAMPLE_ROWS))
    ]


def segments(row: TokenRow, tokenizer: Any) -> list[dict[str, Any]]:
    changes = np.flatnonzero(np.diff(row.mask.astype(np.int8))) + 1
    bounds = [0, *changes.tolist(), len(row.ids)]
    return [
        {
            "text": tokenizer.decode(row.ids[start:end].tolist(), clean_up_tokenization_spaces=False),
            "supervised": bool(row.mask[start]),
        }
        for start, end in pairwise(bounds)
    ]
