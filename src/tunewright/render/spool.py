"""Where rendered rows wait until all are known: token rows and what is said of them, of one split, on disk."""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.rows import RowWriter, common_start
from tunewright.render.outcomes import Outcome, outcome_from_json
from tunewright.render.tally import Tally
from tunewright.render.work import RenderedBlock

# One value a line as JSON text: three columns for each token row, and one for each conversation.
COLUMNS = ("names", "lengths", "supervised", "outcomes")


class SplitSpool:
    """The rendered rows of one split; the file of rows is there once the context is left.

    Args:
        rows_path: the safetensors file to write.
        scratch: a directory for what is not kept.

    Attributes:
        tally: counts over all blocks.
    """

    def __init__(self, rows_path: Path, scratch: Path) -> None:
        self.rows_path = rows_path
        self.tally = Tally()
        self._paths = {name: scratch / f"{rows_path.stem}.{name}" for name in COLUMNS}
        self._prefix: NDArray[np.int32] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._writer = stack.enter_context(RowWriter(self.rows_path))
            self._files = {
                name: stack.enter_context(path.open("w", encoding="utf-8")) for name, path in self._paths.items()
            }
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def append(self, block: RenderedBlock) -> None:
        """Add a block that follows those that are there."""
        self._writer.append(block.rows)
        self._write("names", block.names)
        self._write("lengths", block.rows.lengths.tolist())
        self._write("supervised", block.supervised)
        self._write("outcomes", [outcome.as_json() for outcome in block.outcomes])
        self.tally.merge(block.tally)
        if block.names:
            self._prefix = block.prefix if self._prefix is None else common_start(self._prefix, block.prefix)

    def _write(self, column: str, values: Iterable[Any]) -> None:
        self._files[column].writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)

    @property
    def shared_prefix_tokens(self) -> int:
        """How many tokens all rows begin with, if there are two or more; see `tunewright.chat.rows.shared_prefix`."""
        return len(self._prefix) if self._prefix is not None and self.tally.rows > 1 else 0

    def entries(self, column: str) -> Iterator[str]:
        """A column, each value as JSON text."""
        with self._paths[column].open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line.rstrip("\n")

    def outcomes(self) -> Iterator[Outcome]:
        """What became of each conversation."""
        return (outcome_from_json(json.loads(text)) for text in self.entries("outcomes"))
