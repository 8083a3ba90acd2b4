"""Where the rows of a data set wait while they are looked at: on disk, in the order of the input.

`conversations.jsonl` has the usable conversations, `ledger.jsonl` a line for every input row, still without its split,
and one file per column holds the numbers of `tunewright.data.features`, one value for each conversation.
`conversations_per_row` has one value for each input row, 0 for a rejected one.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.conversation import Conversation, conversation_from_json
from tunewright.data.column import Column
from tunewright.data.features import COLUMNS
from tunewright.data.groups import MOST_ROWS, pieces
from tunewright.errors import DataError

BLOCK_BYTES = 1 << 20
COPY_BYTES = 1 << 22
ROWS_TO_A_MARK = 1 << 10
PER_ROW = "conversations_per_row"
DTYPES: dict[str, type[np.generic]] = {**COLUMNS, "prompt": np.uint64, PER_ROW: np.uint16}


class Spool:
    """A directory of spooled rows.

    Args:
        directory: an empty directory; it stays the caller's.

    Attributes:
        rows: input rows so far.
        size: usable conversations so far.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rows = self.size = 0
        self._files: dict[str, BinaryIO] = {}
        self._marks: NDArray[np.int64] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    @property
    def conversations_path(self) -> Path:
        return self.directory / "conversations.jsonl"

    @property
    def ledger_path(self) -> Path:
        return self.directory / "ledger.jsonl"

    def path(self, column: str) -> Path:
        return self.directory / f"{column}.column"

    def append(self, ledger: bytes, conversations: bytes, columns: Mapping[str, NDArray[Any]]) -> None:
        """Add rows that follow those that are there.

        Raises:
            DataError: there are more conversations than 32 bits can number.
        """
        self._file(self.ledger_path).write(ledger)
        self._file(self.conversations_path).write(conversations)
        for name, values in columns.items():
            self.append_column(name, values)
        self.rows += len(columns[PER_ROW])
        self.size += len(columns["key"])
        self._marks = None
        if self.size > MOST_ROWS:
            raise DataError("data", f"more than {MOST_ROWS:,} conversations", mend="Check the files one by one.")

    def append_column(self, name: str, values: NDArray[Any]) -> None:
        self._file(self.path(name)).write(values.tobytes())

    def _file(self, path: Path) -> BinaryIO:
        if path.name not in self._files:
            self._files[path.name] = path.open("wb")
        return self._files[path.name]

    def flush(self) -> None:
        """Make what was added so far readable."""
        for file in self._files.values():
            file.flush()

    def column(self, name: str) -> Column:
        """A column, in the order of the conversations."""
        return Column(self.path(name), DTYPES[name])

    def offset(self, index: int) -> int:
        """Where a conversation's line begins; of the number behind the last one, where that ends."""
        lengths = self.column("bytes")
        if self._marks is None:
            self._marks = marks_of(lengths)
        mark = index // ROWS_TO_A_MARK
        return int(self._marks[mark]) + int(lengths[mark * ROWS_TO_A_MARK : index].sum(dtype=np.int64))

    def line(self, index: int) -> bytes:
        file = self._reader()
        file.seek(self.offset(index))
        return file.readline()

    def _reader(self) -> BinaryIO:
        if "reader" not in self._files:
            self._files["reader"] = self.conversations_path.open("rb")
        return self._files["reader"]

    def conversation(self, index: int) -> Conversation:
        return conversation_from_json(json.loads(self.line(index)))

    def blocks(self) -> Iterator[bytes]:
        """All conversations as blocks of whole lines."""
        with self.conversations_path.open("rb") as file:
            while lines := file.readlines(BLOCK_BYTES):
                yield b"".join(lines)

    def copy_conversations(self, chosen: NDArray[np.bool_], path: Path) -> None:
        """Write the chosen conversations to `path`, in order."""
        edges = np.flatnonzero(np.diff(chosen.view(np.int8), prepend=np.int8(0), append=np.int8(0)))
        with path.open("wb") as target:
            for first, end in edges.reshape(-1, 2).tolist():
                self._copy(self.offset(first), self.offset(end), target)

    def _copy(self, start: int, end: int, target: BinaryIO) -> None:
        file = self._reader()
        file.seek(start)
        while start < end:
            piece = file.read(min(COPY_BYTES, end - start))
            target.write(piece)
            start += len(piece)

    def ledger_lines(self) -> Iterator[tuple[bytes, int]]:
        """Every ledger line without its end, with the number of conversations that its row became."""
        with self.ledger_path.open("rb") as file:
            per_row = self.column(PER_ROW)
            counts = (count for piece in pieces(len(per_row)) for count in per_row[piece].tolist())
            for line, count in zip(file, counts, strict=True):
                yield line.rstrip(b"\n"), count


def marks_of(lengths: Column) -> NDArray[np.int64]:
    """Where the line of every `ROWS_TO_A_MARK`th conversation begins, and where the last line ends, int64."""
    step = ROWS_TO_A_MARK
    sums = [lengths[start : start + step].sum(dtype=np.int64) for start in range(0, len(lengths), step)]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(sums, dtype=np.int64))])
