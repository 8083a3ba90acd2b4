import io
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.exact_json import json_text
from tunewright.data.read import Limits, Row, Source, read_blocks, read_rows
from tunewright.data.read.parquet import json_texts
from tunewright.errors import DataError

TURNS = st.lists(st.fixed_dictionaries({"role": st.none() | st.text(st.characters(codec="utf-8"))}), max_size=4)


def rows_of_table(path: Path, columns: dict[str, Any], **options: Any) -> list[Row]:
    pq.write_table(pa.table(columns), path, **options)
    return list(read_rows(Source(path, path.name)))


def text_of(values: list[Any], kind: pa.DataType) -> list[Any]:
    return json_texts(pa.array(values, kind))


def test_rows_are_numbered_and_hold_their_json_text(tmp_path: Path) -> None:
    first, second = rows_of_table(tmp_path / "rows.parquet", {"b": ["x", "ä"], "a": [1, None]})
    assert (first.id, first.record.raw) == ("rows.parquet:1", b'{"b": "x", "a": 1}')
    assert (second.id, second.record.raw) == ("rows.parquet:2", '{"b": "ä", "a": null}'.encode())
    assert json_text(second.record.value) == '{"b": "ä", "a": null}'


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_the_shortest_text_that_gives_it_back(number: float) -> None:
    (text,) = text_of([number], pa.float64())
    assert json.loads(text) == number
    assert json.dumps(json.loads(text)) == json.dumps(number)
    assert len(text) <= max(len(repr(number)), 24)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_float_of_32_bits_is_written_with_their_digits(number: float) -> None:
    (text,) = text_of([number], pa.float32())
    assert pa.scalar(float(text), pa.float32()).as_py() == number
    assert sum(character.isdigit() for character in text.partition("e")[0].strip("0.-")) <= 9 or "e" not in text


def test_floats_of_different_widths_have_different_texts() -> None:
    assert text_of([0.1, 1.0, -0.0, 1e22], pa.float64()) == ["0.1", "1.0", "-0.0", "1e+22"]
    assert text_of([0.1, 16777216.0], pa.float32()) == ["0.1", "16777216.0"]
    assert text_of([0.5, 0.1], pa.float16()) == ["0.5", "0.0999755859375"]


def test_integers_and_decimals_keep_all_their_digits() -> None:
    assert text_of([2**64 - 1], pa.uint64()) == ["18446744073709551615"]
    assert text_of([-(2**63)], pa.int64()) == ["-9223372036854775808"]
    assert text_of([Decimal("1.10"), Decimal("-0.01")], pa.decimal128(38, 2)) == ["1.10", "-0.01"]
    big = Decimal("9" * 70)
    assert text_of([big], pa.decimal256(76, 0)) == ["9" * 70]


def test_times_are_iso_8601() -> None:
    assert text_of([0, None], pa.date32()) == ['"1970-01-01"', "null"]
    assert text_of([86_400_000], pa.date64()) == ['"1970-01-02"']
    assert text_of([1], pa.time64("us")) == ['"00:00:00.000001"']
    assert text_of([61], pa.time32("s")) == ['"00:01:01"']
    assert text_of([1_700_000_000], pa.timestamp("s")) == ['"2023-11-14T22:13:20"']
    assert text_of([1_700_000_000_120], pa.timestamp("ms", "Europe/Berlin")) == ['"2023-11-14T22:13:20.12Z"']
    assert text_of([90_000_000_000, -1, None], pa.duration("ns")) == ['"PT90S"', '"-PT0.000000001S"', "null"]


def test_parts_of_nested_columns_are_what_they_are_in_the_whole() -> None:
    """Batches are often views into a larger array."""
    pairs = pa.map_(pa.int32(), pa.list_(pa.string()))
    for kind, values in (
        (pa.list_(pa.int64()), [[1], None, [2, 3], []]),
        (pa.large_list(pa.int64()), [[1], None, [2, 3], []]),
        (pa.list_(pa.int64(), 2), [[1, 2], None, [3, 4], [5, None]]),
        (pairs, [[(1, ["a"])], None, [(2, []), (3, None)], []]),
        (pa.struct([("x", pa.int64()), ("y", pa.list_(pa.bool_()))]), [{"x": 1}, None, {"y": [True, False]}, {}]),
    ):
        array = pa.array(values, kind)
        whole = json_texts(array)
        assert json_texts(array[1:3]) == whole[1:3]
        assert whole[1] == "null"
    assert text_of([[(1, ["a"])], [(2, []), (3, None)]], pairs) == ['{"1": ["a"]}', '{"2": [], "3": null}']


@given(st.lists(st.none() | TURNS, max_size=4))
def test_nested_values_are_those_that_were_written(values: list[Any]) -> None:
    kind = pa.list_(pa.struct([("role", pa.string())]))
    assert [json.loads(text) for text in text_of(values, kind)] == values


def test_a_fault_far_inside_names_its_field_and_spares_the_other_rows(tmp_path: Path) -> None:
    column = [[{"m": {"s": 1.0}}], [{"m": {"s": 0.5}}, {"m": {"s": float("nan")}}], [{"m": None}]]
    good, bad, last = rows_of_table(tmp_path / "rows.parquet", {"turns": column})
    assert bad.record.fault is not None
    assert bad.record.fault.field == "turns[1].m.s"
    assert bad.record.raw == b'{"turns": [{"m": {"s": 0.5}}, {"m": {"s": "nan"}}]}'
    assert good.record.fault is last.record.fault is None


def test_a_fault_inside_a_map_names_its_key(tmp_path: Path) -> None:
    column = pa.array([[("x", float("inf"))]], pa.map_(pa.string(), pa.float64()))
    (row,) = rows_of_table(tmp_path / "rows.parquet", {"scores": column})
    assert row.record.fault is not None
    assert row.record.fault.field == "scores.x"


def test_bytes_inside_of_a_picture_are_a_fault_that_names_them(tmp_path: Path) -> None:
    (row,) = rows_of_table(tmp_path / "rows.parquet", {"image": [{"bytes": b"\x89PNG\r\n", "path": "a.png"}]})
    assert row.record.fault is not None
    assert (row.record.fault.field, row.record.fault.reason) == ("image.bytes", "not UTF-8: byte 1 of 6 is 0x89")


def test_a_large_file_is_read_in_blocks_of_about_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": ["x" * 1000] * 500}), path, row_group_size=200, use_dictionary=False)
    blocks = list(read_blocks(Source(path, path.name), 0, Limits(block_bytes=50_000)))
    assert [record.line for block in blocks for record in block.records] == list(range(1, 501))
    assert max(sum(len(record.raw) for record in block.records) for block in blocks) < 60_000


def test_damage_behind_good_rows_says_after_which_row(tmp_path: Path) -> None:
    sink = io.BytesIO()
    options = {"use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    pq.write_table(pa.table({"a": ["one", "two", "six"]}), sink, row_group_size=1, compression="none", **options)
    path = tmp_path / "rows.parquet"
    path.write_bytes(sink.getvalue().replace(b"two", b"too"))
    with pytest.raises(DataError, match="the Parquet file is damaged after row 1"):
        list(read_rows(Source(path, path.name)))


def test_pyarrow_is_not_imported_for_other_files() -> None:
    program = "import sys, tunewright.data.read; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
