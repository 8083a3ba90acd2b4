"""What a page looks at before a run: files that come, checks, plans and recipes; and what a run made."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs_bench import wait_until
from report_sample import republish, write_sample_run
from test_web_pages import HOSTILE, read, words
from tunewright.errors import EnvironmentLackError, JobError, UsageError
from tunewright.evidence import Evidence
from tunewright.web import looks as looks_module
from tunewright.web import uploads
from tunewright.web.looks import Looks, problem_of
from tunewright.web.uploads import Uploads
from web_bench import Site

OCTETS = {"content-type": "application/octet-stream"}
ROWS = "".join(
    json.dumps(
        {"messages": [{"role": "user", "content": f"{HOSTILE} {n}"}, {"role": "assistant", "content": f"yes {n}"}]}
    )
    + "\n"
    for n in range(12)
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS)
    return path


# Files that come


def send(site: Site, name: str, content: bytes, **headers: str) -> Any:
    return site.ask("PUT", "/api/v1/files", params={"name": name}, content=content, headers={**OCTETS, **headers})


def test_a_file_comes_whole_and_lies_by_its_content(site: Site) -> None:
    answer = send(site, "my rows.jsonl.gz", b"abc")
    assert answer.status_code == 201
    path = Path(answer.json()["path"])
    assert path.read_bytes() == b"abc"
    assert path.parent.parent == site.store.private / "files"
    assert path.name == "rows.jsonl.gz"
    assert send(site, "other.jsonl.gz", b"abc").json()["path"] == str(path)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "..", "\x1b]0;x\x07", "a\x00b", HOSTILE])
def test_the_name_of_a_file_leads_nowhere(site: Site, name: str) -> None:
    answer = send(site, name, b"abc").json()
    assert Path(answer["path"]).resolve().parent.parent == site.store.private / "files"
    assert re.fullmatch(r"[\w.+-]+", answer["name"])


def test_an_empty_file_and_one_of_another_kind_are_refused(site: Site) -> None:
    assert "the file is empty" in send(site, "rows.jsonl", b"").text
    kinds = ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded")
    assert [send(site, "rows.jsonl", b"x", **{"content-type": kind}).status_code for kind in kinds] == [415] * 3
    assert list((site.store.private / "files").glob("*/*")) == []


def test_a_file_that_is_too_large_is_refused_as_it_comes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_BYTES", 10)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 6

    with pytest.raises(UsageError, match="it has more than"):
        asyncio.run(Uploads(site.store).take("rows.jsonl", 0, endless()))
    assert send(site, "rows.jsonl", b"x" * 11).status_code == 422
    assert [path for path in (site.store.private / "files").iterdir() if path.is_file()] == []


def test_a_client_that_falls_silent_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "SECONDS_OF_SILENCE", 0.05)

    async def silent() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(5)

    with pytest.raises(EnvironmentLackError, match="nothing came"):
        asyncio.run(Uploads(site.store).take("rows.jsonl", 0, silent()))


# Checks


def test_a_check_of_hostile_rows_shows_them_as_words(site: Site, rows: Path) -> None:
    """The whole way: the same code as `tunewright check`, in a process, and its page within ours."""
    asked = site.ask("POST", "/api/v1/checks", json={"recipe": {"data": str(rows)}, "title": HOSTILE})
    number = asked.json()["id"]
    wait_until(lambda: site.ask("GET", f"/api/v1/looks/{number}").json()["state"] in {"done", "failed"})
    found = site.ask("GET", f"/api/v1/looks/{number}").json()
    assert (found["state"], found["problem"]) == ("done", "")
    assert found["result"]["rows_in"] == 12
    html = read(site, f"/data/{number}")
    assert "What became of the rows" in html
    assert "<img" not in html
    assert re.findall(r"<style|\sstyle=|<script(?![^>]*\bsrc=)", html) == []
    ledger = site.ask("GET", f"/api/v1/checks/{number}/ledger")
    assert len(ledger.text.splitlines()) == 12
    assert f"/data/{number}" in read(site, "/data")
    new = read(site, f"/new?check={number}")
    assert str(rows) in new
    assert "on_bad_row&#34;" not in re.findall(r'data-keys="([^"]*)"', new)[0]


def test_a_check_that_fails_says_why(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    number = site.ask("POST", "/api/v1/checks", json={"recipe": {"data": str(path)}}).json()["id"]
    wait_until(lambda: site.ask("GET", f"/api/v1/looks/{number}").json()["state"] == "failed")
    assert "empty.jsonl" in words(read(site, f"/data/{number}"))


def test_rows_that_are_not_there_are_refused_before_anything_is_started(site: Site) -> None:
    answer = site.ask("POST", "/api/v1/checks", json={"recipe": {"data": "/nowhere/rows.jsonl"}})
    assert answer.status_code == 422
    assert "no such file" in answer.text
    assert "there is no such look" in site.ask("GET", f"/api/v1/looks/{0:013d}-00000000").text


def test_a_look_that_was_under_way_when_the_service_ended_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Looks, "_go_on", lambda self: None)
    look = Looks(tmp_path).begin("doctor", "doctor")
    assert look.state == "waiting"
    assert Looks(tmp_path).look(look.id).problem == "The service was ended meanwhile. Ask again."


def test_looks_are_bounded_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Looks, "_go_on", lambda self: None)
    monkeypatch.setattr(looks_module, "MOST_KEPT", 3)
    monkeypatch.setattr(looks_module, "MOST_WAITING", 4)
    looks = Looks(tmp_path)
    for _ in range(4):
        looks.begin("doctor", "doctor")
    with pytest.raises(JobError, match="4 wait already"):
        looks.begin("doctor", "doctor")
    again = Looks(tmp_path)
    again.begin("doctor", "doctor")
    assert len(again.all()) == 3


def test_the_reason_of_a_failed_look_is_its_error_or_its_last_words() -> None:
    error = {"error": "DataError", "where": "rows", "found": "nothing", "expected": "", "mend": "Add some."}
    assert problem_of(1, error, "") == "rows: nothing. Add some."
    assert problem_of(-9, {}, "") == "It was killed: it took too long, or memory ran out."
    assert problem_of(1, {}, "first\nlast\n") == "last"
    assert problem_of(1, {}, "") == "It ended with exit code 1."


# Recipes


def test_keys_yaml_and_command_say_the_same(site: Site, rows: Path) -> None:
    keys = {"data": str(rows), "lr": 0.01, "model": "owner/base", "columns": {"prompt": "a b"}}
    said = site.ask("POST", "/api/v1/recipes", json={"recipe": keys}).json()
    assert said["recipe"] == {
        "data": [str(rows)], "learning_rate": 0.01, "model": "owner/base", "columns": {"prompt": "a b"},
    }  # fmt: skip
    assert site.ask("POST", "/api/v1/recipes", json={"yaml": said["yaml"]}).json() == said
    command = f"tunewright run {rows} --model owner/base -o "
    assert said["command"].startswith(command)
    assert '\'columns={"prompt": "a b"}\'' in said["command"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: &x [1, 2]\nb: [*x, *x]", "YAML reference"),
        ("[" * 200 + "]" * 200, "nested more than"),
        ("data: !!python/object/apply:os.system [id]", "not valid YAML"),
        ("- data", "a mapping of recipe keys"),
        ("data: [", "not valid YAML"),
        ("data: /etc/hosts\nlerning_rate: 1", "unknown recipe key"),
    ],
)
def test_yaml_that_is_a_trap_or_no_recipe_is_refused_in_words(site: Site, text: str, found: str) -> None:
    answer = site.ask("POST", "/api/v1/recipes", json={"yaml": text})
    assert answer.status_code == 422
    assert found in answer.text


def test_a_new_run_can_begin_with_the_recipe_of_another(site: Site) -> None:
    write_sample_run(site.store.root / "old")
    html = read(site, "/new?run=old")
    assert "&#34;eval_data&#34;" in re.findall(r'data-keys="([^"]*)"', html)[0]
    assert "no such run" in words(read(site, "/new?run=nobody", 404))


def test_every_field_of_the_form_has_a_label_and_a_hint(site: Site) -> None:
    html = read(site, "/new")
    for key in re.findall(r'data-key="(\w+)"', html):
        assert f'<label for="{key}">' in html
        assert f'id="{key}-hint"' in html


PLAN = {
    "fits": True, "peak_bytes": 3_400_000_000, "budget_bytes": 24_000_000_000, "optimizer_steps": 171,
    "seconds_per_step": 2.0, "steps_per_epoch": 57, "effective_batch_size": 16, "device": "cuda", "dtype": "bfloat16",
    "layout_reason": "Rows are packed <b>.",
}  # fmt: skip


@pytest.mark.parametrize(
    ("fits", "words_wanted"), [(True, "Fits in 24.0\u202fGB: 3.4\u202fGB"), (False, "Does not fit in 24.0\u202fGB")]
)
def test_a_plan_is_told_in_plain_words(
    site: Site, monkeypatch: pytest.MonkeyPatch, fits: bool, words_wanted: str
) -> None:
    result = {**PLAN, "fits": fits, "evidence": []}
    monkeypatch.setattr(looks_module, "run_to_end", lambda command, at: write_result(at, result))
    number = site.ask("POST", "/api/v1/plans", json={"recipe": {"data": "/etc/hosts"}}).json()["id"]
    wait_until(lambda: site.ask("GET", f"/api/v1/looks/{number}").json()["state"] == "done")
    html = read(site, f"/parts/plan/{number}")
    for wanted in (
        words_wanted,
        "171 steps of 16 rows",
        "5\u202fmin 42\u202fs",
        "on the GPU in bfloat16",
    ):
        assert wanted in html
    assert "&lt;b&gt;" in html


def write_result(directory: Path, result: dict[str, Any]) -> int:
    (directory / "result.json").write_text(json.dumps(result))
    return 0


def test_the_page_understands_what_the_command_says(site: Site, tiny_recipe: Path) -> None:
    """The real `tunewright plan`: a plan that the page cannot read would be none."""
    recipe = {**yaml.safe_load(tiny_recipe.read_text()), "data": str(tiny_recipe.with_name("rows.jsonl"))}
    number = site.ask("POST", "/api/v1/plans", json={"recipe": recipe}).json()["id"]
    wait_until(lambda: site.ask("GET", f"/api/v1/looks/{number}").json()["state"] in {"done", "failed"}, at_most=300)
    assert "Fits in" in words(read(site, f"/parts/plan/{number}"))


# What a run made, settings, the wall


def test_artifacts_have_their_verdict_their_hashes_and_are_handed_out(site: Site) -> None:
    run = write_sample_run(site.store.root / "old")
    names = {
        "adapter_mean_kl": "pass",
        "merged_in_float32_mean_kl": "fail",
        "merged_mean_kl": "warn",
        "q8_0_mean_kl": "pass",
    }
    evidence = [asdict(Evidence(name, 1e-7, "<= 1e-06", verdict)) for name, verdict in names.items()]  # type: ignore[arg-type]
    republish(run, "verify", evidence=evidence)
    html = read(site, "/runs/old/artifacts")
    titles = [words(title) for title in re.findall(r'<h2 id="artifact-\d">(.*?)</h2>', html)]
    assert titles == ["Adapter ✓ passed", "Merged checkpoint ! warns", "GGUF q8_0 ✓ passed"]
    answer = site.ask("GET", "/api/v1/runs/old/files/export/model-q8_0.gguf")
    assert (answer.content, answer.headers["content-length"]) == (b"GGUF", "4")
    assert answer.headers["content-disposition"] == 'attachment; filename="model-q8_0.gguf"'


@pytest.mark.parametrize(
    "path",
    ["events.jsonl", "recipe.yaml", "../.service/token", "export/../events.jsonl", "manifests/data.json", "/etc/hosts"],
)
def test_only_what_a_stage_published_is_handed_out(site: Site, path: str) -> None:
    write_sample_run(site.store.root / "old")
    (site.store.root / "old/events.jsonl").write_text("{}\n")
    assert site.ask("GET", f"/api/v1/runs/old/files/{path}").status_code == 404


def test_a_published_file_that_became_a_link_is_not_followed(site: Site) -> None:
    run = write_sample_run(site.store.root / "old")
    (run / "export/Modelfile").unlink()
    (run / "export/Modelfile").symlink_to("/etc/hosts")
    assert site.ask("GET", "/api/v1/runs/old/files/export/Modelfile").status_code == 404


def test_another_format_is_a_job_on_the_same_run(site: Site) -> None:
    write_sample_run(site.store.root / "old")
    job = site.ask("POST", "/api/v1/runs/old/exports", json={"format": "q4_k_m"})
    assert (job.status_code, job.json()["run_dir"]) == (201, str(site.store.root / "old"))
    assert "- q8_0\n- q4_k_m" in site.store.job(1).recipe
    assert site.ask("POST", "/api/v1/runs/old/exports", json={"format": "q4_k_m"}).status_code == 409
    assert site.ask("POST", "/api/v1/runs/old/exports", json={"format": "q8_0"}).status_code == 422
    assert site.ask("POST", "/api/v1/runs/nobody/exports", json={"format": "q4_k_m"}).status_code == 404


def test_settings_name_the_file_of_the_token_and_never_the_token(site: Site) -> None:
    html = read(site, "/settings")
    assert str(site.store.private / "token") in html.replace("<wbr>", "")
    assert site.access.token not in html


def test_the_wall_offers_nothing_to_press(site: Site) -> None:
    html = read(site, "/wall")
    assert "All quiet" in words(html)
    assert re.findall(r"<(?:form|button|input|select|textarea)", html) == []
