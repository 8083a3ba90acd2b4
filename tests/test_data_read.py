import csv
import gzip
import hashlib
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_rows import good_pairs
from tunewright.data.exact_json import json_text, parse_json
from tunewright.data.faults import RowError
from tunewright.data.read import UNPARSED, Limits, Row, Source, plan_sources, read_blocks, read_rows, rows_of
from tunewright.data.read.unpack import open_unpacked
from tunewright.errors import DataError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
CELL_CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
NUMBER_TEXTS = st.from_regex(r"\A-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?\Z")


def rows_in(path: Path) -> list[Row]:
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
    rows = rows_in(written(tmp_path / "rows.jsonl", content))
    assert [(row.id, row.record.byte_offset) for row in rows] == [
        ("rows.jsonl:1", 0),
        ("rows.jsonl:4", 14),
        ("rows.jsonl:5", 26),
    ]
    assert [row.sha256 for row in rows] == [hashlib.sha256(row.record.raw).hexdigest() for row in rows]
    assert rows[0].record.raw == b'{"a": 1}'


def test_a_byte_order_mark_is_a_repair_of_the_first_row(tmp_path: Path) -> None:
    rows = rows_in(written(tmp_path / "rows.jsonl", b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n'))
    assert [[repair.what for repair in row.record.repairs] for row in rows] == [["byte order mark removed"], []]
    assert [row.record.byte_offset for row in rows] == [3, 12]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_an_array_gives_its_elements_with_their_lines(tmp_path: Path, name: str) -> None:
    content = '[\n  {"a": "ä"},\n  {"a": 1, "a": 2}, {"a": NaN},\n\n  {"a": 2}\n]\n'.encode()
    rows = rows_in(written(tmp_path / name, content))
    assert [row.id for row in rows] == [f"{name}:2", f"{name}:3", f"{name}:3.2", f"{name}:5"]
    assert [row.record.fault.kind if row.record.fault else None for row in rows] == [
        None,
        "duplicate key",
        "not a JSON number",
        None,
    ]
    for row in rows:
        offset = row.record.byte_offset
        assert content[offset : offset + len(row.record.raw)] == row.record.raw


def test_csv_cells_keep_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    content = b'prompt,completion\r\n"a, ""b""\nc",d\r\n\r\ne,f\r\n'
    rows = rows_in(written(tmp_path / "rows.csv", content))
    assert [row.record.value for row in rows] == [
        {"prompt": 'a, "b"\nc', "completion": "d"},
        {"prompt": "e", "completion": "f"},
    ]
    assert [row.id for row in rows] == ["rows.csv:2", "rows.csv:5"]
    assert [row.record.byte_offset for row in rows] == [19, 37]


def test_a_csv_cell_longer_than_the_usual_limit_is_read(tmp_path: Path) -> None:
    (row,) = rows_in(written(tmp_path / "rows.csv", b"prompt,completion\n" + b"x" * 200_000 + b",y\n"))
    assert len(row.record.value["prompt"]) == 200_000


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz"])
def test_gzipped_rows_are_those_of_the_file_within(tmp_path: Path, name: str) -> None:
    pairs = good_pairs(3)
    text = json.dumps(pairs) if ".json." in name else "\n".join(map(json.dumps, pairs))
    path = written(tmp_path / name, gzip.compress(text.encode()))
    assert [row.record.value for row in rows_in(path)] == pairs


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    pairs = good_pairs(5)
    cells = "".join(f'"{row["prompt"]}"\t"{row["completion"]}"\n' for row in pairs)
    table = "prompt\tcompletion\n" + cells
    lines = "\n".join(map(json.dumps, pairs)).encode()
    files = {
        "rows.jsonl": lines,
        "rows.jsonl.zst": zstandard.compress(lines),
        "rows.json": json.dumps(pairs, indent=1).encode(),
        "rows.tsv": table.encode(),
        "rows.csv": table.replace("\t", ",").encode(),
        "semicolons.csv": table.replace("\t", ";").encode(),
        "tabs.csv": table.encode(),
        "no_suffix": lines,
    }
    for name, content in files.items():
        assert [row.record.value for row in rows_in(written(tmp_path / name, content))] == pairs, name


@given(st.lists(JSON_VALUES, min_size=1, max_size=6), st.sampled_from([None, 1]), st.integers(1, 40))
def test_an_array_read_in_pieces_of_any_size_gives_its_elements(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], indent: int | None, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    content = json.dumps(values, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    source = Source(written(path, content), "any.json")
    rows = [row for block in read_blocks(source, 0, Limits(size, 2)) for row in rows_of(block, [source])]
    assert [json.loads(json_text(row.record.value)) for row in rows] == values
    for row in rows:
        assert content[row.record.byte_offset :].startswith(row.record.raw)
    assert len({row.id for row in rows}) == len(rows)


@given(st.lists(st.lists(st.text(CELL_CHARACTERS), min_size=2, max_size=2), min_size=1, max_size=6))
def test_a_table_that_was_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, cells: list[list[str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *cells])
    assert [list(row.record.value.values()) for row in rows_in(path)] == cells


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1), st.integers(1, 40), st.sampled_from(["\n", "\r\n"]))
def test_lines_read_in_pieces_of_any_size_give_their_rows(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int, line_end: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    content = "".join(json.dumps({"a": text}, ensure_ascii=False) + line_end for text in texts).encode()
    source = Source(written(path, content), "any.jsonl")
    rows = [row for block in read_blocks(source, 0, Limits(size)) for row in rows_of(block, [source])]
    assert [row.record.value["a"] for row in rows] == texts
    assert [row.record.line for row in rows] == list(range(1, len(texts) + 1))
    for row in rows:
        assert content[row.record.byte_offset :].startswith(row.record.raw)


def test_the_main_process_cuts_lines_without_parsing_them(tmp_path: Path) -> None:
    content = b'{"a": 1}\n{"a": \n\n' * 3
    source = Source(written(tmp_path / "rows.jsonl", content), "rows.jsonl")
    blocks = list(read_blocks(source, 4, Limits(block_bytes=20)))
    assert b"".join(block.lines for block in blocks) == content
    assert [block.source for block in blocks] == [4] * len(blocks)
    assert len(blocks) > 1


def test_a_block_is_the_same_on_the_other_side_of_a_process(tmp_path: Path) -> None:
    content = b'[{"a": 1}, {"a" 2}, {"a": NaN}]'
    source = Source(written(tmp_path / "rows.json", content), "rows.json")
    (block,) = read_blocks(source, 0)
    assert all(record.value is UNPARSED for record in pickle.loads(pickle.dumps(block)).records)  # noqa: S301
    rows = list(rows_of(pickle.loads(pickle.dumps(block)), [source]))  # noqa: S301
    faults = [str(row.record.fault) if row.record.fault else None for row in rows]
    again = [pickle.loads(pickle.dumps(row.record.fault)) for row in rows]  # noqa: S301
    assert [str(fault) if fault else None for fault in again] == faults


def test_the_columns_of_faults_in_an_array_count_characters_of_their_line(tmp_path: Path) -> None:
    content = '["äöü", {"ä" 1},\n"ä", {"b":\n"ä" "c"}]'.encode()
    rows = rows_in(written(tmp_path / "rows.json", content))
    assert [(row.id, row.record.fault.reason) for row in rows if row.record.fault] == [
        ("rows.json:1.2", "broken JSON: Expecting ':' delimiter at column 14"),
        ("rows.json:2.2", "broken JSON: Expecting ',' delimiter at line 3, column 5"),
    ]


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b'[{"a": 1}]\n[{"a": 2}]\n', 2),
        (b'[{"a": 1},\n{"a": 2}]\n', 2),
        (b'[{"a": 1}, {"a": 2}, {"a": 3}]', 3),
        (b"[\n[1],\n[2],\n[3]]", 3),
    ],
)
def test_lists_on_lines_of_their_own_are_rows_and_an_array_is_not_one(
    tmp_path: Path, content: bytes, count: int
) -> None:
    assert len(rows_in(written(tmp_path / "rows.jsonl", content))) == count


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b'{"a": 1,', "Expecting property name enclosed in double quotes at column 9"),
        (b'{"a": [1,', "Expecting value at column 10"),
        (b'{"a": "x', "Unterminated string starting at column 7"),
        (b'{"a": 1}}', "Extra data at column 9"),
        (b"{", "Expecting property name enclosed in double quotes at column 2"),
    ],
)
def test_a_first_row_that_lost_its_end_is_not_taken_for_an_object_over_several_lines(
    tmp_path: Path, first: bytes, reason: str
) -> None:
    broken, *rest = rows_in(written(tmp_path / "rows.json", first + b'\n{"a": 2}\n{"a": 3}\n'))
    assert broken.record.fault is not None
    assert broken.record.fault.reason == f"broken JSON: {reason}"
    assert [row.record.value["a"].text for row in rest] == ["2", "3"]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_well_packed_file_is_unpacked_in_pieces(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    content = b'{"a": "' + b"x" * 5_000_000 + b'"}\n'
    path = written(tmp_path / "rows.packed", pack(content) + pack(b'{"a": "y"}\n'))
    with open_unpacked(path) as stream:
        pieces = iter(lambda: stream.read(65_536), b"")
        assert [len(piece) for piece in pieces][:3] == [65_536] * 3
    assert [len(row.record.value["a"]) for row in rows_in(path)] == [5_000_000, 1]


def test_a_damaged_gzip_file_says_how_far_it_could_be_unpacked(tmp_path: Path) -> None:
    lines = b"".join(b'{"a": %d}\n' % number for number in range(100_000))
    path = written(tmp_path / "rows.jsonl.gz", gzip.compress(lines)[:-50_000])
    with pytest.raises(DataError) as caught:
        rows_in(path)
    assert re.search(r"the gzip data ends too early; [\d,]{9} bytes were unpacked before", str(caught.value))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ends in .txt and does not begin like JSON; expected .jsonl, .ndjson, .json"):
        rows_in(written(tmp_path / "rows.txt", b"Once upon a time\n"))


def test_a_file_that_vanished_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl: cannot be read \(No such file or directory\)"):
        list(read_rows(Source(tmp_path / "rows.jsonl", "rows.jsonl")))
