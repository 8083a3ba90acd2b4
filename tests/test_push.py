"""`push` against a fake hub: what is sent, what never is, what the hub's refusals come to, what is checked after."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_hub import TOKEN, FakeHub, fake_hub
from report_sample import write_reported_run
from report_sample_data import ANSWERS
from tunewright.artifacts import RunDirectory, read_json
from tunewright.errors import ArtifactError, EnvironmentLackError, GateError, HubError, TunewrightError, UsageError
from tunewright.events import Events
from tunewright.push.contents import as_published
from tunewright.push.publish import Outcome, push

# Of huggingface_hub's own way to put a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "me/triage"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that huggingface_hub takes for the real one; it waits for nothing when it tries again."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    with fake_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found
        _http.close_session()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return write_reported_run(tmp_path / "run")


def pushed(run: RunDirectory, what: str = "all", private: bool = False, accept: tuple[str, ...] = ()) -> Outcome:
    return push(run.path, NAME, what, private, accept, Events())


ROOT = ["README.md", "certificate.json"]
LAYOUTS = {
    "merged": [*ROOT, "config.json", "model.safetensors"],
    "gguf": ["Modelfile", *ROOT, "model-q8_0.gguf"],
    "adapter": [*ROOT, "adapter_config.json", "adapter_model.safetensors", "base.json"],
    "all": [
        *("Modelfile", *ROOT, "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/base.json"),
        *("config.json", "model-q8_0.gguf", "model.safetensors"),
    ],
}


@pytest.mark.parametrize("what", LAYOUTS)
def test_one_commit_holds_exactly_the_files_of(hub: FakeHub, run: RunDirectory, what: str) -> None:
    outcome = pushed(run, what)
    repository = hub.repositories[NAME]
    assert [commit["files"] for commit in repository.commits] == [sorted(LAYOUTS[what])]
    assert [item.name for item in outcome.evidence if item.verdict != "pass"] == []
    assert outcome.pushed.commit == repository.head
    assert repository.files["README.md"].startswith(b"---\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct\n")


def test_weights_and_gguf_arrive_byte_by_byte(hub: FakeHub, run: RunDirectory) -> None:
    pushed(run)
    files = hub.repositories[NAME].files
    assert files["model.safetensors"] == (run / "merged/model.safetensors").read_bytes()
    assert files["model-q8_0.gguf"] == (run / "export/model-q8_0.gguf").read_bytes()
    assert files["Modelfile"] == (run / "export/Modelfile").read_bytes()


def test_no_row_of_the_data_and_no_path_of_this_machine_is_sent(hub: FakeHub, run: RunDirectory) -> None:
    pushed(run)
    everything = b"".join(hub.repositories[NAME].files.values()).decode()
    assert not [prompt for prompt, *_ in ANSWERS if prompt[:30] in everything]
    assert str(run.path) not in everything


def test_a_stray_file_among_the_artifacts_stays_here(hub: FakeHub, run: RunDirectory) -> None:
    (run / "merged/notes.txt").write_text("token")
    (run / "checkpoints").mkdir()
    (run / "checkpoints/model.safetensors").write_text("state")
    pushed(run)
    assert sorted(hub.repositories[NAME].files) == sorted(LAYOUTS["all"])


def test_the_published_certificate_has_no_details_and_names_the_whole_one(run: RunDirectory) -> None:
    whole = read_json(run / "certificate.json")
    published = as_published({**whole, "facts": {"train": {"base": "/home/me/models/tiny"}}})
    assert {item["detail"] for stage in published["stages"] for item in stage["evidence"]} == {""}
    assert published["without_details_of"] == whole["certificate_sha256"]
    assert published["facts"]["train"]["base"] == "tiny"


def test_a_second_push_sends_nothing_and_makes_no_commit(hub: FakeHub, run: RunDirectory) -> None:
    pushed(run)
    puts = hub.sent("PUT /upload")
    pushed(run)
    assert hub.sent("PUT /upload") == puts == 3
    assert len(hub.repositories[NAME].commits) == 1


def test_a_push_that_broke_off_goes_on_with_what_has_not_arrived(hub: FakeHub, run: RunDirectory) -> None:
    hub.failures["/commit/"] = 503
    with pytest.raises(HubError, match=r"the hub answered 503 .*Nothing was published"):
        pushed(run)
    assert hub.repositories[NAME].files == {}
    hub.failures.clear()
    pushed(run)
    assert hub.sent("PUT /upload") == 3
    assert len(hub.repositories[NAME].commits) == 1


REFUSALS = [
    ("/api/repos/create", 401, "does not know the token"),
    ("/api/repos/create", 500, "the hub answered 500"),
    ("/preupload/", 403, "the token may not write there"),
    ("/preupload/", 404, "hides it from this token"),
    ("/upload/", 403, "the token may not write there"),
    ("/upload/", 502, "the hub answered 502"),
    ("/commit/", 409, "somebody else is changing the repository"),
    ("/commit/", 412, "somebody else has changed the repository meanwhile"),
    ("/commit/", 429, "too many requests"),
    ("/tree/", 503, "the hub answered 503"),
]


@pytest.mark.parametrize(("where", "status", "found"), REFUSALS)
def test_a_refusal_is_named_without_the_token(
    hub: FakeHub, run: RunDirectory, where: str, status: int, found: str
) -> None:
    hub.failures[where] = status
    with pytest.raises(HubError) as caught:
        pushed(run)
    said = f"{caught.value} {caught.value.as_json()}"
    assert found in said
    assert TOKEN not in said
    assert "X-Signature" not in said
    assert caught.value.__suppress_context__


def test_an_owner_that_does_not_exist_is_named(hub: FakeHub, run: RunDirectory) -> None:
    with pytest.raises(HubError, match="no such user, organization or repository"):
        push(run.path, "nobody/triage", "gguf", False, (), Events())


def test_a_token_that_the_hub_does_not_know_is_refused(
    hub: FakeHub, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(HubError, match="does not know the token"):
        pushed(run)


def test_without_a_token_nothing_is_asked(
    hub: FakeHub, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(EnvironmentLackError, match="there is no token on this machine"):
        pushed(run)
    assert hub.requests == []


def test_a_hub_that_does_not_answer_is_a_lack_of_this_machine(
    hub: FakeHub, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(EnvironmentLackError, match="the hub cannot be reached"):
        pushed(run)


def test_offline_mode_is_named(hub: FakeHub, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentLackError, match="HF_HUB_OFFLINE is set"):
        pushed(run)


def test_a_private_push_never_goes_to_a_public_repository(hub: FakeHub, run: RunDirectory) -> None:
    pushed(run, "adapter")
    with pytest.raises(HubError, match="is there already and is public; expected a private one"):
        pushed(run, private=True)
    assert len(hub.repositories[NAME].commits) == 1


def test_a_private_repository_is_made_where_it_is_asked_for(hub: FakeHub, run: RunDirectory) -> None:
    pushed(run, private=True)
    assert hub.repositories[NAME].private


def test_a_commit_by_somebody_else_in_between_is_not_overwritten(hub: FakeHub, run: RunDirectory) -> None:
    from tunewright.push.hub import HubRepository, Sent

    repository = HubRepository(NAME)
    parent = repository.make(private=False)
    hub.repositories[NAME].head = "a" * 40
    with pytest.raises(HubError, match="somebody else has changed the repository meanwhile"):
        repository.send([Sent("x", b"x", 1, "")], "x", parent)


@pytest.mark.parametrize("name", ["model.safetensors", "Modelfile"])
def test_a_file_that_arrives_otherwise_fails_by_name(hub: FakeHub, run: RunDirectory, name: str) -> None:
    sent = len((run / "merged" / name if name.startswith("model") else run / "export" / name).read_bytes())
    hub.changed[name] = b"?" * sent
    evidence = {item.name: item for item in pushed(run).evidence}
    assert evidence["hub_files_other"].verdict == "fail"
    assert f"The hub lists {name} otherwise than sent" in evidence["hub_files_other"].detail


def test_files_of_an_earlier_push_are_named(hub: FakeHub, run: RunDirectory) -> None:
    pushed(run, "gguf")
    left = next(item for item in pushed(run, "merged").evidence if item.name == "hub_files_left")
    assert left.verdict == "warn"
    assert "From before there are also Modelfile, model-q8_0.gguf" in left.detail


def test_a_run_that_failed_is_only_pushed_where_that_is_accepted(hub: FakeHub, tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "failed", failing=("q8_0_mean_kl",))
    with pytest.raises(GateError, match=r"certificate_pass = fail.*--accept certificate_pass"):
        pushed(run)
    assert hub.requests == []
    pushed(run, accept=("certificate_pass",))
    assert b"checks failed: q8_0_mean_kl.**" in hub.repositories[NAME].files["README.md"]


def test_an_edited_certificate_is_never_pushed(hub: FakeHub, run: RunDirectory) -> None:
    path = run / "certificate.json"
    path.write_text(path.read_text().replace('"verdict": "pass"', '"verdict": "fine"', 1))
    with pytest.raises(GateError, match="certificate_unedited"):
        pushed(run, accept=("certificate_pass", "certificate_unedited"))
    assert hub.requests == []


def test_a_changed_artifact_is_never_pushed(hub: FakeHub, run: RunDirectory) -> None:
    (run / "merged/model.safetensors").write_text("other weights")
    with pytest.raises(ArtifactError, match=r"merged/model\.safetensors"):
        pushed(run)
    assert hub.repositories == {}


@pytest.mark.parametrize("name", ["triage", "a/b/c", "me/tri age", "me/../triage", "/triage", "me/"])
def test_a_name_that_is_none_is_refused(hub: FakeHub, run: RunDirectory, name: str) -> None:
    with pytest.raises(UsageError, match="OWNER/NAME"):
        push(run.path, name, "all", False, (), Events())


def test_what_there_is_not_is_a_usage_error(hub: FakeHub, run: RunDirectory, tmp_path: Path) -> None:
    for path, what in ((run.path, "weights"), (tmp_path, "all")):
        with pytest.raises(UsageError):
            push(path, NAME, what, False, (), Events())


def test_a_run_without_a_report_is_not_pushed(hub: FakeHub, run: RunDirectory) -> None:
    run.manifest_path("report").unlink()
    with pytest.raises(TunewrightError, match="the stage 'report' has not finished"):
        pushed(run)


def test_the_command_says_what_it_pushed_and_never_the_token(hub: FakeHub, run: RunDirectory) -> None:
    def command(*more: str) -> tuple[int, dict[str, Any], str]:
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
        line = [sys.executable, "-m", "tunewright", "push", str(run.path), NAME, "--json", *more]
        done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **settings})
        return done.returncode, json.loads(done.stdout), done.stdout + done.stderr

    code, found, said = command("--what", "gguf")
    assert (code, found["verdict"], found["commit"]) == (0, "pass", hub.repositories[NAME].head)
    assert sorted(file["path"] for file in found["files"]) == LAYOUTS["gguf"]
    assert TOKEN not in said
    hub.failures["/preupload/"] = 403
    code, found, said = command()
    assert (code, found["error"]) == (1, "HubError")
    assert TOKEN not in said


def test_the_front_matter_is_what_the_hub_reads(hub: FakeHub, run: RunDirectory) -> None:
    pushed(run, "gguf")
    _, matter, _ = hub.repositories[NAME].files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(matter) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "library_name": "gguf",
        "tags": ["gguf", "lora", "conversational", "tunewright"],
    }
