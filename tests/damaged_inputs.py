"""Damaged and odd input of every kind, and what reading each of them gives.

Shared by the test that holds it and by the benchmark that puts it beside Hugging Face datasets. The outcomes stand in
`damaged_inputs.txt`, below the name of the damage. An outcome is a line for each row: where the row begins (line, byte
offset), then its JSON, or `✗`, the field and the reason. A file that is refused has one line, with `refused:`.
"""

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tunewright.data.exact_json import json_text
from tunewright.data.read import Row, Source, read_rows
from tunewright.errors import DataError

LONG = 200  # bytes of a row that is not shown
LINES = b'{"a": "1"}\n{"a": "2"}\n'
MAP = pa.map_(pa.string(), pa.int64())


@dataclass(frozen=True)
class Damage:
    """An input: what is wrong with it or odd, the name of its file, and its bytes."""

    name: str
    file: str
    content: bytes | Callable[[], bytes]

    def bytes(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content()


def parquet_of(table: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def parquet(columns: dict[str, Any]) -> bytes:
    return parquet_of(pa.table(columns))


def damaged_page() -> bytes:
    """A file with check sums of its pages, in which one byte of a value was changed."""
    sink = io.BytesIO()
    table = pa.table({"a": ["first row", "second row"]})
    options = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    pq.write_table(table, sink, compression="none", **options)
    return sink.getvalue().replace(b"second row", b"second now")


def outcome_of(path: Path) -> list[str]:
    """What reading a file gives, in the words of the table."""
    try:
        return [line_of(row) for row in read_rows(Source(path, path.name))]
    except DataError as error:
        return ["refused: " + str(error).replace(str(path), path.name)]


def line_of(row: Row) -> str:
    record = row.record
    fault, place = record.fault, f"{row.id.removeprefix(row.source.label + ':')} @{record.byte_offset}"
    if fault:
        return f"{place} ✗ {fault.field + ': ' if fault.field else ''}{fault.reason}"
    told = "".join(f" ({repair.where}: {repair.what})" for repair in record.repairs)
    if len(record.raw) > LONG:
        return f"{place} {len(record.raw):,} bytes{told}"
    return f"{place} {json_text(record.value)}".encode("ascii", "backslashreplace").decode() + told


def expected_outcomes() -> dict[str, list[str]]:
    """The lines below each name in `damaged_inputs.txt`."""
    parts = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").strip().split("\n\n")
    return {name: lines for name, *lines in (part.split("\n") for part in parts)}


JSON_LINES = (
    Damage("byte that is not UTF-8 at the start of a line", "rows.jsonl", b'{"a": 1}\n\xff{"a": 2}\n{"a": 3}\n'),
    Damage("byte that is not UTF-8 inside a text", "rows.jsonl", b'{"a": 1}\n{"a": "x\xe4y"}\n{"a": 3}\n'),
    Damage("character cut off at the end of the file", "rows.jsonl", b'{"a": 1}\n{"a": "x\xe2\x82'),
    Damage("overlong UTF-8", "rows.jsonl", b'{"a": "\xc0\xaf"}\n'),
    Damage("surrogate encoded as UTF-8", "rows.jsonl", b'{"a": "\xed\xa0\x80"}\n'),
    Damage("byte order mark", "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n'),
    Damage("byte order mark in the middle", "rows.jsonl", b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n'),
    Damage("UTF-16 with a byte order mark", "rows.jsonl", '{"a": 1}\n'.encode("utf-16")),
    Damage("UTF-16 without a byte order mark", "rows.jsonl", '{"a": 1}\n'.encode("utf-16-be")),
    Damage("UTF-32", "rows.jsonl", '{"a": 1}\n'.encode("utf-32")),
    Damage("CRLF", "rows.jsonl", b'{"a": 1}\r\n{"a": "x\\r\\ny"}\r\n'),
    Damage("CR alone", "rows.jsonl", b'{"a": 1}\r{"a": 2}\r'),
    Damage(
        "U+2028, U+2029 and U+0085 inside a text", "rows.jsonl", '{"a": "1\u2028\u2029\x85"}\n{"a": "2"}\n'.encode()
    ),
    Damage("vertical tab and form feed between rows", "rows.jsonl", b'{"a": 1}\n\x0b\x0c\n{"a": 2}\n'),
    Damage("lone surrogate as an escape", "rows.jsonl", b'{"a": "\\ud800"}\n{"a": "2"}\n'),
    Damage("pair of surrogates as escapes", "rows.jsonl", b'{"a": "\\ud83d\\ude00"}\n'),
    Damage("NaN", "rows.jsonl", b'{"a": 1.5}\n{"a": NaN}\n'),
    Damage("Infinity", "rows.jsonl", b'{"a": 1.5}\n{"a": Infinity}\n'),
    Damage("-Infinity", "rows.jsonl", b'{"a": 1.5}\n{"a": -Infinity}\n'),
    Damage("1e999", "rows.jsonl", b'{"a": 1e999}\n'),
    Damage("integer of 30 digits", "rows.jsonl", b'{"a": 123456789012345678901234567890}\n'),
    Damage("integer of 5,000 digits", "rows.jsonl", b'{"a": ' + b"7" * 5000 + b"}\n"),
    Damage("decimal with 30 digits", "rows.jsonl", b'{"a": 0.100000000000000000000000000001}\n'),
    Damage("numbers with a leading zero and a plus", "rows.jsonl", b'{"a": 007}\n{"a": +1}\n{"a": 1}\n'),
    Damage("same key twice", "rows.jsonl", b'{"a": 1, "a": 2}\n{"a": 3}\n'),
    Damage("same key twice, far inside", "rows.jsonl", b'{"a": [{"b": {"c": 1, "c": 2}}]}\n'),
    Damage(
        "brackets 100,000 deep", "rows.jsonl", lambda: b'{"a": 1}\n' + b"[" * 100_000 + b"]" * 100_000 + b'\n{"a": 3}\n'
    ),
    Damage("line of 100 MB", "rows.jsonl", lambda: b'{"a": "' + b"x" * 100_000_000 + b'"}\n{"a": "y"}\n'),
    Damage("last line cut off", "rows.jsonl", b'{"a": 1}\n{"a": 2'),
    Damage("no line end at the end", "rows.jsonl", b'{"a": 1}\n{"a": 2}'),
    Damage("NUL byte inside a text", "rows.jsonl", b'{"a": "x\0y"}\n{"a": "2"}\n'),
    Damage("tail of NUL bytes", "rows.jsonl", b'{"a": 1}\n' + bytes(16)),
    Damage("tab inside a text", "rows.jsonl", b'{"a": "x\ty"}\n{"a": "2"}\n'),
    Damage("empty file", "rows.jsonl", b""),
    Damage("only blank lines", "rows.jsonl", b"\n \n\r\n"),
    Damage("blank lines between rows", "rows.jsonl", b'{"a": 1}\n\n \n{"a": 2}\n'),
    Damage("two rows on one line", "rows.jsonl", b'{"a": 1}{"a": 2}\n{"a": 3}\n'),
    Damage("comma after each row", "rows.jsonl", b'{"a": 1},\n{"a": 2}\n'),
    Damage("single quotes", "rows.jsonl", b"{'a': 1}\n" + b'{"a": 2}\n'),
    Damage("comment", "rows.jsonl", b'// rows\n{"a": 1}\n'),
    Damage("line that is no JSON", "rows.jsonl", b'{"a": 1}\nhello\n{"a": 3}\n'),
    Damage("rows of different types", "rows.jsonl", b'{"a": 1}\n[1]\n"x"\nnull\n'),
    Damage("one field of different types", "rows.jsonl", b'{"a": 1}\n{"a": "x"}\n{"a": {"b": 2}}\n'),
    Damage("integer where other rows have text of digits", "rows.jsonl", b'{"a": "01"}\n{"a": 1}\n'),
    Damage("text like a date", "rows.jsonl", b'{"a": "2024-01-02T03:04:05"}\n{"a": "2024-01-02"}\n'),
    Damage("field in one row only", "rows.jsonl", b'{"a": 1}\n{"a": 2, "b": null}\n'),
    Damage("object spread over several lines", "rows.jsonl", b'{\n  "a": 1\n}\n'),
    Damage(
        "pointer of Git LFS", "rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    ),
    Damage("web page", "rows.jsonl", b"<!DOCTYPE html>\n<html></html>\n"),
)
ARRAYS = (
    Damage("array with a comma after the last row", "rows.json", b'[{"a": 1},\n {"a": 2},\n]'),
    Damage("array cut off between rows", "rows.json", b'[{"a": 1},\n {"a": 2}'),
    Damage("array cut off inside a row", "rows.json", b'[{"a": 1},\n {"a": "x'),
    Damage("array followed by text", "rows.json", b'[{"a": 1}]\nend'),
    Damage("array with a broken row", "rows.json", b'[{"a": 1},\n {"a" 2},\n {"a": 3}]'),
    Damage(
        "array with a broken row over several lines", "rows.json", b'[{"a": 1}, {\n  "a": 2\n  "b": 3\n}, {"a": 4}]'
    ),
    Damage("array without a comma between rows", "rows.json", b'[{"a": 1}\n {"a": 2}]'),
    Damage("array with a bracket missing", "rows.json", b'[{"a": [1},\n {"a": 2}]'),
    Damage("array with a quote missing", "rows.json", b'[\n {"a": "x},\n {"a": "y"}\n]'),
    Damage("array with a row missing", "rows.json", b'[{"a": 1},, {"a": 2}]'),
    Damage("array with NaN and a doubled key", "rows.json", b'[{"a": NaN}, {"a": 1, "a": 2}, {"a": 3}]'),
    Damage("array with a byte that is not UTF-8", "rows.json", b'[{"a": "1"},\n {"a": "\xff"},\n {"a": "3"}]'),
    Damage("array with CR alone between rows", "rows.json", b'[\r{"a": 1},\r{"a": 2}\r]'),
    Damage("array, empty", "rows.json", b"[]"),
    Damage("array 100,000 deep", "rows.json", lambda: b"[" * 100_000 + b"]" * 100_000),
    Damage("array under a key", "rows.json", b'{\n "data": [\n  {"a": 1}\n ]\n}'),
)
TABLES = (
    Damage("quote that is not closed", "rows.csv", b'a,b\n1,x\n2,"y\n3,z\n'),
    Damage("text behind a closing quote", "rows.csv", b'a,b\n"1"x,y\n2,z\n'),
    Damage("too many cells", "rows.csv", b"a,b\n1,x,?\n2,y\n"),
    Damage("too few cells", "rows.csv", b"a,b\n1\n2,y\n"),
    Damage("header with an empty name", "rows.csv", b",a\n0,x\n"),
    Damage("header with a name twice", "rows.csv", b"a,a\n1,2\n"),
    Damage("header that is blank", "rows.csv", b"\n1,2\n"),
    Damage("header alone", "rows.csv", b"a,b\n"),
    Damage("semicolons", "rows.csv", b"a;b\n1;x\n"),
    Damage("line breaks, commas and quotes in cells", "rows.csv", b'a,b\r\n"1\r\n2","x, ""y"""\r\n3,z\r\n'),
    Damage("digits and words with a meaning elsewhere", "rows.csv", b"a,b\n007,NA\n1.0,null\n,true\n"),
    Damage("byte that is not UTF-8 in a cell", "rows.csv", b"a,b\n1,\xe4\n2,y\n"),
    Damage("NUL byte in a cell", "rows.csv", b"a,b\n1,x\0y\n2,y\n"),
    Damage("CR alone in a table", "rows.csv", b"a,b\r1,x\r"),
    Damage("byte order mark before the header", "rows.csv", b"\xef\xbb\xbfa,b\n1,x\n"),
    Damage("TSV with quotes and empty cells", "rows.tsv", b'a\tb\n"x\ty"\t1\n\t\n'),
)
PACKED = (
    Damage("gzip cut off", "rows.jsonl.gz", lambda: gzip.compress(LINES, mtime=0)[:-12]),
    Damage("gzip without its check sum", "rows.jsonl.gz", lambda: gzip.compress(LINES, mtime=0)[:-8]),
    Damage("gzip with a wrong check sum", "rows.jsonl.gz", lambda: gzip.compress(LINES, mtime=0)[:-8] + bytes(8)),
    Damage("gzip followed by something else", "rows.jsonl.gz", lambda: gzip.compress(LINES, mtime=0) + b"end"),
    Damage("gzip padded with zeros", "rows.jsonl.gz", lambda: gzip.compress(LINES, mtime=0) + bytes(512)),
    Damage(
        "gzip of two members",
        "rows.jsonl.gz",
        lambda: gzip.compress(LINES[:13], mtime=0) + gzip.compress(LINES[13:], mtime=0),
    ),
    Damage(".gz that is not packed", "rows.jsonl.gz", LINES),
    Damage(".gz that is something else", "rows.jsonl.gz", bytes(range(128, 192)) + b"\n"),
    Damage(".jsonl that is gzip", "rows.jsonl", lambda: gzip.compress(LINES, mtime=0)),
    Damage("gzip twice", "rows.jsonl.gz", lambda: gzip.compress(gzip.compress(LINES, mtime=0), mtime=0)),
    Damage("zstd cut off", "rows.jsonl.zst", lambda: zstandard.compress(LINES)[:-4]),
    Damage(
        "zstd of two frames", "rows.jsonl.zst", lambda: zstandard.compress(LINES[:13]) + zstandard.compress(LINES[13:])
    ),
    Damage("zstd followed by something else", "rows.jsonl.zst", lambda: zstandard.compress(LINES) + b"end"),
    Damage("table in gzip", "rows.csv.gz", lambda: gzip.compress(b"a,b\n1,x\n", mtime=0)),
    Damage("array in zstd", "rows.json.zst", lambda: zstandard.compress(b'[{"a": 1}]')),
    Damage("xz", "rows.jsonl.xz", b"\xfd7zXZ\x00" + bytes(32)),
)
PARQUET = (
    Damage("Parquet cut off", "rows.parquet", lambda: parquet({"a": [1, 2]})[:-20]),
    Damage("Parquet with a damaged page", "rows.parquet", lambda: damaged_page()),
    Damage("Parquet of nothing but its first bytes", "rows.parquet", b"PAR1"),
    Damage("Parquet that is JSON", "rows.parquet", LINES),
    Damage("Parquet in gzip", "rows.parquet.gz", lambda: gzip.compress(parquet({"a": [1]}), mtime=0)),
    Damage("Parquet without rows", "rows.parquet", lambda: parquet({"a": pa.array([], pa.int64())})),
    Damage(
        "Parquet with a column name twice", "rows.parquet", lambda: parquet_of(pa.table([[1], [2]], names=["a", "a"]))
    ),
    Damage(
        "Parquet with NaN and infinity",
        "rows.parquet",
        lambda: parquet({"a": [1.0, float("nan"), float("-inf"), None, 0.1]}),
    ),
    Damage(
        "Parquet with float32, large integers and decimals",
        "rows.parquet",
        lambda: parquet(
            {
                "a": pa.array([0.1], pa.float32()),
                "b": pa.array([2**64 - 1], pa.uint64()),
                "c": pa.array([Decimal("0.10")]),
            }
        ),
    ),
    Damage(
        "Parquet with nested values",
        "rows.parquet",
        lambda: parquet(
            {"m": [[{"role": "user", "n": 1}], [], None], "k": pa.array([[("x", 1), ("y", None)], [], None], MAP)}
        ),
    ),
    Damage(
        "Parquet with NaN far inside",
        "rows.parquet",
        lambda: parquet({"m": [[{"n": 1.5}, {"n": float("nan")}], [{"n": 2.0}]]}),
    ),
    Damage(
        "Parquet with a map that has a key twice",
        "rows.parquet",
        lambda: parquet({"k": pa.array([[("x", 1), ("x", 2)]], MAP)}),
    ),
    Damage("Parquet with bytes", "rows.parquet", lambda: parquet({"a": [b"caf\xc3\xa9", b"\x89PNG", None]})),
    Damage(
        "Parquet with text that is not UTF-8",
        "rows.parquet",
        lambda: parquet({"a": pa.array([b"ok", b"x\xff"]).view(pa.string())}),
    ),
    Damage(
        "Parquet with dates and times",
        "rows.parquet",
        lambda: parquet(
            {
                "d": pa.array([0], pa.date32()),
                "t": pa.array([1_500_000_000_000], pa.timestamp("us", "Europe/Berlin")),
                "n": pa.array([1], pa.timestamp("ns")),
                "l": pa.array([-1500], pa.duration("ms")),
            }
        ),
    ),
    Damage(
        "Parquet with a dictionary column",
        "rows.parquet",
        lambda: parquet({"a": pa.array(["x", "y", "x", None]).dictionary_encode()}),
    ),
)
DAMAGES = (*JSON_LINES, *ARRAYS, *TABLES, *PACKED, *PARQUET)
