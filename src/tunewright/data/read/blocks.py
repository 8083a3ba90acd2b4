"""What the readers hand on: blocks of rows for a worker process, and the rows in them.

In: blocks, cut by the main process. Out: one `Record` for each row, in order, with its place and either its parsed
value or the fault that kept it from being parsed. A blank line is no row. Blocks are small, can be pickled, and need
nothing but themselves to be read.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tunewright.data.exact_json import Json, parse_json
from tunewright.data.faults import Repair, RowError
from tunewright.errors import DataError


class _Unparsed(Enum):
    """An enumeration, because its member is still the same object after pickling."""

    UNPARSED = "unparsed"


UNPARSED: Json = _Unparsed.UNPARSED


@dataclass(frozen=True)
class Limits:
    """How much is held at once.

    Attributes:
        block_bytes: about the size of a block, and of what is read from a file in one go.
        block_rows: the most records in a block that is not JSON Lines.
        row_bytes: the longest row; a longer one is a fault.
    """

    block_bytes: int = 1 << 20
    block_rows: int = 1000
    row_bytes: int = 256 << 20


LIMITS = Limits()


class Record(NamedTuple):
    """The bytes of a row and where they stood.

    Attributes:
        line: the line on which the row begins, from 1; in Parquet the row's number, from 1.
        byte_offset: of the row's first byte in the unpacked file; 0 in Parquet.
        raw: the row's bytes without the line's end; in Parquet the row as JSON text; empty if the row is too long.
        value: the parsed row; `UNPARSED` if it is still to be parsed from `raw`, or if `fault` says why there is none.
        on_line: 2 for the second row that begins on this line, and so on.
        repairs: what was mended in the file, told with its first row.
        column: of the row's first character in its line, from 1.
        sha256: of the row's bytes where `raw` does not hold them.
    """

    line: int
    byte_offset: int
    raw: bytes
    value: Json = UNPARSED
    fault: RowError | None = None
    on_line: int = 1
    repairs: tuple[Repair, ...] = ()
    column: int = 1
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A unit of work.

    Attributes:
        source: index into the list of sources.
        lines: whole lines of JSON, still to be split; empty where there are `records`.
        repairs: of the first row in `lines`.
    """

    source: int
    first_line: int
    byte_offset: int
    lines: bytes = b""
    records: tuple[Record, ...] = ()
    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True)
class Input:
    """What a reader reads.

    Attributes:
        stream: the unpacked file, behind its byte order mark.
        head: the first bytes of the stream, without taking them.
        index: of the source, for the blocks.
        byte_offset: of the stream's next byte in the unpacked file.
        repairs: what was mended so far, to be told with the first row.
    """

    path: Path
    stream: BinaryIO
    head: bytes
    index: int
    byte_offset: int = 0
    repairs: tuple[Repair, ...] = ()
    limits: Limits = LIMITS

    def broken(self, line: int, found: str, mend: str = "", expected: str = "") -> DataError:
        return DataError(f"{self.path}:{line}", found, expected, mend)


def blocks_of(records: Iterable[Record], given: Input) -> Iterator[Block]:
    """Records put together into blocks."""
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += len(record.raw)
        if len(group) >= given.limits.block_rows or size >= given.limits.block_bytes:
            yield _block(group, given.index)
            group, size = [], 0
    if group:
        yield _block(group, given.index)


def _block(records: list[Record], index: int) -> Block:
    return Block(index, records[0].line, records[0].byte_offset, records=tuple(records))


def records_of(block: Block) -> Iterator[Record]:
    """The rows of a block, parsed."""
    for record in block.records:
        yield _parsed(record) if record.value is UNPARSED and record.fault is None else record
    repairs = block.repairs
    line, offset = block.first_line, block.byte_offset
    for raw in block.lines.split(b"\n"):
        if raw and not raw.isspace():
            yield _parsed_line(line, offset, raw.rstrip(b"\r"), repairs)
            repairs = ()
        line += 1
        offset += len(raw) + 1


def _parsed_line(line: int, offset: int, raw: bytes, repairs: tuple[Repair, ...]) -> Record:
    try:
        return Record(line, offset, raw, parse_json(raw.decode()), None, 1, repairs)
    except UnicodeDecodeError as error:
        return Record(line, offset, raw, fault=not_utf8(error), repairs=repairs)
    except RowError as fault:
        return Record(line, offset, raw, fault=fault, repairs=repairs)


def _parsed(record: Record) -> Record:
    """A record that may begin anywhere in a line and go over several."""
    try:
        text = record.raw.decode()
        return record._replace(value=parse_json(text))
    except UnicodeDecodeError as error:
        return record._replace(fault=not_utf8(error))
    except RowError as fault:
        broken = broken_json(text) if fault.kind == "broken JSON" else None
        return record._replace(fault=_placed(broken, record) if broken else fault)


def not_utf8(error: UnicodeDecodeError) -> RowError:
    return RowError("not UTF-8", f"byte {error.start + 1} of the row is 0x{error.object[error.start]:02x}")


def broken_json(text: str) -> json.JSONDecodeError | None:
    """Where the standard parser gives a text up; None if it takes it, or if it is nested too deeply for it."""
    try:
        json.loads(text, parse_int=str)
    except json.JSONDecodeError as error:
        return error
    except RecursionError:
        return None
    return None


def place_in_file(error: json.JSONDecodeError, line: int, column: int) -> tuple[int, int]:
    """Line and column of an error, in the file, of a text that begins at `line` and `column`."""
    return line + error.lineno - 1, error.colno + (column - 1 if error.lineno == 1 else 0)


def _placed(error: json.JSONDecodeError, record: Record) -> RowError:
    line, column = place_in_file(error, record.line, record.column)
    where = f"column {column}" if line == record.line else f"line {line}, column {column}"
    return RowError("broken JSON", f"{error.msg.removesuffix(' at')} at {where}")
