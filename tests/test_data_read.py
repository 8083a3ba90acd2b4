import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_rows import accounts_of, good_pairs, write_rows
from tunewright.data.exact_json import json_text, parse_json
from tunewright.data.faults import RowError
from tunewright.data.read import Row, plan_sources, read_rows, unique_labels
from tunewright.errors import DataError, UsageError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NUMBER_TEXTS = st.from_regex(r"\A-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?\Z")


def rows_of(path: Path) -> list[Row]:
    (source,) = plan_sources([str(path)], [])
    return list(read_rows(source))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@given(JSON_VALUES)
def test_json_text_of_a_parsed_value_is_the_same_value(value: object) -> None:
    assert json.loads(json_text(parse_json(json.dumps(value)))) == value


@given(JSON_VALUES)
def test_json_text_is_spaced_as_the_standard_library_spaces_it(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert json_text(parse_json(text)) == text


@given(NUMBER_TEXTS)
def test_numbers_keep_every_character(text: str) -> None:
    assert json_text(parse_json(f"[{text}]")) == f"[{text}]"


def test_an_integer_of_ten_thousand_digits_is_kept() -> None:
    text = "[" + "7" * 10_000 + "]"
    assert json_text(parse_json(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "duplicate key: the key 'c' appears twice in one object"),
        ('{"a": NaN}', "not a JSON number: found NaN, which JSON does not have"),
        ('{"a": -Infinity}', "not a JSON number: found -Infinity, which JSON does not have"),
        ('{"a": 1', "broken JSON: Expecting ',' delimiter at column 8"),
        ('{"a": 1} {"a": 2}', "broken JSON: Extra data at column 10"),
        ("[" * 100_000, "nested too deeply: the JSON is nested deeper than can be read"),
    ],
)
def test_json_that_would_lose_something_is_refused_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_json(text)
    assert caught.value.reason == reason


def test_lines_know_their_number_their_offset_and_their_hash(tmp_path: Path) -> None:
    content = b'{"a": 1}\r\n\n  \n{"a": "\xc3\xa4"}\n{"a": 3}'
    rows = rows_of(written(tmp_path / "rows.jsonl", content))
    assert [(row.id, row.record.byte_offset) for row in rows] == [
        ("rows.jsonl:1", 0),
        ("rows.jsonl:4", 14),
        ("rows.jsonl:5", 26),
    ]
    assert [row.sha256 for row in rows] == [hashlib.sha256(row.record.raw).hexdigest() for row in rows]
    assert rows[0].record.raw == b'{"a": 1}'


def test_a_line_separator_of_unicode_ends_no_line(tmp_path: Path) -> None:
    (row,) = rows_of(written(tmp_path / "rows.jsonl", '{"a": "x\u2028y\x85z"}\n'.encode()))
    assert row.record.value == {"a": "x\u2028y\x85z"}


def test_a_line_that_is_not_utf8_is_rejected_alone(tmp_path: Path) -> None:
    rows = rows_of(written(tmp_path / "rows.jsonl", b'{"a": 1}\n{"a": "\xe4"}\n{"a": 3}\n'))
    faults = [row.record.fault.reason if row.record.fault else None for row in rows]
    assert faults == [None, "not UTF-8: byte 8 of the row is 0xe4", None]


def test_a_byte_order_mark_is_a_repair_of_the_first_row(tmp_path: Path) -> None:
    rows = rows_of(written(tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n'))
    assert [[repair.what for repair in row.repairs] for row in rows] == [["byte order mark removed"], []]
    assert [row.record.byte_offset for row in rows] == [3, 12]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_an_array_gives_its_elements_with_their_lines(tmp_path: Path, name: str) -> None:
    content = '[\n  {"a": "ä"},\n  {"a": 1, "a": 2}, {"a": NaN},\n\n  {"a": 2}\n]\n'.encode()
    rows = rows_of(written(tmp_path / name, content))
    assert [row.id for row in rows] == [f"{name}:2", f"{name}:3", f"{name}:3#2", f"{name}:5"]
    assert [row.record.fault.kind if row.record.fault else None for row in rows] == [
        None,
        "duplicate key",
        "not a JSON number",
        None,
    ]
    for row in rows:
        offset = row.record.byte_offset
        assert content[offset : offset + len(row.record.raw)] == row.record.raw


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1},\n {"a" 2}]', "rows.json:2: broken JSON: Expecting ':' delimiter at column 7"),
        (b'[{"a": 1}\n {"a": 2}]', "rows.json:2: broken JSON: Expecting ',' or ']' after a row at column 2"),
        (b'[{"a": 1},]', "rows.json:1: broken JSON: Expecting a row after ',' at column 11"),
        (b'[{"a": 1}', "rows.json:1: broken JSON: Expecting ',' or ']' after a row at column 10"),
        (b'[{"a": 1}] x', "rows.json:1: broken JSON: Extra data after the array at column 12"),
        (b'[{"a": 1},\n{"a": "\xff"}]', "rows.json:2: byte 0xff is not UTF-8"),
        (b"[]", "rows.json: the file has no rows"),
        (b"", "rows.json: the file has no rows"),
        (b" \n\n", "rows.json: the file has no rows"),
        (b'{\n "a": 1,\n "b": 2\n}', "rows.json: found a single JSON object"),
        ('{"a": 1}'.encode("utf-16"), "rows.json: the text is UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "rows.json: the text is UTF-16 or UTF-32"),
    ],
)
def test_a_file_whose_rows_cannot_be_told_apart_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        rows_of(written(tmp_path / "rows.json", content))
    assert message in str(caught.value)


def test_csv_cells_keep_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    content = b'prompt,completion\r\n"a, ""b""\nc",d\r\n\r\ne,f\r\n'
    rows = rows_of(written(tmp_path / "rows.csv", content))
    assert [row.record.value for row in rows] == [
        {"prompt": 'a, "b"\nc', "completion": "d"},
        {"prompt": "e", "completion": "f"},
    ]
    assert [row.id for row in rows] == ["rows.csv:2", "rows.csv:5"]
    assert [row.record.byte_offset for row in rows] == [19, 37]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a,b,c", "broken CSV: found 3 cells; expected 2 as in the header"),
        (b"a", "broken CSV: found 1 cells; expected 2 as in the header"),
        (b'"a"b,c', "broken CSV: ',' expected after '\"'"),
        (b"\xff,b", "not UTF-8: byte 1 of the row is 0xff"),
    ],
)
def test_a_broken_csv_row_is_rejected_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    broken, good = rows_of(written(tmp_path / "rows.csv", b"prompt,completion\n" + line + b"\ne,f\n"))
    assert broken.record.fault is not None
    assert broken.record.fault.reason == reason
    assert good.record.value == {"prompt": "e", "completion": "f"}


def test_a_csv_cell_longer_than_the_usual_limit_is_read(tmp_path: Path) -> None:
    (row,) = rows_of(written(tmp_path / "rows.csv", b"prompt,completion\n" + b"x" * 200_000 + b",y\n"))
    assert len(row.record.value["prompt"]) == 200_000


def test_a_doubled_csv_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the header names \['a'\] twice"):
        rows_of(written(tmp_path / "rows.csv", b"a,a\n1,2\n"))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz"])
def test_gzipped_rows_are_those_of_the_file_within(tmp_path: Path, name: str) -> None:
    pairs = good_pairs(3)
    text = json.dumps(pairs) if ".json." in name else "\n".join(map(json.dumps, pairs))
    path = written(tmp_path / name, gzip.compress(text.encode()))
    assert [row.record.value for row in rows_of(path)] == pairs


@pytest.mark.parametrize("content", [gzip.compress(os.urandom(5000))[:-900], b'{"a": 1}\n'])
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="the file is damaged"):
        rows_of(written(tmp_path / "rows.jsonl.gz", content))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in .parquet and does not begin like JSON; expected .jsonl"):
        rows_of(written(tmp_path / "rows.parquet", b"PAR1...."))


def test_a_missing_file_and_a_directory_are_usage_errors(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.jsonl", "does not exist"), (tmp_path, "found a directory")):
        with pytest.raises(UsageError, match=message) as caught:
            plan_sources([str(path)], [])
        assert caught.value.exit_code == 2


def test_files_of_the_same_name_are_told_apart_by_their_directories() -> None:
    paths = [Path("/x/a/rows.jsonl"), Path("/x/b/rows.jsonl"), Path("/x/c.jsonl"), Path("/x/a/rows.jsonl")]
    assert unique_labels(paths) == ["a/rows.jsonl", "b/rows.jsonl", "c.jsonl", "a/rows.jsonl#2"]


def test_every_format_of_file_gives_the_same_conversations(tmp_path: Path) -> None:
    pairs = good_pairs(5)
    lines = write_rows(tmp_path / "rows.jsonl", pairs)
    array = written(tmp_path / "rows.json", json.dumps(pairs, indent=1).encode())
    cells = "".join(f'"{row["prompt"]}","{row["completion"]}"\n' for row in pairs)
    table = written(tmp_path / "rows.csv", f"prompt,completion\n{cells}".encode())
    messages = [
        [account.conversation.messages for account in accounts_of(path) if account.conversation]
        for path in (lines, array, table)
    ]
    assert messages[0] == messages[1] == messages[2]
    assert len(messages[0]) == 5
