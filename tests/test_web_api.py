"""The API: what it answers, asked in process."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from jobs_bench import add, finish_all
from tunewright.jobs.job import Outcome
from web_bench import Site


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    return path


def make_run(site: Site, name: str) -> Path:
    """A finished run, as far as it can be seen from outside."""
    run = site.store.root / name
    (run / "manifests").mkdir(parents=True)
    for stage in ("data", "report"):
        (run / f"manifests/{stage}.json").write_text("{}")
    (run / "certificate.json").write_text('{"verdict": "pass", "loss": NaN}')
    (run / "recipe.yaml").write_text("data: rows.jsonl\n")
    (run / "report.html").write_text("<script>alert(1)</script>")
    (run / "events.jsonl").write_text('{"kind": "note"}\n')
    return run


def test_a_job_is_queued_from_a_recipe_and_can_be_looked_at(site: Site, rows: Path) -> None:
    answer = site.ask("POST", "/api/v1/jobs", json={"recipe": {"data": str(rows), "lr": 0.01}, "priority": 3})
    assert answer.status_code == 201
    job = site.ask("GET", f"/api/v1/jobs/{answer.json()['id']}").json()
    assert (job["state"], job["priority"], job["name"]) == ("queued", 3, "run")
    assert "learning_rate: 0.01" in job["recipe"]
    assert [item["state"] for item in job["history"]] == ["queued"]


def test_the_same_recipe_twice_is_two_runs(site: Site, rows: Path) -> None:
    for name in ("run", "run-2"):
        answer = site.ask("POST", "/api/v1/jobs", json={"recipe": {"data": str(rows)}})
        assert answer.json()["run_dir"] == str(site.store.root / name)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"recipe": {"data": "rows.jsonl"}}, "a relative path"),
        ({"recipe": {"data": "/nowhere/rows.jsonl"}}, "no such file"),
        ({"recipe": {"data": "/\0"}}, "zero byte"),
        ({"recipe": {"data": "/etc/hosts", "lerning_rate": 1}}, "unknown recipe key"),
        ({"recipe": {"data": "/etc/hosts"}, "name": "../up"}, "name"),
        ({"recipe": {"data": "/etc/hosts"}, "needs": [99]}, "no such job"),
        ({"recipe": {}}, "no file with training rows"),
        ({"recipe": {"data": "/etc/hosts"}, "priority": 10**400}, "priority"),
        ({"recipe": {"data": "/etc/hosts"}, "more": 1}, "more"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_in_words(site: Site, body: dict[str, Any], words: str) -> None:
    answer = site.ask("POST", "/api/v1/jobs", json=body)
    assert answer.status_code in {404, 422}
    assert words in answer.text
    assert site.store.jobs() == []


def test_jobs_are_listed_in_pages_and_by_state(site: Site) -> None:
    for index in range(5):
        add(site.store, f"job{index}")
    site.store.want(2, "cancel")
    first = site.ask("GET", "/api/v1/jobs?limit=2").json()
    assert [job["id"] for job in first] == [5, 4]
    assert [job["id"] for job in site.ask("GET", "/api/v1/jobs?limit=9&before=4").json()] == [3, 2, 1]
    assert [job["id"] for job in site.ask("GET", "/api/v1/jobs?state=cancelled").json()] == [2]


def test_a_job_is_stopped_retried_and_moved_up(site: Site) -> None:
    add(site.store, "one")
    assert site.ask("POST", "/api/v1/jobs/1/stop", json={}).json()["state"] == "stopped"
    assert site.ask("POST", "/api/v1/jobs/1/stop", json={}).status_code == 409
    assert site.ask("POST", "/api/v1/jobs/1/retry", json={"accept": ["leakage"]}).json()["state"] == "queued"
    assert site.ask("PATCH", "/api/v1/jobs/1", json={"priority": 7}).json()["priority"] == 7
    assert site.ask("POST", "/api/v1/jobs/9/cancel", json={}).status_code == 404
    assert site.ask("POST", "/api/v1/jobs/1/explode", json={}).status_code == 422


def test_a_log_is_read_piece_by_piece_without_terminal_escapes(site: Site) -> None:
    job = add(site.store, "one", "exit 1")
    finish_all(site.board.scheduler)
    path = site.store.log_path(job.id, 1)
    path.write_text("\x1b]0;title\x07loss 0.5\r\n<script>\n")
    piece = site.ask("GET", "/api/v1/jobs/1/log").json()
    assert piece["text"] == "]0;titleloss 0.5\n<script>\n"
    assert site.ask("GET", f"/api/v1/jobs/1/log?after={piece['next']}").json() == {"text": "", "next": piece["next"]}
    assert site.ask("GET", "/api/v1/jobs/1/log?attempt=7").status_code == 404


def test_runs_are_listed_with_their_verdict(site: Site) -> None:
    make_run(site, "good")
    (site.store.root / "begun").mkdir()
    answer = site.ask("GET", "/api/v1/runs").json()
    assert answer["total"] == 2
    assert {run["name"]: run["verdict"] for run in answer["runs"]} == {"good": "pass", "begun": "unfinished"}
    assert site.ask("GET", "/api/v1/runs/good").json()["last_stage"] == "report"
    assert site.ask("GET", "/api/v1/runs/good/certificate").json() == {"verdict": "pass", "loss": None}


def test_a_report_may_do_nothing_but_be_looked_at(site: Site) -> None:
    make_run(site, "good")
    answer = site.ask("GET", "/api/v1/runs/good/report")
    assert answer.headers["content-security-policy"].startswith(
        "sandbox allow-scripts; default-src 'none'; script-src 'sha256-"
    )


def test_the_status_counts_jobs_and_says_what_needs_attention(site: Site) -> None:
    add(site.store, "one")
    attempt = site.store.claim(["cpu"])
    assert attempt is not None
    site.store.finish(attempt, Outcome("gate", "leakage"))
    site.board.update()
    status = site.ask("GET", "/api/v1/status").json()
    assert status["jobs"]["gate"] == 1
    assert status["needs_attention"] == ["1 jobs stopped at a gate: accept what failed, or mend it."]
    assert 'tunewright_jobs{state="gate"} 1' in site.ask("GET", "/metrics").text


def test_a_full_disk_is_told_and_is_no_fault_of_the_request(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: object, **options: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("tunewright.jobs.store.insert_job", full)
    answer = site.ask("POST", "/api/v1/jobs", json={"recipe": {"data": "/etc/hosts"}})
    assert answer.status_code == 503
    assert "Free some space" in answer.json()["mend"]


def test_the_document_of_the_api_names_every_route(site: Site) -> None:
    paths = json.loads(site.ask("GET", "/api/v1/openapi.json").text)["paths"]
    assert {"/api/v1/status", "/api/v1/jobs", "/api/v1/runs/{name}/events", "/metrics"} <= set(paths)
