"""Rows that are to be reviewed: where their answers stand, in every shape of row and every kind of file."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from review_rows import chat, lines_of, reviewed, written
from tunewright.data.exact_json import json_text, parse_json
from tunewright.data.read import Source, read_rows
from tunewright.errors import DataError
from tunewright.recipe import DataKeys
from tunewright.web.review import rows as rows_module
from tunewright.web.review.answer import broken_by, place_of, text_at, with_answer
from tunewright.web.review.reviews import Review
from tunewright.web.review.rows import Noted, notes_of, prepare

PLAIN = DataKeys()


# Where the answer stands

ASKED = {"role": "user", "content": "a"}


def said(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", "content": content, **more}]}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


PLACES: list[tuple[Any, dict[str, str], str]] = [
    ({"prompt": "a", "completion": "b"}, {}, "b"),
    ({"instruction": "a", "input": "c", "output": "b", "history": [["d", "e"]]}, {}, "b"),
    (said("b"), {}, "b"),
    (said([part("b")]), {}, "b"),
    (said([{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "b"}]), {}, "b"),
    ({"messages": json.dumps(said("b")["messages"])}, {}, "b"),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, {}, "b"),
    ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, {}, "b"),
    ({"prompt": "a", "completion": {"kind": 1.5}}, {}, '{"kind": 1.50}'),
    ({"q": "a", "x.y": "b", "x": {"y": "c"}}, {"prompt": "q", "completion": "x.y"}, "b"),
    ({"q": "a", "x": {"y": ["c", "b"]}}, {"prompt": "q", "completion": "x.y.1"}, "b"),
    ({"prompt": "A", "completion": "A"}, {}, "A"),
]


@pytest.mark.parametrize(("row", "columns", "answer"), PLACES)
def test_the_answer_is_found_in_every_shape_of_row_and_changed_alone(
    row: Any, columns: dict[str, str], answer: str
) -> None:
    value, config = parse_json(json.dumps(row).replace("1.5", "1.50")), DataKeys.model_validate({"columns": columns})
    place = place_of(value, config)
    assert place.steps is not None, place.why
    assert text_at(value, place.steps) == answer
    changed = with_answer(value, place.steps, '{"new": 2.0}', config)
    assert text_at(changed, place.steps) == '{"new": 2.0}'
    assert with_answer(changed, place.steps, answer, config) == value


CALL = {"function": {"name": "f", "arguments": "{}"}}
TREE = {"role": "prompter", "text": "a", "replies": [{"role": "assistant", "text": "b", "replies": []}]}


@pytest.mark.parametrize(
    ("row", "columns", "why"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {}, "two answers"),
        ({"text": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"}, {}, "one text"),
        ({"text": "only a text"}, {}, "cannot be trained on (text without roles"),
        (TREE, {}, "a tree"),
        (said(None, tool_calls=[CALL]), {}, "calls a tool"),
        (said([part("b"), part("c")]), {}, "several places"),
        ({"prompt": "a", "completion": "b\0"}, {}, "zero bytes"),
        ({"prompt": "a", "completion": "b" * 150_001}, {}, "150,000 characters"),
        ({"x": "a"}, {"prompt": "x", "completion": "x"}, "More than the answer would change"),
    ],
)
def test_an_answer_that_is_in_no_one_place_is_not_offered_and_the_row_says_why(
    row: Any, columns: dict[str, str], why: str
) -> None:
    place = place_of(parse_json(json.dumps(row)), DataKeys.model_validate({"columns": columns}))
    assert place.steps is None
    assert why in place.why


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ('{"a": 1, "b": 2}', '{"b": 3, "a": null, "c": 0}', ""),
        ("a text", "not json", ""),
        ("[1]", "not json", ""),
        ('{"a": 1}', '{"a": 1', "no valid JSON (Expecting ',' delimiter at column 8)"),
        ('{"a": 1}', '{"a": NaN}', "no valid JSON (found NaN"),
        ('{"a": 1}', "[1]", "the new one is a list"),
        ('{"a": 1, "b": 2, "c": 3}', '{"b": 1}', "lacks 2 keys of the old one: 'a', 'c'"),
    ],
)
def test_a_json_answer_that_would_be_broken_is_told(old: str, new: str, found: str) -> None:
    assert found in broken_by(old, new)
    assert bool(broken_by(old, new)) == bool(found)


# Every kind of file


def as_csv(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion,n\n"{""a"": 1}","b\nc",007\nd,e,1.50\ntoo,many,cells,here\n')
    return path


def as_array(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    first = '{"prompt": "{\\"a\\": 1}",\n  "completion": "b\\nc", "n": "007"}'
    path.write_text(f'[{first}, {{"prompt": "d", "completion": "e", "n": "1.50"}}]')
    return path


def as_parquet(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    table = {"prompt": ['{"a": 1}', "d"], "completion": ["b\nc", "e"], "n": ["007", "1.50"]}
    pq.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize("write", [as_csv, as_array, as_parquet])
def test_every_kind_of_file_becomes_the_same_rows(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path)
    facts = prepare(Source(path, path.name), PLAIN, {}, tmp_path / ".service" / "reviews")
    review = Review(tmp_path / ".service/reviews" / facts.id)
    assert review.summary()["unreadable"] == (1 if path.suffix == ".csv" else 0)
    review.decide(2, "accept", 0, "new")
    first, second = [json.loads(line) for line in written(review)]
    assert first == {"prompt": '{"a": 1}', "completion": "b\nc", "n": "007"}
    assert second == {"prompt": "d", "completion": "new", "n": "1.50"}


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_other_columns_of_an_edited_row_are_what_they_were(extra: Any) -> None:
    row = {"prompt": "a", "completion": "b", "meta": extra}
    value = parse_json(json.dumps(row))
    place = place_of(value, PLAIN)
    assert place.steps == ("completion",)
    assert json.loads(json_text(with_answer(value, place.steps, "c", PLAIN))) == {**row, "completion": "c"}


def test_a_file_with_too_many_rows_or_that_changes_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "MOST_ROWS", 2)
    with pytest.raises(DataError, match="it has more than 2 rows"):
        reviewed(tmp_path, lines_of([chat(1)] * 3))
    hashes = iter(["a", "b"])
    monkeypatch.setattr(rows_module, "sha256_of_file", lambda path: next(hashes))
    with pytest.raises(DataError, match="it changed while it was read"):
        reviewed(tmp_path, lines_of([chat(1)]))
    (tmp_path / ".service/reviews/.new-killed").mkdir()
    hashes = iter(["a", "b"])
    with pytest.raises(DataError, match="it changed while it was read"):
        reviewed(tmp_path, lines_of([chat(1)]))
    assert list((tmp_path / ".service/reviews").iterdir()) == []


def test_what_a_check_noted_comes_first_if_the_row_is_still_the_one_that_it_saw(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines_of([chat(1), chat(2), {"text": "x"}]))
    source = Source(path, "rows.jsonl")
    found = {row.id: row.sha256 for row in read_rows(source)}
    ledger = tmp_path / "ledger.jsonl"
    plain: dict[str, Any] = {"file": "rows.jsonl", "reason": None, "uncertain": None, "repairs": []}
    lines = [
        {**plain, "row": "rows.jsonl:1", "sha256": "of another row", "repairs": [{"what": "mended", "where": "x"}]},
        {**plain, "row": "rows.jsonl:2", "sha256": found["rows.jsonl:2"]},
        {**plain, "row": "rows.jsonl:3", "sha256": found["rows.jsonl:3"], "reason": "text without roles: x"},
        {**plain, "row": "other.jsonl:1", "file": "other.jsonl", "sha256": "", "reason": "elsewhere"},
    ]
    ledger.write_text(lines_of(lines))
    evidence = [
        {"name": "near_duplicates", "verdict": "warn", "rows": [{"row": "rows.jsonl:2#1", "excerpt": "like 9"}]},
        {"name": "empty", "verdict": "pass", "rows": [{"row": "rows.jsonl:2", "excerpt": "fine"}]},
    ]
    notes = notes_of(ledger, evidence, "rows.jsonl")
    facts = prepare(source, PLAIN, notes, tmp_path / "reviews")
    review = Review(tmp_path / "reviews" / facts.id)
    assert review.sheet.order == [2, 3, 1]
    assert [review.sheet.entry(row).head.notes for row in (1, 2, 3)] == [
        (), ("near duplicates: like 9",), ("text without roles: x",),
    ]  # fmt: skip
    assert notes["rows.jsonl:1"] == Noted("of another row", ["repaired: mended"])
