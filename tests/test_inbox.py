"""The inbox: every file is trained on once or rejected with a reason, whatever kind of thing it is."""

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.artifacts import write_text
from tunewright.errors import RecipeError
from tunewright.jobs import inbox as inbox_module
from tunewright.jobs.arrivals import Found, arrivals
from tunewright.jobs.inbox import Inbox, safe_name, validate_inbox
from tunewright.jobs.job import Job, Outcome
from tunewright.jobs.store import Store

ROW = '{"messages": [{"role": "user", "content": "Hallo"}, {"role": "assistant", "content": "Tag"}]}\n'


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 0.001\nname: all\n")
    return Inbox(Store(tmp_path / "store"), tmp_path / "inbox", recipe, seconds_at_rest=0.0)


def put(inbox: Inbox, name: str, text: str = ROW) -> Path:
    inbox.directory.mkdir(exist_ok=True)
    (inbox.directory / name).write_text(text)
    return inbox.directory / name


def rounds(inbox: Inbox, count: int = 3) -> None:
    for _ in range(count):
        inbox.tick()


def end_job(inbox: Inbox, outcome: Outcome) -> Job:
    """Have the next job end so, as its supervisor would."""
    attempt = inbox.store.claim(["cpu"])
    assert attempt is not None
    run_dir = inbox.store.job(attempt.job).run_dir
    run_dir.mkdir(exist_ok=True)
    inbox.store.finish(attempt, outcome)
    return inbox.store.job(attempt.job)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def reason_of(inbox: Inbox, name: str) -> str:
    return next((inbox.directory / "rejected").glob(f"*-{name}.reason.txt")).read_text()


def test_a_file_is_trained_on_from_a_copy_and_archived_with_a_receipt(inbox: Inbox) -> None:
    put(inbox, "rows.jsonl")
    rounds(inbox)
    assert names_in(inbox.directory / "working") == ["000001-rows.jsonl"]
    (job,) = inbox.store.jobs()
    assert job.source == "inbox: rows.jsonl"
    copy = next((inbox.store.private / "files").glob("*/rows.jsonl"))
    assert copy.read_text() == ROW
    assert str(copy) in job.recipe
    assert "learning_rate: 0.001" in job.recipe
    job = end_job(inbox, Outcome("done", exit_code=0))
    rounds(inbox)
    assert names_in(inbox.directory / "archive") == ["000001-rows.jsonl", "000001-rows.jsonl.receipt.json"]
    receipt = json.loads((job.run_dir / "receipt-000001-rows.jsonl.json").read_text())
    assert (receipt["state"], receipt["job"], receipt["result"]) == ("done", job.id, str(job.run_dir))
    assert receipt == json.loads((inbox.directory / "archive/000001-rows.jsonl.receipt.json").read_text())


def test_the_same_content_under_another_name_is_answered_with_the_former_result(inbox: Inbox) -> None:
    put(inbox, "rows.jsonl")
    rounds(inbox)
    end_job(inbox, Outcome("done", exit_code=0))
    put(inbox, "again.jsonl")
    rounds(inbox)
    assert len(inbox.store.jobs()) == 1
    receipt = json.loads((inbox.directory / "archive/000002-again.jsonl.receipt.json").read_text())
    assert receipt["same_as_before"]
    assert receipt["job"] == 1


def test_the_same_content_under_another_recipe_is_another_job(inbox: Inbox) -> None:
    put(inbox, "rows.jsonl")
    rounds(inbox)
    inbox.recipe.write_text("learning_rate: 0.002\n")
    put(inbox, "rows.jsonl")
    rounds(inbox)
    first, second = inbox.store.jobs()
    assert first.run_dir != second.run_dir


def test_the_same_content_after_a_failure_is_a_wish_to_try_again(inbox: Inbox) -> None:
    put(inbox, "rows.jsonl")
    rounds(inbox)
    end_job(inbox, Outcome("failed", "no GPU", exit_code=4))
    rounds(inbox)
    assert names_in(inbox.directory / "archive")[0] == "000001-rows.jsonl"
    put(inbox, "rows.jsonl")
    rounds(inbox)
    assert inbox.store.jobs()[0].state == "queued"
    end_job(inbox, Outcome("done", exit_code=0))
    rounds(inbox)
    receipt = json.loads((inbox.directory / "archive/000001-rows.jsonl.receipt.json").read_text())
    assert receipt["state"] == "done", "the first receipt tells of the new end"


def test_rows_that_cannot_be_trained_on_are_rejected_with_the_words_of_the_run(inbox: Inbox) -> None:
    put(inbox, "rows.jsonl")
    rounds(inbox)
    end_job(inbox, Outcome("failed", "rows.jsonl:1: no role. Add it.", exit_code=1))
    rounds(inbox)
    assert reason_of(inbox, "rows.jsonl") == "rows.jsonl:1: no role. Add it.\n"
    assert (inbox.directory / "rejected/000001-rows.jsonl").read_text() == ROW


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_empty(path: Path) -> None:
    path.touch()


def make_half(path: Path) -> None:
    path.write_text(ROW + ROW[:30])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_link, "symbolic link"),
        (os.mkfifo, "no regular file"),
        (Path.mkdir, "a directory"),
        (make_empty, "empty"),
        (make_half, "breaks off"),
    ],
)
def test_what_is_no_file_of_rows_is_rejected_with_a_reason(
    inbox: Inbox, make: Callable[[Path], object], reason: str
) -> None:
    inbox.directory.mkdir()
    make(inbox.directory / "thing.jsonl")
    rounds(inbox)
    assert reason in reason_of(inbox, "thing.jsonl")
    assert os.path.lexists(inbox.directory / "rejected/000001-thing.jsonl")
    assert inbox.store.jobs() == []
    assert names_in(inbox.directory) == ["archive", "rejected", "working"]


def test_hidden_and_unfinished_files_are_left_alone(inbox: Inbox) -> None:
    for name in (".rows.jsonl", "rows.jsonl.part", "rows.jsonl~"):
        put(inbox, name)
    rounds(inbox)
    assert arrivals(inbox.store) == []


def test_a_file_that_still_changes_waits_until_it_is_at_rest(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=2)
    monkeypatch.setattr("tunewright.jobs.inbox.monotonic", lambda: next(clock))
    inbox.seconds_at_rest = 5
    path = put(inbox, "rows.jsonl")
    for _ in range(6):
        inbox.tick()
        path.write_text(path.read_text() + ROW)
    assert inbox.store.jobs() == []
    while not inbox.store.jobs():
        inbox.tick()
    assert len(next((inbox.store.private / "files").glob("*/rows.jsonl")).read_text()) == 7 * len(ROW)


def test_a_file_that_is_open_for_writing_waits_until_it_is_closed(inbox: Inbox) -> None:
    path = put(inbox, "rows.jsonl")
    with path.open("a"):
        rounds(inbox)
        assert inbox.store.jobs() == []
    rounds(inbox)
    assert len(inbox.store.jobs()) == 1


def test_a_file_that_changes_while_it_is_read_is_not_taken(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(inbox, "rows.jsonl", ROW * 3)
    with monkeypatch.context() as patch:
        patch.setattr(inbox_module, "is_written_to", lambda descriptor: touch(path))
        rounds(inbox)
    assert inbox.store.jobs() == []
    rounds(inbox)
    assert len(inbox.store.jobs()) == 1


def test_a_service_killed_between_the_book_and_the_move_goes_on_with_the_move(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(inbox, "rows;1.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(Inbox, "_go_on_with", lambda *_: None)
        inbox.tick()
        inbox._take("rows;1.jsonl", *found_of(inbox, "rows;1.jsonl"))
    assert names_in(inbox.directory / "working") == []
    fresh = Inbox(inbox.store, inbox.directory, inbox.recipe, seconds_at_rest=0.0)
    rounds(fresh)
    assert names_in(inbox.directory / "working") == ["000001-rows_1.jsonl"]
    assert len(inbox.store.jobs()) == 1
    assert len(arrivals(inbox.store)) == 1


def touch(path: Path) -> bool:
    """Change the file's time, and say that nobody writes to it."""
    os.utime(path, ns=(0, time.time_ns()))
    return False


def found_of(inbox: Inbox, name: str) -> tuple[Found, int]:
    status = (inbox.directory / name).lstat()
    return inbox_module.found_file(name, status), 0o100000


def test_a_recipe_that_breaks_later_takes_nothing_and_says_so(inbox: Inbox) -> None:
    put(inbox, "rows.jsonl")
    inbox.recipe.write_text("lerning_rate: 1\n")
    rounds(inbox)
    assert "learning_rate" in inbox.problem
    assert (inbox.directory / "rows.jsonl").exists()
    inbox.recipe.write_text("learning_rate: 0.1\n")
    rounds(inbox)
    assert inbox.problem == ""
    assert len(inbox.store.jobs()) == 1


def test_a_recipe_that_is_broken_from_the_start_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "recipe.yaml", "model: [1, 2]\n")
    with pytest.raises(RecipeError, match="model"):
        validate_inbox(tmp_path / "inbox", tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("rows.jsonl", "rows.jsonl"),
        ("../../etc", "_.._etc"),
        ("<script>.jsonl", "_script_.jsonl"),
        ("\x1b[31mred", "__31mred"),
        ("-rf", "rf"),
        ("…", "_"),
    ],
)
def test_names_are_made_harmless(name: str, safe: str) -> None:
    assert safe_name(name) == safe
