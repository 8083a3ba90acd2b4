"""Parquet files: each row is written as JSON text, and is from there on a row like any other.

Numbers keep their exact text: integers and decimals all digits, floats of 32 and 64 bits the shortest text that gives
the same float of the same width. Dates and times become ISO 8601 text, bytes that are UTF-8 become text and are told as
a repair. What JSON cannot hold (NaN, infinity, other bytes) is the row's fault and names its field. A few rows are held
at a time.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.data.faults import Repair, RowError
from tunewright.data.read.blocks import Block, Limits, Record
from tunewright.errors import DataError

quoted = json.JSONEncoder(ensure_ascii=False).encode
NOT_FINITE = {"nan": "NaN", "-nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
SECONDS_PER_UNIT = {"s": Decimal(1), "ms": Decimal("1e-3"), "us": Decimal("1e-6"), "ns": Decimal("1e-9")}


class Unreadable(NamedTuple):
    """A value that has no JSON text: why, what stands for it in the row's bytes, and where below its column it is."""

    kind: str
    detail: str
    shown: str
    path: str = ""

    def below(self, step: str) -> "Unreadable":
        return self._replace(path=step + self.path)


Text = str | Unreadable  # JSON text


def read_parquet(path: Path, index: int, limits: Limits) -> Iterator[Block]:
    """The rows of a file, numbered from 1.

    Raises:
        DataError: the file is damaged, names a column twice, or has a column of a type that is not known here.
    """
    number = 1
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            _validate_columns(path, schema)
            for batch in _batches(file, limits):
                records = tuple(_records(batch, number, path))
                yield Block(index, number, 0, records=records)
                number += len(records)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        behind = f" after row {number - 1:,}" if number > 1 else ""
        found = f"the Parquet file is damaged{behind} ({_first_sentence(error)})"
        raise DataError(str(path), found, mend="Fetch or write the file again.") from None


def _first_sentence(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")


def _validate_columns(path: Path, schema: pa.Schema) -> None:
    doubled = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if doubled:
        raise DataError(str(path), f"the file names the columns {doubled} twice", mend="Rename a column.")
    if not schema.names:
        raise DataError(str(path), "the file has no columns", mend="Name a file with rows.")


def _batches(file: pq.ParquetFile, limits: Limits) -> Iterator[pa.RecordBatch]:
    """Batches of about a block each, if the rows of a group are alike."""
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))
        rows = max(1, min(limits.block_rows, limits.block_bytes // row_bytes))
        yield from file.iter_batches(rows, row_groups=[number], use_threads=False)


def _records(batch: pa.RecordBatch, number: int, path: Path) -> Iterator[Record]:
    names = batch.schema.names
    columns = [_column(batch, name, path) for name in names]
    repairs = [
        (name, Repair("bytes read as text", name)) for name in names if _has_bytes(batch.schema.field(name).type)
    ]
    keys = [f"{quoted(name)}: " for name in names]
    for line, row in enumerate(zip(*columns, strict=True), number):
        values = [value if isinstance(value, str) else value.shown for value in row]
        raw = "{" + ", ".join(map("".join, zip(keys, values, strict=True))) + "}"
        bad = next(((n, value) for n, value in zip(names, row, strict=True) if isinstance(value, Unreadable)), None)
        fault = RowError(bad[1].kind, bad[1].detail, bad[0] + bad[1].path) if bad else None
        told = tuple(repair for name, repair in repairs if values[names.index(name)] != "null") if repairs else ()
        yield Record(line, 0, raw.encode(), fault=fault, repairs=() if fault else told)


def _column(batch: pa.RecordBatch, name: str, path: Path) -> list[Text]:
    try:
        return json_texts(batch.column(name))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid, _NotJsonError):
        kind = batch.schema.field(name).type
        found = f"the column {name!r} of type {kind} cannot be written as JSON"
        raise DataError(str(path), found, mend="Leave the column out, or write it as text.") from None


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_bytes(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_has_bytes(kind.field(number).type) for number in range(kind.num_fields))
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return any(
        test(kind)
        for test in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    )


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


class _NotJsonError(Exception):
    """A type of which JSON has no like."""


def json_texts(array: pa.Array) -> list[Text]:
    """The JSON text of each value."""
    if isinstance(array, pa.ExtensionArray):
        return json_texts(array.storage)
    convert = next((convert for test, convert in CONVERTERS if test(array.type)), None)
    if convert is None:
        raise _NotJsonError(str(array.type))
    return convert(array)


def _plain(array: pa.Array) -> list[Text]:
    """Integers, decimals and truth values, as Arrow writes them, which is as JSON does."""
    return [value or "null" for value in array.cast(pa.string()).to_pylist()]


def _floats(array: pa.Array) -> list[Text]:
    return [_float(value) for value in array.cast(pa.string()).to_pylist()]


def _float(text: str | None) -> Text:
    if text is None:
        return "null"
    if text in NOT_FINITE:
        return Unreadable("not a JSON number", f"found {NOT_FINITE[text]}, which JSON does not have", quoted(text))
    return text if set(text) & set(".e") else f"{text}.0"


def _strings(array: pa.Array) -> list[Text]:
    try:
        return ["null" if value is None else quoted(value) for value in array.to_pylist()]
    except UnicodeDecodeError:
        return _bytes(array.cast(pa.large_binary()))


def _bytes(array: pa.Array) -> list[Text]:
    return ["null" if value is None else _decoded(value) for value in array.to_pylist()]


def _decoded(value: bytes) -> Text:
    try:
        return quoted(value.decode())
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} of {len(value):,} is 0x{value[error.start]:02x}"
        return Unreadable("not UTF-8", found, quoted(value.hex()))


def _times(array: pa.Array) -> list[Text]:
    """Dates, times of day and points in time; with a time zone as UTC."""
    kind = array.type
    zone = "Z" if pa.types.is_timestamp(kind) and kind.tz else ""
    if zone:
        array = array.cast(pa.timestamp(kind.unit))
    return ["null" if text is None else f'"{_iso(text)}{zone}"' for text in array.cast(pa.string()).to_pylist()]


def _iso(text: str) -> str:
    whole, point, fraction = text.replace(" ", "T").partition(".")
    fraction = fraction.rstrip("0")
    return whole + (point + fraction if fraction else "")


def _durations(array: pa.Array) -> list[Text]:
    unit = SECONDS_PER_UNIT[array.type.unit]
    return ["null" if value is None else _duration(value * unit) for value in array.cast(pa.int64()).to_pylist()]


def _duration(seconds: Decimal) -> str:
    sign = "-" if seconds < 0 else ""
    return f'"{sign}PT{_iso(format(abs(seconds), "f"))}S"'


def _dictionary(array: pa.Array) -> list[Text]:
    return json_texts(array.dictionary_decode())


def _lists(array: pa.Array) -> list[Text]:
    return [
        _whole("[]", items, [f"[{n}]" for n in range(len(items))]) if items is not None else "null"
        for items in _items(array, json_texts(array.flatten()))
    ]


def _structs(array: pa.Array) -> list[Text]:
    names = [array.type.field(number).name for number in range(array.type.num_fields)]
    steps = [f".{name}" for name in names]
    keys = [f"{quoted(name)}: " for name in names]
    children = [json_texts(child) for child in array.flatten()]
    rows = zip(*children, strict=True) if children else iter([()] * len(array))
    return [
        _whole("{}", values, steps, keys) if valid else "null"
        for valid, values in zip(array.is_valid().to_pylist(), rows, strict=True)
    ]


def _maps(array: pa.Array) -> list[Text]:
    """Maps become objects; keys that are no text become their JSON text."""
    offsets = array.offsets.to_pylist()
    begin, held = offsets[0], offsets[-1] - offsets[0]
    keys, values = json_texts(array.keys.slice(begin, held)), json_texts(array.items.slice(begin, held))
    names = [key if isinstance(key, Unreadable) or key.startswith('"') else quoted(key) for key in keys]
    places = (slice(start - begin, end - begin) for start, end in itertools.pairwise(offsets))
    return [
        _object(names[place], values[place]) if valid else "null"
        for valid, place in zip(array.is_valid().to_pylist(), places, strict=True)
    ]


def _object(names: Sequence[Text], values: Sequence[Text]) -> Text:
    bad = next((name for name in names if isinstance(name, Unreadable)), None)
    return bad or _whole("{}", values, [f".{json.loads(str(name))}" for name in names], [f"{name}: " for name in names])


def _items(array: pa.Array, flat: list[Any]) -> Iterator[list[Any] | None]:
    """What belongs to each list, of the values of all lists; None for a list that is null."""
    begin = 0
    for length in pc.list_value_length(array).to_pylist():
        yield None if length is None else flat[begin : begin + length]
        begin += length or 0


def _whole(brackets: str, values: Sequence[Text], steps: Sequence[str], keys: Sequence[str] = ()) -> Text:
    """Values in brackets; if one is unreadable, so is the whole, with the step to it added to the path."""
    shown = [value if isinstance(value, str) else value.shown for value in values]
    inner = ", ".join(map("".join, zip(keys, shown, strict=True)) if keys else shown)
    text = f"{brackets[0]}{inner}{brackets[1]}"
    for value, step in zip(values, steps, strict=True):
        if isinstance(value, Unreadable):
            return value.below(step)._replace(shown=text)
    return text


Converter = Callable[[pa.Array], list[Text]]
CONVERTERS: tuple[tuple[Callable[[pa.DataType], bool], Converter], ...] = (
    (_is_text, _strings),
    (pa.types.is_integer, _plain),
    (pa.types.is_floating, _floats),
    (pa.types.is_boolean, _plain),
    (pa.types.is_null, _plain),
    (pa.types.is_struct, _structs),
    (pa.types.is_map, _maps),
    (lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind), _lists),
    (pa.types.is_decimal, _plain),
    (lambda kind: pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind), _times),
    (pa.types.is_duration, _durations),
    (_is_binary, _bytes),
    (pa.types.is_dictionary, _dictionary),
)
