"""The run directory: artifacts appear whole or not at all, and every change is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunewright.artifacts import RunDirectory, canonical_json, read_json, sha256_of_file, write_json, write_text
from tunewright.errors import ArtifactError, GateError
from tunewright.events import Events, read_events
from tunewright.evidence import at_least, at_most, equal, fact, validate_gates


def published(run: RunDirectory, stage: str = "data", text: str = "one\n") -> None:
    with run.staging(stage) as out:
        (out / stage).mkdir()
        (out / stage / "rows.jsonl").write_text(text)
        run.publish(stage, out, "made-from", [fact("rows", 1)], {"rows": 1})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_a_published_stage_is_done_for_the_same_fingerprint_only(run: RunDirectory) -> None:
    published(run)
    assert run.is_done("data", "made-from")
    assert not run.is_done("data", "made-from-something-else")
    assert not run.is_done("render", "made-from")


def test_manifest_holds_size_and_hash_of_each_file(run: RunDirectory) -> None:
    published(run)
    manifest = run.require_manifest("data")
    assert list(manifest.files) == ["data/rows.jsonl"]
    assert manifest.files["data/rows.jsonl"].bytes == 4
    assert manifest.files["data/rows.jsonl"].sha256 == sha256_of_file(run / "data" / "rows.jsonl")
    assert manifest.evidence == [fact("rows", 1)]


@pytest.mark.parametrize(
    ("text", "difference"),
    [
        ("two\n", "has SHA-256"),
        ("one", "has 3 bytes, 4 were written"),
        (None, "is missing"),
    ],
)
def test_a_changed_file_is_named_and_its_stage_is_not_done(
    run: RunDirectory, text: str | None, difference: str
) -> None:
    published(run)
    path = run / "data" / "rows.jsonl"
    path.unlink() if text is None else path.write_text(text)
    (found,) = run.differences(run.require_manifest("data"))
    assert found.startswith("data/rows.jsonl ")
    assert difference in found
    assert not run.is_done("data", "made-from")


def test_a_stage_that_fails_leaves_nothing_behind(run: RunDirectory) -> None:
    def fail_halfway() -> None:
        with run.staging("data") as out:
            (out / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert [path for path in run.path.rglob("*") if path.is_file()] == []


def test_publishing_again_replaces_what_stood_there(run: RunDirectory) -> None:
    published(run, text="a longer first version\n")
    published(run, text="second\n")
    assert (run / "data" / "rows.jsonl").read_text() == "second\n"
    assert run.differences(run.require_manifest("data")) == []


def test_digest_depends_on_the_files_alone(run: RunDirectory, tmp_path: Path) -> None:
    published(run)
    other = RunDirectory(tmp_path / "other")
    with other.staging("data") as out:
        (out / "data").mkdir()
        (out / "data" / "rows.jsonl").write_text("one\n")
        other.publish("data", out, "another-fingerprint", [], {"seconds": 9})
    assert other.require_manifest("data").digest == run.require_manifest("data").digest


def test_a_damaged_manifest_is_named(run: RunDirectory) -> None:
    published(run)
    run.manifest_path("data").write_text('{"stage": "data"')
    with pytest.raises(ArtifactError, match=r"data\.json: not valid JSON"):
        run.require_manifest("data")
    assert not run.is_done("data", "made-from")


def test_a_run_in_use_names_the_process_that_holds_it(run: RunDirectory) -> None:
    with run.locked():
        script = (
            "import sys; from pathlib import Path\n"
            "from tunewright.artifacts import RunDirectory\nfrom tunewright.errors import ArtifactError\n"
            "try:\n    RunDirectory(Path(sys.argv[1])).locked().__enter__()\n"
            "except ArtifactError as error:\n    print(error)\n"
        )
        answer = subprocess.run(
            [sys.executable, "-c", script, str(run.path)], capture_output=True, text=True, check=True
        ).stdout
    assert f"the run is in use by process {os.getpid()}" in answer


def test_json_is_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ä": [1, None]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert canonical_json({"b": 1, "a": "ä"}) == '{"a":"ä","b":1}'


def test_what_cannot_be_written_is_named_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.mkdir()
    with pytest.raises(OSError, match="Is a directory") as caught:
        write_text(path, "text")
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_half_written_event_is_cut_off_before_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    Events(path).note("first")
    with path.open("a") as file:
        file.write('{"kind": "half')
    assert [event["text"] for event in read_events(path)] == ["first"]
    Events(path).note("second")
    assert [json.loads(line)["text"] for line in path.read_text().splitlines()] == ["first", "second"]


def test_progress_says_speed_and_time_left(tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []
    progress = Events(None, (seen.append,)).progress("rows", 2, done=1)
    progress.advance()
    assert seen[-1]["done"] == 2
    assert seen[-1]["seconds_left"] == 0.0
    assert seen[-1]["unit"] == "rows"


def test_evidence_that_is_not_a_number_fails() -> None:
    assert at_least("share", float("nan"), 0.5).verdict == "fail"
    assert at_most("kl", float("nan"), 0.5).verdict == "fail"
    assert at_most("kl", 0.5, 0.5).verdict == "pass"


def test_a_failing_gate_is_named_with_the_way_to_accept_it() -> None:
    evidence = [equal("keys", 3, 4, "one key is missing"), equal("same", 1, 1)]
    with pytest.raises(GateError, match=r"keys = 3 \(limit = 4\): one key is missing.*--accept keys"):
        validate_gates(evidence, frozenset(), "gate")
    validate_gates(evidence, frozenset({"keys"}), "gate")
