"""Decisions of a review: each on its own row and on no other, none lost, none overwritten unseen."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from review_rows import chat, lines_of, review_of, reviewed, written
from tunewright.errors import ArtifactError, EnvironmentLackError, JobError
from tunewright.web.review.reviews import Review


@pytest.fixture
def review(tmp_path: Path) -> Review:
    return review_of(tmp_path, lines_of([chat(number) for number in range(1, 6)]))


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
    with pytest.raises(JobError, match=r"lacks 1 key of the old one: 'id'.* say that you mean it"):
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
def test_a_torn_last_line_is_set_aside(review: Review, torn: bytes) -> None:
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
