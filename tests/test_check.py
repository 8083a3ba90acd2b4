"""The command `check`: its JSON contract, exit codes, what it writes and what it leaves alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_rows import good_pairs, pair, write_rows
from test_cli import message_of, tunewright
from tiny_rows import tiny_rows
from tunewright.check.outcome import Judged, Lengths, NamedRow
from tunewright.evidence import Evidence

KEYS = [
    *("format", "formats", "files", "rows_in", "kept", "repaired", "truncated", "rejected", "repairs", "rejections"),
    *("system_prompts", "ignored_keys", "uncertain", "train_rows", "eval_rows", "lengths", "evidence"),
]


def checked(*arguments: str | Path, exit_code: int = 0, **keywords: Any) -> dict[str, Any]:
    """What `check --json` says; nothing else stands on stdout."""
    result = tunewright("check", *arguments, "--json", **keywords)
    assert result.returncode == exit_code, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def evidence_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    (item,) = [item for item in found["evidence"] if item["name"] == name]
    return dict(item)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", good_pairs(40))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Forty good rows, one that is repaired, and two that are rejected."""
    rows = [
        *good_pairs(40),
        pair("What is the code of the barn?", {"code": 7, "of": "barn"}),
        {"nothing": 1},
        pair("", ""),
    ]
    return write_rows(tmp_path / "rows.jsonl", rows)


def test_json_has_exactly_the_keys_of_the_contract(mixed: Path) -> None:
    found = checked(mixed)
    assert list(found) == KEYS
    assert all(list(item) == ["name", "value", "limit", "verdict", "detail", "rows"] for item in found["evidence"])


def test_fates_add_up_and_repaired_rows_are_among_the_kept(mixed: Path) -> None:
    found = checked(mixed)
    fates = [found[name] for name in ("rows_in", "kept", "repaired", "truncated", "rejected")]
    assert fates == [43, 41, 1, 0, 2]
    assert found["repairs"] == {"object written as JSON text": 1}
    assert sum(found["rejections"].values()) == 2
    assert found["lengths"] is None


def test_format_is_the_one_that_most_rows_have(mixed: Path) -> None:
    found = checked(mixed)
    assert found["format"] == max(found["formats"], key=found["formats"].__getitem__)
    assert found["files"] == [{"file": "rows.jsonl", "formats": found["formats"]}]
    assert sum(found["formats"].values()) == 43


def test_rejected_rows_are_a_warning_with_file_and_line_and_no_gate(mixed: Path) -> None:
    item = evidence_of(checked(mixed, exit_code=0), "rejected_rows")
    assert (item["value"], item["limit"], item["verdict"]) == (2, "= 0", "warn")
    assert [(row["file"], row["line"], row["row"]) for row in item["rows"]] == [
        ("rows.jsonl", 42, "rows.jsonl:42"),
        ("rows.jsonl", 43, "rows.jsonl:43"),
    ]


def test_rows_of_evidence_are_at_most_twenty(tmp_path: Path) -> None:
    rows = [pair(f"{row['prompt']}", f"{row['completion'][:-1]}...") for row in good_pairs(40)]
    item = evidence_of(checked(write_rows(tmp_path / "r.jsonl", rows), exit_code=3), "ellipsis_targets")
    assert item["verdict"] == "fail"
    assert [row["line"] for row in item["rows"]] == list(range(1, 21))
    assert sorted(item["rows"][0]) == ["excerpt", "file", "line", "row"]


def test_a_failed_gate_gives_three_and_an_accepted_one_nought(tmp_path: Path) -> None:
    rows = [*good_pairs(40), *(pair(f"How is {name}?", "He is...") for name in ("Ann", "Bo"))]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    checked(path, exit_code=3)
    checked(path, "--accept", "ellipsis_targets", exit_code=0)
    checked(path, "-o", "audit={ellipsis_targets: warn}", exit_code=0)


def test_clean_rows_give_nought_and_leave_nothing_behind(good: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    checked(good, cwd=tmp_path, TMPDIR=str(scratch))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "scratch"]
    assert list(scratch.iterdir()) == []


def test_bad_rows_stop_a_check_only_if_it_is_told_so(mixed: Path) -> None:
    assert "2 of 43 rows cannot be used" in message_of(tunewright("check", mixed, "--on-bad-row", "stop"), 1)
    assert checked(mixed, "-o", "on_bad_row=stop", exit_code=1)["error"] == "DataError"


def test_several_files_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    first = write_rows(tmp_path / "a.jsonl", good_pairs(20))
    write_rows(tmp_path / "more" / "b.jsonl", tiny_rows()[:20])
    found = checked(first, tmp_path / "more")
    assert [(item["file"], sum(item["formats"].values())) for item in found["files"]] == [
        ("a.jsonl", 20),
        ("more/b.jsonl", 20),
    ]


def test_a_recipe_is_checked_without_its_base_if_it_names_none(good: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: rows.jsonl\nsystem_prompt: Be brief.\n")
    found = checked(tmp_path / "r.yaml")
    assert found["system_prompts"] == {"row": 0, "recipe": 40, "none": 0}
    assert found["lengths"] is None
    assert "expected a recipe or a run alone" in message_of(tunewright("check", tmp_path / "r.yaml", good), 2)


def test_without_a_model_neither_torch_nor_transformers_is_imported(mixed: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom tunewright import cli\n"
        f"sys.argv = ['tunewright', 'check', {str(mixed)!r}, '--json', '--html', {str(tmp_path / 'page.html')!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "slow = {'torch', 'transformers'} & set(sys.modules)\nassert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_ledger_is_written_where_it_is_asked_for(mixed: Path, tmp_path: Path) -> None:
    checked(mixed, "--ledger", tmp_path / "new" / "ledger.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "new" / "ledger.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == list(range(1, 44))
    assert [line["fate"] for line in lines[40:]] == ["repaired", "rejected", "rejected"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ledger.jsonl"]


def test_a_run_directory_is_kept_if_it_is_named(good: Path, tmp_path: Path) -> None:
    found = checked(good, "--run-dir", tmp_path / "run")
    assert found == checked(good)
    assert (tmp_path / "run" / "data" / "ledger.jsonl").is_file()


@pytest.mark.parametrize("option", ["--html", "--ledger"])
def test_an_output_that_would_cover_something_else_is_refused(good: Path, tmp_path: Path, option: str) -> None:
    before = good.read_bytes()
    assert "it is a directory" in message_of(tunewright("check", good, option, tmp_path), 2)
    assert "these are the rows to be read" in message_of(tunewright("check", good, option, good), 2)
    assert "rows.jsonl is no directory" in message_of(tunewright("check", good, option, good / "page"), 2)
    assert "it is no plain file" in message_of(tunewright("check", good, option, "/dev/null"), 2)
    assert good.read_bytes() == before


def test_what_cannot_be_read_is_said_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "nothing").mkdir()
    assert "the file does not exist" in message_of(tunewright("check", tmp_path / "none.jsonl"), 2)
    assert "empty.jsonl" in message_of(tunewright("check", tmp_path / "empty.jsonl"), 1)
    assert "found no files of rows in it" in message_of(tunewright("check", tmp_path / "nothing"), 2)
    assert checked(tmp_path / "none.jsonl", exit_code=2)["exit_code"] == 2


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    write_rows(tmp_path / "rows.jsonl", good_pairs(72) * 2000)
    command = [sys.executable, "-m", "tunewright", "check", "rows.jsonl", "--html", "page.html"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(scratch.glob("*/.rows-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "scratch"]


@pytest.mark.parametrize(
    ("row", "file", "line"),
    [
        ("a.jsonl:12", "a.jsonl", 12),
        ("a.json:1.2", "a.json", 1),
        ("t.jsonl:3/2", "t.jsonl", 3),
        ("a.jsonl:3#4", "a.jsonl", 3),
        ("x:1/a.jsonl#2:7.2/3#1", "x:1/a.jsonl#2", 7),
    ],
)
def test_file_and_line_are_found_in_the_id_of_a_row(row: str, file: str, line: int) -> None:
    assert NamedRow.of(row, "why") == NamedRow(file, line, "why", row)


def test_a_detail_is_parted_into_what_was_found_and_what_to_do() -> None:
    evidence = Evidence("x", 2, "= 0", "warn", "2 of 9 rows are odd: a:1 (one); a:2 (two). Mend them.")
    rows = (NamedRow.of("a:1", "one"), NamedRow.of("a:2", "two"))
    assert Judged(evidence, rows).in_parts() == ("2 of 9 rows are odd.", "Mend them.")
    assert Judged(evidence).in_parts() == (evidence.detail, "")


def test_percentiles_are_by_nearest_rank() -> None:
    lengths = Lengths(list(range(10, 0, -1)), 10, 10, "longest row", 64, {})
    assert lengths.percentiles() == {"50": 5, "90": 9, "95": 10, "99": 10}
