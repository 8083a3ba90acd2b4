"""The review of answers: every decision kept, on its own row and on no other; and a new file of what stays."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs_bench import wait_until
from test_web_pages import HOSTILE, read, words
from tunewright.artifacts import write_json
from tunewright.data.exact_json import json_text, parse_json
from tunewright.data.read import Source, read_rows
from tunewright.errors import ArtifactError, DataError, EnvironmentLackError, JobError, JobNotFoundError, UsageError
from tunewright.recipe import DataKeys, Recipe
from tunewright.web.looks import Look
from tunewright.web.review import rows as rows_module
from tunewright.web.review.answer import broken_by, place_of, text_at, with_answer
from tunewright.web.review.finish import finish
from tunewright.web.review.process import chosen
from tunewright.web.review.reviews import Review, Reviews
from tunewright.web.review.rows import Facts, Noted, notes_of, prepare
from web_bench import Site, site_of

PLAIN = DataKeys()


def chat(number: int, **more: Any) -> dict[str, Any]:
    """A row with a JSON answer, and a number that only its digits hold."""
    asked = {"role": "user", "content": f"Ticket {number}"}
    return {"messages": [asked, {"role": "assistant", "content": f'{{"kind": "bug", "id": {number}}}'}], **more}


def lines_of(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def reviewed(tmp_path: Path, text: str, name: str = "rows.jsonl", **keys: Any) -> Facts:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return prepare(Source(path, name), DataKeys(**keys), {}, tmp_path / ".service" / "reviews")


def review_of(tmp_path: Path, text: str, name: str = "rows.jsonl", **keys: Any) -> Review:
    facts = reviewed(tmp_path, text, name, **keys)
    return Review(tmp_path / ".service" / "reviews" / facts.id)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    found = site_of(tmp_path)
    found.board.update()
    return found


@pytest.fixture
def review(tmp_path: Path) -> Review:
    return review_of(tmp_path, lines_of([chat(number) for number in range(1, 6)]))


def written(review: Review, keep_undecided: bool = True) -> list[str]:
    private = review.directory.parents[1]
    found = finish(Reviews(private), review.facts.id, private / "files", keep_undecided)
    *lines, end = Path(found.path).read_text().split("\n")
    assert end == ""
    return lines


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


# Decisions


def test_a_decision_is_on_the_disk_when_it_is_told(review: Review, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bytes] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(review.journal.path.read_bytes())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    review.decide(2, "reject", 0)
    assert flushed[0].endswith(b"\n")
    assert json.loads(flushed[0])["state"] == "rejected"
    assert Review(review.directory).state(2) == "rejected"


def test_two_tabs_do_not_overwrite_each_other_unseen(review: Review) -> None:
    review.decide(1, "accept", 0)
    with pytest.raises(JobError, match="it was decided on meanwhile, elsewhere: now it is accepted"):
        review.decide(1, "reject", 0)
    with pytest.raises(JobError, match="nothing was decided on it yet; expected version 0"):
        review.decide(2, "reject", 1)
    assert [review.state(row) for row in (1, 2)] == ["accepted", "undecided"]


def test_what_is_taken_back_leaves_what_stood_before(review: Review) -> None:
    review.decide(1, "accept", 0)
    review.decide(1, "accept", 1, '{"kind": "bug", "id": 9}')
    review.decide(1, "reject", 2)
    states = []
    for version in (3, 4, 5):
        states.append(review.decide(1, "undo", version))
    assert [(one.state, one.text, one.undoes) for one in states] == [
        ("edited", '{"kind": "bug", "id": 9}', 3), ("accepted", None, 2), ("undecided", None, 1),
    ]  # fmt: skip
    with pytest.raises(JobError, match="no decision to take back"):
        review.decide(1, "undo", 6)
    assert review.journal.last_to_undo() is None


def test_an_answer_that_nobody_changed_is_accepted_and_not_edited(tmp_path: Path) -> None:
    review = review_of(tmp_path, lines_of([{"prompt": "a", "completion": "one\r\ntwo\r\n"}]))
    assert review.decide(1, "accept", 0, "one\ntwo\n").state == "accepted"
    assert review.decide(1, "accept", 1, "one\nthree\n").state == "edited"
    assert json.loads(written(review)[0])["completion"] == "one\r\nthree\r\n"


def test_an_answer_that_breaks_its_json_is_told_before_it_is_kept_and_may_be_meant(review: Review) -> None:
    with pytest.raises(
        JobError, match=r"lacks 1 key of the old one: 'id'.* say that you mean it"
    ):
        review.decide(1, "accept", 0, '{"kind": "x"}')
    assert review.journal.version(1) == 0
    assert review.decide(1, "accept", 0, '{"kind": "x"}', anyway=True).state == "edited"


def test_an_empty_answer_is_refused_whatever_is_ticked(review: Review) -> None:
    with pytest.raises(JobError, match=r"cannot be learned \(empty content"):
        review.decide(1, "accept", 0, " \n", anyway=True)


def test_a_row_that_cannot_be_changed_can_be_kept_or_rejected_only(tmp_path: Path) -> None:
    review = review_of(tmp_path, lines_of([{"prompt": "a", "chosen": "b", "rejected": "c"}]))
    with pytest.raises(JobError, match="Which one is better cannot be said here"):
        review.decide(1, "accept", 0, "d")
    assert review.decide(1, "accept", 0).state == "accepted"


def test_decisions_belong_to_the_content_of_a_file_and_to_how_it_is_read(tmp_path: Path) -> None:
    rows = [{"q": "a", "b": "c", "d": "e"}]
    first = reviewed(tmp_path, lines_of(rows), columns={"prompt": "q", "completion": "b"})
    Review(tmp_path / ".service/reviews" / first.id).decide(1, "accept", 0, "new")
    again = reviewed(tmp_path, lines_of(rows), "other.jsonl", columns={"prompt": "q", "completion": "b"})
    other_key = reviewed(tmp_path, lines_of(rows), columns={"prompt": "q", "completion": "d"})
    other_rows = reviewed(tmp_path, lines_of([*rows, *rows]), columns={"prompt": "q", "completion": "b"})
    assert again == first
    assert len({first.id, other_key.id, other_rows.id}) == 3
    states = [Review(tmp_path / ".service/reviews" / one.id).state(1) for one in (again, other_key, other_rows)]
    assert states == ["edited", "undecided", "undecided"]


def test_rows_that_became_others_are_refused(review: Review) -> None:
    path = review.directory / "rows.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Ticket 3", b"Ticket 4"))
    with pytest.raises(ArtifactError, match="it is not what was written"):
        Review(review.directory)


# The journal


@given(st.integers(0, 10_000), st.sampled_from([b"", b"\0" * 9, b'{"number": 4', b"\xff"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_journal_cut_anywhere_keeps_every_whole_line_and_goes_on(review: Review, cut: int, torn: bytes) -> None:
    path = review.journal.path
    path.unlink(missing_ok=True)
    journal = Review(review.directory)
    for row in (1, 2, 1):
        journal.decide(row, "accept", journal.journal.version(row), "édité " * 3, anyway=True)
    whole = path.read_bytes()
    end = cut % (len(whole) + 1)
    path.write_bytes(whole[:end] + (b"" if whole[:end].endswith(b"\n") else torn))
    kept = whole[:end].count(b"\n")
    found = Review(review.directory)
    assert found.journal.decisions == journal.journal.decisions[:kept]
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:kept])
    number = found.decide(3, "reject", 0).number
    assert (number, Review(review.directory).state(3)) == (kept + 1, "rejected")


DECIDE_FOR_EVER = """
import sys
from pathlib import Path
from tunewright.web.review.process import chosen
from tunewright.web.review.reviews import Review
review = Review(Path(sys.argv[1]))
while True:
    row = len(review.journal.decisions) % 5 + 1
    print(review.decide(row, "accept", review.journal.version(row), "x" * 3000, anyway=True).number, flush=True)
"""


def test_what_was_told_before_a_kill_is_there_after_it(review: Review) -> None:
    command = [sys.executable, "-c", DECIDE_FOR_EVER, str(review.directory)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ":".join(sys.path)}
    ) as process:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(20)]
        process.kill()
        told = len(first) + len(process.stdout.read().splitlines())
    found = Review(review.directory).journal.decisions
    assert told <= len(found) <= told + 1


@pytest.mark.parametrize("torn", [b"\0\0\0\0", b'{"number": 2, "row": 2', b'{"number": 2}\n', b"\n"])
def test_a_torn_last_line_is_set_aside_and_told(site: Site, review: Review, torn: bytes) -> None:
    review.decide(1, "reject", 0)
    with review.journal.path.open("ab") as file:
        file.write(torn)
    found = Review(review.directory)
    assert (len(found.journal.decisions), found.journal.is_torn) == (1, True)
    assert review.journal.path.with_suffix(".torn").read_bytes() == torn
    assert Review(review.directory).journal.is_torn is False


@pytest.mark.parametrize("damage", [b"\0\n", b"{}\n", b'{"number": 7\n', b"", b"\n"])
def test_damage_before_the_last_line_is_no_torn_line_and_nothing_is_thrown_away(review: Review, damage: bytes) -> None:
    for row in (1, 2, 3):
        review.decide(row, "accept", 0)
    path = review.journal.path
    first, _, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + damage + third)
    with pytest.raises(ArtifactError, match=r"decisions\.jsonl:2: it is no decision that follows"):
        Review(review.directory)
    assert path.read_bytes() == first + damage + third


def test_a_full_disk_loses_nothing_and_confirms_nothing(review: Review, monkeypatch: pytest.MonkeyPatch) -> None:
    review.decide(1, "accept", 0)
    before = review.journal.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(EnvironmentLackError, match="no space is left"):
            review.decide(2, "reject", 0)
        patched.setattr(os, "truncate", lambda path, end: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(EnvironmentLackError, match="no space is left"):
            review.decide(2, "reject", 0)
    assert review.state(2) == "undecided"
    review.decide(3, "reject", 0)
    assert review.journal.path.read_bytes().startswith(before)
    assert [one.row for one in Review(review.directory).journal.decisions] == [1, 3]


def test_decisions_of_somebody_else_are_never_cut_off(review: Review) -> None:
    other = Review(review.directory)
    other.decide(1, "reject", 0)
    with pytest.raises(ArtifactError, match="Something else wrote to it"):
        review.decide(2, "accept", 0)
    assert Review(review.directory).state(1) == "rejected"


# The end


def test_what_is_kept_is_byte_for_byte_and_what_is_edited_keeps_its_other_values(tmp_path: Path) -> None:
    kept = '{ "prompt":"a", "completion" : "b", "id": 1e2, "big": 12345678901234567890123 }'
    edited = '{"prompt":"\\u00e4","completion":"b","score":0.10,"odd":"\\ud800","list":[1.0,{"x":null}]}'
    review = review_of(tmp_path, f"{kept}\n{edited}\n")
    review.decide(2, "accept", 0, "c")
    assert written(review) == [
        kept, '{"prompt": "ä", "completion": "c", "score": 0.10, "odd": "\\ud800", "list": [1.0, {"x": null}]}',
    ]  # fmt: skip


def test_finish_says_exactly_what_became_of_the_rows(tmp_path: Path) -> None:
    rows = [*(chat(number) for number in range(1, 7)), {"text": "no roles"}]
    review = review_of(tmp_path, lines_of(rows) + "{broken\n")
    for row, wish in ((1, "accept"), (2, "accept"), (3, "reject")):
        review.decide(row, wish, 0)  # type: ignore[arg-type]
    review.decide(4, "accept", 0, '{"kind": "wish", "id": 4}')
    private = tmp_path / ".service"
    for keep, left in ((True, 6), (False, 3)):
        found = finish(Reviews(private), review.facts.id, private / "files", keep)
        counts = [found.accepted, found.edited, found.rejected, found.undecided, found.unreadable]
        assert (counts, found.rows, found.kept_undecided) == ([2, 1, 1, 3, 1], left, keep)
        assert len(Path(found.path).read_bytes().splitlines()) == left
        assert Path(found.path) == private / "files" / found.sha256 / "rows.jsonl"


def test_a_review_in_which_nothing_stays_makes_no_file(review: Review) -> None:
    private = review.directory.parents[1]
    with pytest.raises(JobError, match="no row would be left"):
        finish(Reviews(private), review.facts.id, private / "files", keep_undecided=False)
    assert list((private / "files").iterdir()) == []


EDITS = st.sampled_from(['{"kind": "bug", "id": 0}', "{}", "plain", "ä\u2028\ttab", '{"kind": 1, "id": 1e400}'])
STEPS = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from(["accept", "reject", "undo", "edit"]), EDITS), max_size=12
)


@given(STEPS, st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_decided_the_new_file_has_exactly_that(
    review: Review, steps: list[tuple[int, str, str]], keep: bool
) -> None:
    review.journal.path.unlink(missing_ok=True)
    review = Review(review.directory)
    stacks: dict[int, list[str | None]] = {row: [] for row in range(1, 6)}
    for row, wish, text in steps:
        if wish == "undo" and not stacks[row]:
            continue
        version = review.journal.version(row)
        if wish == "undo":
            review.decide(row, "undo", version)
            stacks[row].pop()
        elif wish == "edit":
            review.decide(row, "accept", version, text, anyway=True)
            stacks[row].append(text)
        else:
            review.decide(row, "accept" if wish == "accept" else "reject", version)
            stacks[row].append(
                None if wish == "reject" else json.loads(lines_of([chat(row)]))["messages"][1]["content"]
            )
    expected = []
    for row, stack in stacks.items():
        if stack and stack[-1] is not None:
            expected.append(
                {**chat(row), "messages": [chat(row)["messages"][0], {"role": "assistant", "content": stack[-1]}]}
            )
        elif not stack and keep:
            expected.append(chat(row))
    review = Review(review.directory)
    if not expected:
        with pytest.raises(JobError, match="no row would be left"):
            written(review, keep)
    else:
        assert [json.loads(line) for line in written(review, keep)] == expected


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


# Over the network


def decide(site: Site, review: Review, row: int, **body: Any) -> Any:
    return site.ask("POST", f"/api/v1/reviews/{review.facts.id}/rows/{row}/decisions", json=body)


def test_the_api_lists_reads_decides_and_finishes(site: Site, review: Review) -> None:
    base = f"/api/v1/reviews/{review.facts.id}"
    assert [one["id"] for one in site.ask("GET", "/api/v1/reviews").json()] == [review.facts.id]
    row = site.ask("GET", f"{base}/rows/2").json()
    assert (row["answer"], row["version"], row["is_object"]) == ('{"kind": "bug", "id": 2}', 0, True)
    assert (row["previous"], row["next"], row["turns"][0]["text"]) == (1, 3, "Ticket 2")
    answer = decide(site, review, 2, decision="accept", version=0, text='{"kind": "wish", "id": 2}')
    assert (answer.status_code, answer.json()["state"]) == (201, "edited")
    assert decide(site, review, 2, decision="reject", version=0).status_code == 409
    assert decide(site, review, 9, decision="reject", version=0).status_code == 404
    assert decide(site, review, 1, decision="reject", version=0).json()["version"] == 1
    assert site.ask("GET", base).json()["decided"] == 2
    listed = site.ask("GET", f"{base}/rows?state=edited").json()
    assert (listed["total"], listed["rows"][0]["excerpt"]) == (1, '{"kind": "wish", "id": 2}')
    made = site.ask("POST", f"{base}/finish", json={"undecided": "leave out"})
    assert (made.status_code, made.json()["rows"]) == (201, 1)
    assert made.json()["path"] in read(site, f"/new?review={review.facts.id}")


def test_a_review_that_is_not_there_is_not_found_on_any_route(site: Site) -> None:
    base = f"/api/v1/reviews/{'0' * 32}"
    asked = [site.ask("GET", path) for path in (base, f"{base}/rows", f"{base}/rows/1", f"/reviews/{'0' * 32}/next")]
    asked.append(site.ask("POST", f"{base}/finish", json={"undecided": "keep"}))
    asked.append(site.ask("GET", f"/new?review={'0' * 32}"))
    assert {answer.status_code for answer in asked} == {404}
    with pytest.raises(JobNotFoundError), Reviews(site.store.private).held("../../etc"):
        pass


def test_from_a_check_to_its_rows(site: Site, tmp_path: Path) -> None:
    """The whole way, with both processes."""
    path = tmp_path / "rows.jsonl"
    path.write_text(lines_of([{"prompt": f"{HOSTILE} {number}", "completion": HOSTILE} for number in range(12)]))
    check = site.ask("POST", "/api/v1/checks", json={"recipe": {"data": str(path)}, "title": HOSTILE}).json()["id"]
    assert site.ask("POST", "/api/v1/reviews", json={"check": check}).status_code == 409
    wait_until(lambda: site.ask("GET", f"/api/v1/looks/{check}").json()["state"] == "done")
    assert f'data-body=\'{{"check": "{check}", "file": "rows.jsonl"}}\'' in read(site, f"/data/{check}")
    look = site.ask("POST", "/api/v1/reviews", json={"check": check, "file": "rows.jsonl"}).json()["id"]
    wait_until(lambda: site.ask("GET", f"/api/v1/looks/{look}").json()["state"] in {"done", "failed"})
    found = site.ask("GET", f"/api/v1/looks/{look}").json()
    assert (found["state"], found["problem"], found["result"]["rows"]) == ("done", "", 12)
    number = found["result"]["review"]
    assert f'data-go href="/reviews/{number}"' in read(site, f"/opening/{look}")
    assert f"/reviews/{number}" in read(site, "/data")
    html = read(site, f"/reviews/{number}?state=noted")
    assert "dominating target" in words(html)


def test_a_check_of_several_files_asks_which_one_is_meant(site: Site, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    for path in paths:
        path.write_text(lines_of([chat(1)]))
    look = Look(f"{0:013d}-00000000", "check", "", {}, 0.0, "done")
    directory = site.store.private / "looks" / look.id
    write_json(directory / "look.json", asdict(look))
    write_json(directory / "result.json", {"files": [{"file": path.name} for path in paths]})
    head = {"verdict": "pass", "glyph": "", "word": "", "sentence": "", "figures": []}
    write_json(directory / "head.json", head)
    html = read(site, f"/data/{look.id}")
    assert "<option>one.jsonl</option><option>two.jsonl</option>" in html
    recipe = Recipe(data=[str(path) for path in paths])
    assert chosen(recipe, "two.jsonl").path == paths[1]
    with pytest.raises(UsageError, match=r"names 2 files; expected one of one\.jsonl, two\.jsonl"):
        chosen(recipe, "")


PAGES = ("", "?state=accepted", "/rows/1", "/rows/3", "/finish")


@pytest.mark.parametrize("path", PAGES)
def test_a_review_shows_hostile_rows_as_words(site: Site, tmp_path: Path, path: str) -> None:
    hostile = f"</textarea></script>{HOSTILE}"
    rows = [{"prompt": hostile, "completion": hostile}, {"prompt": "a", "completion": '{"a": 1}'}, {hostile: hostile}]
    review = review_of(tmp_path, lines_of(rows), f"{HOSTILE}.jsonl")
    review.decide(1, "accept", 0, f"\n{hostile} edited")
    finish(Reviews(site.store.private), review.facts.id, site.store.private / "files", True)
    html = read(site, f"/reviews/{review.facts.id}{path}")
    assert "<img" not in html
    assert re.findall(r"<style|\sstyle=|<script(?![^>]*\bsrc=)", html) == []


def test_a_row_is_shown_with_its_answer_as_it_stands_and_what_can_be_done(site: Site, tmp_path: Path) -> None:
    review = review_of(tmp_path, lines_of([chat(1), chat(2), {"prompt": "a", "chosen": "b", "rejected": "c"}]))
    review.decide(1, "accept", 0, "\n{}", anyway=True)
    html = read(site, f"/reviews/{review.facts.id}/rows/1")
    assert re.search(r"<textarea[^>]*>\n\n\{\}</textarea>", html)
    assert "1 of 3 decided" in words(html)
    assert "Undo: row 1 edited" in words(html)
    assert '<label for="answer">' in html
    pair = read(site, f"/reviews/{review.facts.id}/rows/3")
    assert "<textarea" not in pair
    assert "The answer cannot be changed here; the row can be kept or rejected." in words(pair)
    following = site.ask("GET", f"/reviews/{review.facts.id}/next?after=3")
    assert (following.status_code, following.headers["location"]) == (303, f"/reviews/{review.facts.id}/rows/2")


def test_the_page_of_the_end_says_the_counts_and_leads_on(site: Site, review: Review) -> None:
    review.decide(1, "reject", 0)
    number = review.facts.id
    assert "4 rows are undecided" in words(read(site, f"/reviews/{number}/finish"))
    made = site.ask("POST", f"/api/v1/reviews/{number}/finish", json={"undecided": "keep"}).json()
    html = read(site, f"/reviews/{number}/finish")
    counts = "Of 5 rows: 0 kept as they are, 0 edited, 1 rejected, 4 undecided (kept as they were)."
    assert f"{counts} The new file has 4 rows." in words(html)
    assert f"/new?review={number}" in html
    assert made["path"] in html
    assert "further decisions" not in html
    decide(site, review, 2, decision="reject", version=0)
    assert "there were further decisions since then" in read(site, f"/reviews/{number}/finish")
