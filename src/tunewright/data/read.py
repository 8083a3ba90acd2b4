"""Files into rows: JSON Lines, a JSON array, CSV; each of them also gzipped.

In: paths. Out: one `Row` for each row of each file, in order, with its place, its hash and either its parsed value or
the fault that kept it from being parsed. A blank line is no row. Lines end with LF or CRLF; U+2028 and the like end
none. Bytes are counted in the unpacked file, after gzip. A fault that belongs to one row is that row's; only where rows
can no longer be told apart is the file refused.

JSON Lines and CSV are read line by line; a JSON array is held in memory.
"""

import csv
import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from tunewright.data.exact_json import DECODER, LENIENT_DECODER, Json, parse_json
from tunewright.data.faults import Repair, RowError
from tunewright.errors import DataError, TunewrightError, UsageError

BOM = b"\xef\xbb\xbf"
FOREIGN_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
WHITESPACE = " \t\n\r"


@dataclass(frozen=True)
class Source:
    """A file of rows.

    Attributes:
        path: where it is.
        label: its name, lengthened by parent directories where two files have the same name.
        held_out: whether it is one of `eval_data`.
    """

    path: Path
    label: str
    held_out: bool = False


@dataclass(frozen=True)
class Record:
    """The bytes of a row and where they stood.

    Attributes:
        line: the line on which the row begins, from 1.
        byte_offset: of the row's first byte in the unpacked file.
        raw: the row's bytes without the line's end.
        value: the parsed row; None if `fault` says why there is none.
    """

    line: int
    byte_offset: int
    raw: bytes
    value: Json = None
    fault: RowError | None = None


@dataclass(frozen=True)
class Row:
    """A record with its name. `id` is `label:line`; rows that share a line are told apart by `#2`, `#3` and so on."""

    id: str
    source: Source
    record: Record
    sha256: str
    repairs: tuple[Repair, ...] = ()


def plan_sources(data: list[str], eval_data: list[str]) -> list[Source]:
    """The files of a recipe, each with a label of its own.

    Raises:
        UsageError: a file is missing, is no file, or cannot be opened.
    """
    paths = [Path(name) for name in [*data, *eval_data]]
    for path in paths:
        validate_file(path)
    return [
        Source(path, label, held_out=number >= len(data))
        for number, (path, label) in enumerate(zip(paths, unique_labels(paths), strict=True))
    ]


def validate_file(path: Path) -> None:
    if path.is_dir():
        raise UsageError(str(path), "found a directory", "a file", "Name the files in it one by one.")
    if not path.exists():
        raise UsageError(str(path), "the file does not exist", mend="Check the path.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(str(path), f"cannot be opened ({error.strerror})", mend="Check its permissions.") from None


def unique_labels(paths: list[Path]) -> list[str]:
    """The shortest trailing part of each path that no other path has; the same path again gets `#2`."""
    resolved = [path.resolve() for path in paths]
    labels = []
    for number, path in enumerate(resolved):
        others = {other for other in resolved if other != path}
        depth = 1
        while any(other.parts[-depth:] == path.parts[-depth:] for other in others):
            depth += 1
        times = resolved[: number + 1].count(path)
        labels.append("/".join(path.parts[-depth:]).replace("//", "/") + (f"#{times}" if times > 1 else ""))
    return labels


def read_rows(source: Source) -> Iterator[Row]:
    """Every row of a file.

    Raises:
        DataError: the file has no rows, is damaged, or is not text that can be split into rows.
    """
    last_line, on_line, count = 0, 0, 0
    with _open(source.path) as stream:
        repairs = _skip_byte_order_mark(source.path, stream)
        start = len(BOM) if repairs else 0
        try:
            for count, record in enumerate(_reader_of(source.path, stream)(source.path, stream, start), 1):  # noqa: B007
                on_line = on_line + 1 if record.line == last_line else 1
                last_line = record.line
                name = f"{source.label}:{record.line}" + (f"#{on_line}" if on_line > 1 else "")
                yield Row(name, source, record, hashlib.sha256(record.raw).hexdigest(), repairs)
                repairs = ()
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(source.path, error) from None
    if count == 0:
        raise DataError(str(source.path), "the file has no rows", mend="Name a file with rows.")


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _damaged(path: Path, error: Exception) -> TunewrightError:
    return DataError(str(path), f"the file is damaged ({error})", mend="Fetch or pack it again.")


def _head(path: Path, stream: BinaryIO) -> bytes:
    """The first bytes of what is to come, without moving on."""
    try:
        head: bytes = stream.peek(4096)  # type: ignore[attr-defined]
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged(path, error) from None
    return head


def _skip_byte_order_mark(path: Path, stream: BinaryIO) -> tuple[Repair, ...]:
    head = _head(path, stream)
    encoding = FOREIGN_BOMS.get(head[:2]) or ("UTF-16 or UTF-32" if b"\x00" in head[:4] else "")
    if encoding:
        raise DataError(str(path), f"the text is {encoding}", "UTF-8", "Save the file as UTF-8.")
    if not head.startswith(BOM):
        return ()
    stream.read(len(BOM))
    return (Repair("byte order mark removed", "file"),)


Reader = Callable[[Path, BinaryIO, int], Iterator[Record]]


def _reader_of(path: Path, stream: BinaryIO) -> Reader:
    suffix = _suffix(path)
    if suffix == ".csv":
        return read_csv
    first = _head(path, stream).lstrip()[:1]
    if first == b"[":
        return read_array
    if suffix == ".json":
        return read_json_lines_or_refuse_one_object
    if suffix in {".jsonl", ".ndjson"} or first == b"{" or not first:
        return read_json_lines
    raise DataError(
        str(path),
        f"found a file that ends in {suffix or 'nothing'} and does not begin like JSON",
        ".jsonl, .json or .csv, each also with .gz",
        "Convert it, or give it the name of what it is.",
    )


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def read_json_lines(path: Path, stream: BinaryIO, offset: int) -> Iterator[Record]:
    """One JSON value a line."""
    for number, line in enumerate(stream, 1):
        raw = line.rstrip(b"\r\n")
        if raw.strip():
            yield _parsed(Record(number, offset, raw))
        offset += len(line)


def _parsed(record: Record) -> Record:
    try:
        return replace(record, value=parse_json(_decoded(record.raw)))
    except RowError as fault:
        return replace(record, fault=fault)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowError("not UTF-8", f"byte {error.start + 1} of the row is 0x{raw[error.start]:02x}") from None


def read_json_lines_or_refuse_one_object(path: Path, stream: BinaryIO, offset: int) -> Iterator[Record]:
    """JSON Lines in a file named `.json`; a single object spread over several lines is no file of rows."""
    records = list(read_json_lines(path, stream, offset))
    if len(records) > 1 and records[0].fault is not None and _is_one_object(records):
        raise DataError(
            str(path),
            "found a single JSON object",
            "an array of rows, or one row on each line",
            "Put the rows into an array.",
        )
    yield from records


def _is_one_object(records: list[Record]) -> bool:
    try:
        return isinstance(parse_json("\n".join(_decoded(record.raw) for record in records)), dict)
    except RowError:
        return False


def read_array(path: Path, stream: BinaryIO, offset: int) -> Iterator[Record]:
    """The elements of a JSON array. Broken JSON ends the reading, as it cannot be told where the next row begins."""
    data = stream.read()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}", f"byte 0x{data[error.start]:02x} is not UTF-8", mend="Save as UTF-8."
        ) from None
    position = _skip_space(text, _skip_space(text, 0) + 1)
    line, counted = 1, 0
    while not text.startswith("]", position):
        value, fault, end = _element(path, text, position)
        line += text.count("\n", counted, position)
        offset += len(text[counted:position].encode())
        counted = position
        yield Record(line, offset, text[position:end].encode(), value, fault)
        position = _after_element(path, text, end)
    _validate_end(path, text, position + 1)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in WHITESPACE:
        position += 1
    return position


def _element(path: Path, text: str, position: int) -> tuple[Json, RowError | None, int]:
    try:
        try:
            value, end = DECODER.raw_decode(text, position)
        except RowError as fault:
            return None, fault, LENIENT_DECODER.raw_decode(text, position)[1]
    except json.JSONDecodeError as error:
        raise _broken_array(path, text, error.pos, error.msg) from None
    except RecursionError:
        raise _broken_array(path, text, position, "nested deeper than can be read") from None
    return value, None, end


def _after_element(path: Path, text: str, end: int) -> int:
    position = _skip_space(text, end)
    if text.startswith("]", position):
        return position
    if not text.startswith(",", position):
        raise _broken_array(path, text, position, "Expecting ',' or ']' after a row")
    position = _skip_space(text, position + 1)
    if text.startswith("]", position):
        raise _broken_array(path, text, position, "Expecting a row after ','")
    return position


def _validate_end(path: Path, text: str, position: int) -> None:
    position = _skip_space(text, position)
    if position < len(text):
        raise _broken_array(path, text, position, "Extra data after the array")


def _broken_array(path: Path, text: str, position: int, message: str) -> DataError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return DataError(
        f"{path}:{line}",
        f"broken JSON: {message} at column {column}",
        mend="Mend the file; in JSON Lines, one row on each line, a broken row could be left out.",
    )


def read_csv(path: Path, stream: BinaryIO, offset: int) -> Iterator[Record]:
    """The records of a CSV file with a header, comma between and `"` around; every cell is text."""
    csv.field_size_limit(sys.maxsize)
    lines = _CountedLines(stream, offset)
    reader = csv.reader(lines, strict=True)
    header = _csv_header(path, reader, lines)
    while True:
        lines.begin_record()
        cells, fault = _csv_cells(reader)
        record = lines.record()
        if cells is None and fault is None:
            return
        if record.raw.strip():
            yield _csv_record(record, header, cells or [], fault)


class _CountedLines:
    """Hands lines to the CSV reader as text and keeps the bytes that one record was made of."""

    def __init__(self, stream: BinaryIO, offset: int) -> None:
        self.stream = stream
        self.line, self.offset = 1, offset
        self.taken: list[bytes] = []

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            self.taken.append(line)
            yield line.decode("utf-8", errors="surrogateescape")

    def begin_record(self) -> None:
        self.line += len(self.taken)
        self.offset += sum(map(len, self.taken))
        self.taken = []

    def record(self) -> Record:
        return Record(self.line, self.offset, b"".join(self.taken).rstrip(b"\r\n"))


CsvReader = Iterator[list[str]]


def _csv_cells(reader: CsvReader) -> tuple[list[str] | None, RowError | None]:
    try:
        return next(reader, None), None
    except csv.Error as error:
        return None, RowError("broken CSV", str(error))


def _csv_header(path: Path, reader: CsvReader, lines: _CountedLines) -> list[str]:
    cells: list[str] | None = []
    while cells == []:
        lines.begin_record()
        cells, fault = _csv_cells(reader)
        if fault is not None:
            raise DataError(f"{path}:{lines.line}", f"the header is {fault.reason}", mend="Mend the first line.")
    doubled = sorted({name for name in cells or [] if (cells or []).count(name) > 1})
    if doubled:
        raise DataError(f"{path}:{lines.line}", f"the header names {doubled} twice", mend="Rename a column.")
    return cells or []


def _csv_record(record: Record, header: list[str], cells: list[str], fault: RowError | None) -> Record:
    try:
        _decoded(record.raw)
    except RowError as not_utf8:
        fault = not_utf8
    if fault is None and len(cells) != len(header):
        fault = RowError("broken CSV", f"found {len(cells)} cells; expected {len(header)} as in the header")
    return replace(record, fault=fault) if fault else replace(record, value=dict(zip(header, cells, strict=True)))
