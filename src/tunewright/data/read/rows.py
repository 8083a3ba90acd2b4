"""Blocks into named rows.

Every row has an id of its own: `label:LINE`, and `label:LINE.2` for the second row that begins on a line. Its hash is
that of its bytes without the line's end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from tunewright.data.read.blocks import Block, Record, records_of
from tunewright.data.read.files import read_blocks
from tunewright.data.read.sources import Source


@dataclass(frozen=True)
class Row:
    """A record with its name."""

    id: str
    source: Source
    record: Record
    sha256: str


def rows_of(block: Block, sources: Sequence[Source]) -> Iterator[Row]:
    """The rows of a block, parsed, named and hashed."""
    source = sources[block.source]
    for record in records_of(block):
        name = f"{source.label}:{record.line}"
        if record.on_line > 1:
            name += f".{record.on_line}"
        yield Row(name, source, record, record.sha256 or sha256(record.raw).hexdigest())


def read_rows(source: Source) -> Iterator[Row]:
    """Every row of a file, in this process.

    Raises:
        DataError: the file has no rows, is damaged, or cannot be split into rows.
    """
    for block in read_blocks(source, 0):
        yield from rows_of(block, [source])
