"""CSV and TSV: records with a header, `"` around cells; every cell is text.

Cells keep commas, quotes and line breaks. A record with too many or too few cells is a row with a fault; a quote that
is not closed before the file ends is a fault of the file, as it cannot be told which rows it swallowed.
"""

import csv
import re
import sys
from collections.abc import Iterator

from tunewright.data.faults import Repair, RowError
from tunewright.data.read.blocks import UNPARSED, Input, Record
from tunewright.errors import DataError

CsvReader = Iterator[list[str]]
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_table(given: Input, delimiter: str = "") -> Iterator[Record]:
    """The records behind the header, parsed.

    Args:
        delimiter: what separates cells; empty: a comma, or what the header has in its place.

    Raises:
        DataError: the header is broken or names a column twice, a quote is not closed, or a record is too long.
    """
    csv.field_size_limit(sys.maxsize)
    delimiter_found = delimiter or detect_delimiter(given.head)
    repairs = given.repairs
    if delimiter_found != (delimiter or ","):
        repairs += (Repair(f"cells separated by {SEPARATORS[delimiter_found]}", "file"),)
    lines = _CountedLines(given)
    reader = csv.reader(lines, delimiter=delimiter_found, strict=True)
    header = _header(reader, lines)
    while (found := _next_cells(reader, lines)) is not None:
        cells, fault = found
        raw = lines.raw()
        if not raw.strip(b" \r\n"):
            continue
        fault = fault or lines.fault or _wrong_count(cells, header)
        value = UNPARSED if fault else dict(zip(header, cells, strict=True))
        yield Record(lines.line, lines.byte_offset, raw, value, fault, repairs=repairs)
        repairs = ()


def detect_delimiter(head: bytes) -> str:
    """The first of comma, semicolon and tab that the first line has outside of quotes; a comma where there is none."""
    first_line = re.sub(rb'"[^"]*"', b"", head.lstrip().partition(b"\n")[0]).decode(errors="replace")
    return next((separator for separator in SEPARATORS if separator in first_line), ",")


class _CountedLines:
    """Hands lines to the CSV reader as text and keeps the bytes that one record was made of.

    Attributes:
        line: on which the record under way begins.
        fault: why its bytes are no text.
    """

    def __init__(self, given: Input) -> None:
        self.given = given
        self.line, self.byte_offset = 1, given.byte_offset
        self.fault: RowError | None = None
        self._taken: list[bytes] = []
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        limit = self.given.limits.row_bytes
        while line := self.given.stream.readline(limit + 1 - self._size):
            self._size += len(line)
            if self._size > limit:
                found = f"the row that begins here has more than {limit:,} bytes"
                raise self.given.broken(self.line, found, "A quote in it may not be closed.")
            self._taken.append(line)
            yield self._text(line)

    def _text(self, line: bytes) -> str:
        before = self._size - len(line)
        if b"\x00" in line:
            self.fault = RowError("NUL byte", f"byte {before + line.index(0) + 1} of the row is 0x00")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            place = before + error.start + 1
            self.fault = RowError("not UTF-8", f"byte {place} of the row is 0x{line[error.start]:02x}")
            return line.decode(errors="replace")

    def begin_record(self) -> None:
        self.line += len(self._taken)
        self.byte_offset += self._size
        self._taken, self._size, self.fault = [], 0, None

    def raw(self) -> bytes:
        return b"".join(self._taken).rstrip(b"\r\n")

    def place(self) -> str:
        last = self.line + len(self._taken) - 1
        return f" (lines {self.line} to {last})" if last > self.line else ""


def _next_cells(reader: CsvReader, lines: _CountedLines) -> tuple[list[str], RowError | None] | None:
    """The cells of the next record, or why there are none; None at the end of the file."""
    lines.begin_record()
    try:
        cells = next(reader, None)
    except csv.Error as error:
        if str(error) == "unexpected end of data":
            raise lines.given.broken(
                lines.line,
                "broken CSV: a quote in the row that begins here is not closed before the file ends",
                'Close the quote; a quote inside a quoted cell is written "".',
            ) from None
        found = "a carriage return in a cell without quotes" if "new-line" in str(error) else str(error)
        return [], RowError("broken CSV", f"{found}{lines.place()}")
    return None if cells is None else (cells, None)


def _header(reader: CsvReader, lines: _CountedLines) -> list[str]:
    header: list[str] = []
    while not header:
        found = _next_cells(reader, lines)
        if found is None:
            return []
        header, fault = found
        fault = fault or lines.fault
        if fault:
            raise _bad_header(lines, f"is not usable ({fault.reason})", "Mend the first line.")
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise _bad_header(lines, f"names {doubled} twice", "Rename a column.")
    return header


def _bad_header(lines: _CountedLines, what: str, mend: str) -> DataError:
    return lines.given.broken(lines.line, f"the header {what}", mend)


def _wrong_count(cells: list[str], header: list[str]) -> RowError | None:
    if len(cells) == len(header):
        return None
    return RowError(
        "broken CSV", f"found {len(cells)} cell{'s' * (len(cells) != 1)}; expected {len(header)} as in the header"
    )
