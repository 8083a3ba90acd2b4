import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tunewright.data.read import plan_sources
from tunewright.data.read.hub import HubName, hub_name
from tunewright.data.read.sources import Found, kind_of, unique_labels
from tunewright.errors import EnvironmentLackError, TunewrightError, UsageError


def touched(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"a": 1}\n')


def labels(*names: str) -> list[str]:
    return [source.label for source in plan_sources(list(names), [])]


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist") as caught:
        plan_sources([str(tmp_path / "none.jsonl")], [])
    assert caught.value.exit_code == 2


def test_held_out_files_follow_the_others_and_say_so(tmp_path: Path) -> None:
    touched(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    sources = plan_sources([str(tmp_path / "b.jsonl")], [str(tmp_path / "a.jsonl")])
    assert [(source.label, source.held_out) for source in sources] == [("b.jsonl", False), ("a.jsonl", True)]


def test_files_of_the_same_name_are_told_apart_by_their_directories() -> None:
    names = ["/x/a/rows.jsonl", "/x/b/rows.jsonl", "/x/c.jsonl", "/x/a/rows.jsonl"]
    found = [Found(Path(name), Path(name)) for name in names]
    assert unique_labels(found) == ["a/rows.jsonl", "b/rows.jsonl", "c.jsonl", "a/rows.jsonl#2"]


def test_a_directory_gives_its_files_of_known_kinds_in_order(tmp_path: Path) -> None:
    directory = tmp_path / "rows"
    names = ["b.jsonl", "a/z.JSON", "a/b/c.csv.gz", "d.parquet", "e.tsv.zst", "f.ndjson.zstd"]
    others = ["README.md", ".hidden.jsonl", ".cache/rows.jsonl", "dataset_info.json", "x.jsonl.bz2", "jsonl"]
    touched(*(directory / name for name in [*names, *others]))
    assert labels(str(directory)) == [f"rows/{name}" for name in sorted(names, key=lambda name: name.split("/"))]


def test_directories_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    touched(tmp_path / "x" / "data" / "rows.jsonl", tmp_path / "y" / "data" / "rows.jsonl", tmp_path / "rows.jsonl")
    names = [str(tmp_path / "x" / "data"), str(tmp_path / "y" / "data"), str(tmp_path / "rows.jsonl")]
    assert labels(*names)[:2] == ["x/data/rows.jsonl", "y/data/rows.jsonl"]
    assert len(set(labels(*names))) == 3


def test_a_directory_without_rows_is_a_usage_error(tmp_path: Path) -> None:
    touched(tmp_path / "notes.md")
    with pytest.raises(UsageError, match=r"found no files of rows in it; expected files that end in .jsonl"):
        plan_sources([str(tmp_path)], [])


@pytest.mark.parametrize("target", ["outside/rows.jsonl", "outside"])
def test_a_link_that_leaves_a_directory_is_refused(tmp_path: Path, target: str) -> None:
    touched(tmp_path / "outside" / "rows.jsonl", tmp_path / "rows" / "a.jsonl")
    (tmp_path / "rows" / "link.jsonl").symlink_to(tmp_path / target)
    with pytest.raises(UsageError, match=r"link.jsonl: a link to .*, outside of the directory"):
        plan_sources([str(tmp_path / "rows")], [])


def test_links_inside_a_directory_give_each_file_once(tmp_path: Path) -> None:
    touched(tmp_path / "rows" / "a.jsonl")
    (tmp_path / "rows" / "b.jsonl").symlink_to("a.jsonl")
    (tmp_path / "rows" / "loop").symlink_to(tmp_path / "rows")
    assert labels(str(tmp_path / "rows")) == ["rows/a.jsonl"]


def test_a_link_to_nothing_is_a_usage_error(tmp_path: Path) -> None:
    touched(tmp_path / "rows" / "a.jsonl")
    (tmp_path / "rows" / "b.jsonl").symlink_to("c.jsonl")
    with pytest.raises(UsageError, match=r"b.jsonl: the file does not exist"):
        plan_sources([str(tmp_path / "rows")], [])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_by_name_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    for name in (tmp_path / "rows.jsonl", tmp_path):
        with pytest.raises(UsageError, match=r"rows.jsonl: found a named pipe; expected a file"):
            plan_sources([str(name)], [])


def test_devices_and_sockets_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("rows.jsonl")
        with pytest.raises(UsageError, match="found a socket"):
            plan_sources(["rows.jsonl"], [])
    with pytest.raises(UsageError, match="found a device"):
        plan_sources([os.devnull], [])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.jsonl", ".jsonl"), ("a.CSV.GZ", ".csv"), ("a.json.zstd", ".json"), ("a.gz", None), ("json", None)],
)
def test_the_kind_of_a_file_is_the_suffix_of_its_content(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("owner/name", HubName("owner/name")),
        ("own-er/na.me_2@v1.0", HubName("own-er/na.me_2", "v1.0")),
        ("owner/name@refs/pr/1:data/train-*", HubName("owner/name", "refs/pr/1", "data/train-*")),
        ("owner/name:a.jsonl", HubName("owner/name", None, "a.jsonl")),
        ("name", None),
        ("./owner/name", None),
        ("../name", None),
        ("a/b/c", None),
        ("owner/name:", None),
        ("/owner/name", None),
    ],
)
def test_names_of_the_hub_are_told_from_paths(text: str, name: HubName | None) -> None:
    assert hub_name(text) == name
    assert name is None or str(name) == text


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub that has one data set, laid out as in the hub's cache; gives the calls that were made."""
    calls: list[dict[str, Any]] = []
    snapshot = tmp_path / "datasets--owner--name" / "snapshots" / "0123abc"
    for name in ("data/train-0.jsonl", "data/train-1.jsonl", "data/test-0.jsonl", "dev.jsonl", "latest/a.jsonl"):
        blob = tmp_path / "datasets--owner--name" / "blobs" / name.replace("/", "-")
        touched(blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(blob)

    def fetch(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return calls


TRAINING = ["owner/name/data/train-0.jsonl", "owner/name/data/train-1.jsonl", "owner/name/latest/a.jsonl"]


def test_a_data_set_gives_the_files_of_its_training_split(hub: list[dict[str, Any]]) -> None:
    assert labels("owner/name") == TRAINING
    (call,) = hub
    assert (call["repo_id"], call["repo_type"], call["revision"]) == ("owner/name", "dataset", None)
    assert "*.jsonl" in call["allow_patterns"]
    assert "*.parquet" in call["allow_patterns"]


def test_a_data_set_as_held_out_rows_gives_the_files_of_its_other_splits(hub: list[dict[str, Any]]) -> None:
    sources = plan_sources(["owner/name"], ["owner/name"])
    assert [source.label for source in sources if source.held_out] == [
        "owner/name/data/test-0.jsonl",
        "owner/name/dev.jsonl",
    ]
    assert [source.label for source in sources if not source.held_out] == TRAINING


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("dev.jsonl", ["dev.jsonl"]),
        ("data", ["data/test-0.jsonl", "data/train-0.jsonl", "data/train-1.jsonl"]),
        ("data/train-*", ["data/train-0.jsonl", "data/train-1.jsonl"]),
    ],
)
def test_a_path_names_a_file_a_directory_or_a_pattern(hub: list[dict[str, Any]], path: str, files: list[str]) -> None:
    assert labels(f"owner/name@v1:{path}") == [f"owner/name/{file}" for file in files]
    assert hub[0]["revision"] == "v1"
    assert hub[0]["allow_patterns"] == [path, f"{path}/*"]


def test_a_path_that_the_data_set_does_not_have_names_those_that_it_has(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match=r"the data set has no files at 'none.csv'; expected data/test-0.jsonl, "):
        plan_sources(["owner/name:none.csv"], [])


def test_an_existing_path_is_never_asked_of_the_hub(
    hub: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    touched(tmp_path / "owner" / "name" / "a.jsonl", tmp_path / "owner" / "rows")
    assert labels("owner/name", "owner/rows") == ["name/a.jsonl", "rows"]
    with pytest.raises(UsageError, match=r"owner/none.jsonl: the file does not exist"):
        plan_sources(["owner/none.jsonl"], [])
    assert hub == []


ANSWER: Any = SimpleNamespace(status_code=404, headers={}, request=None)  # what the hub's errors look at


@pytest.mark.parametrize(
    ("error", "kind", "found"),
    [
        (GatedRepoError("x", response=ANSWER), UsageError, "asks for its conditions to be accepted"),
        (RepositoryNotFoundError("x", response=ANSWER), UsageError, "no such data set on the hub, or it is private"),
        (RevisionNotFoundError("x", response=ANSWER), UsageError, "it has no revision 'v9'"),
        (LocalEntryNotFoundError("no network\nat all"), EnvironmentLackError, r"cannot be reached \(no network\)"),
        (OSError("disk"), EnvironmentLackError, r"cannot be reached \(disk\)"),
    ],
)
def test_what_fails_at_the_hub_is_an_error_with_a_cause(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[TunewrightError], found: str
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(kind, match=found) as caught:
        plan_sources(["owner/name@v9"], [])
    assert caught.value.where == "owner/name@v9"


def test_without_a_network_a_data_set_that_is_not_here_is_a_lack_of_the_machine(tmp_path: Path) -> None:
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(EnvironmentLackError, match="the hub cannot be reached") as caught:
        plan_sources(["nobody-here/no-such-data-set"], [])
    assert caught.value.exit_code == 4
