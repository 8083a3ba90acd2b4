"""The pages of the control center over the real application: what they say, and that nothing hostile speaks in them."""

import hashlib
import json
import re
from html import unescape
from importlib.resources import files
from pathlib import Path

import pytest

from jobs_bench import add
from report_sample import write_sample_run
from tunewright.jobs.job import Outcome
from tunewright.web.curves import in_order
from tunewright.web.static_files import PATHS
from web_bench import Site

HTML = {"accept": "text/html"}
HOSTILE = "<img src=x onerror=alert(1)>\"'"


def read(site: Site, path: str, status: int = 200) -> str:
    answer = site.ask("GET", path, headers=HTML)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def words(html: str) -> str:
    """What a person reads, on one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def end(site: Site, state: str, reason: str) -> None:
    attempt = site.store.claim(["cpu"])
    assert attempt is not None
    site.store.finish(attempt, Outcome(state, reason))  # type: ignore[arg-type]


def write_events(site: Site, name: str, *events: dict[str, object]) -> Path:
    run = site.store.root / name
    run.mkdir(exist_ok=True)
    lines = [json.dumps({"time": 1.0, "stage": "train", **event}) for event in events]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n")
    return run


# The frame


def test_a_browser_without_the_cookie_is_asked_for_the_token(site: Site) -> None:
    answer = site.ask("GET", "/", token=False, headers=HTML)
    assert answer.status_code == 401
    assert '<input id="token"' in answer.text
    assert str(site.store.root) not in answer.text


def test_files_that_pages_load_need_no_token_and_nothing_else_is_open(site: Site) -> None:
    for path in PATHS:
        assert site.ask("GET", path, token=False).status_code == 200, path
        assert site.ask("POST", path, token=False, json={}).status_code == 401
    for path in ("/static/", "/static/../api.py", "/static/%2e%2e/guard.py", "/static/nothing.js"):
        assert site.ask("GET", path, token=False).status_code == 401


def test_vendored_files_are_as_they_were_published() -> None:
    vendor = files("tunewright.web") / "static/vendor"
    stated = re.findall(r"`(\S+\.(?:js|css))` \| npm.*`([0-9a-f]{64})`", (vendor / "README.md").read_text())
    assert {name for name, _ in stated} == {"htmx.min.js", "uPlot.iife.min.js", "uPlot.min.css"}
    for name, sha256 in stated:
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == sha256


OWN_PAGES = ("/", "/runs", "/runs/run", "/runs/run/chat", "/runs/run/report", "/compare?run=run&run=other")


@pytest.mark.parametrize("path", OWN_PAGES)
def test_a_page_holds_no_script_no_style_and_no_address_of_another_host(site: Site, path: str) -> None:
    for name in ("run", "other"):
        run = write_sample_run(site.store.root / name)
        (run / "manifests/report.json").write_text("{}")
    html = read(site, path)
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", html) == []
    assert re.findall(r"(?:src|href|action)=\"(?:https?:)?//", html) == []


def test_a_page_that_is_not_there_says_so_in_words(site: Site) -> None:
    assert "there is no such run" in words(read(site, "/runs/nobody", 404))
    assert "Not Found" in words(read(site, "/nowhere", 404))


# Home


def test_home_of_an_empty_store_says_what_to_do_next(site: Site) -> None:
    text = words(read(site, "/"))
    assert "Nothing has run yet" in text
    assert "Nothing needs you" in text
    assert "Begin with your rows" in text


def test_home_tells_what_needs_a_person_and_offers_to_go_on(site: Site) -> None:
    add(site.store, "leaky")
    end(site, "gate", "gate after data: leakage = 3. Mend the cause, or go on knowingly with --accept leakage.")
    html = read(site, "/")
    assert "1 thing needs you" in words(html)
    assert 'data-api="POST /api/v1/jobs/1/retry"' in html
    assert unescape(re.findall(r"data-body='([^']*leakage[^']*)'", html)[0]) == '{"accept": ["leakage"]}'


def test_home_forgets_a_trouble_once_its_run_was_queued_again(site: Site) -> None:
    add(site.store, "one")
    end(site, "failed", "out of luck")
    assert "1 thing needs you" in words(read(site, "/"))
    site.ask("POST", "/api/v1/jobs/1/retry", json={})
    assert "Nothing needs you" in words(read(site, "/"))


def test_home_shows_how_far_a_run_is_and_what_waits(site: Site) -> None:
    add(site.store, "first")
    add(site.store, "second")
    assert site.store.claim(["cpu"]) is not None
    write_events(
        site,
        "first",
        {"kind": "stage_started"},
        {"kind": "metric", "step": 7, "loss": 0.5},
        {"kind": "progress", "done": 7, "total": 28, "unit": "steps", "seconds_left": 90.0},
    )
    text = words(read(site, "/parts/home"))
    assert "1 run at work, 1 waiting" in text
    assert "7 of 28 steps" in text
    assert "loss 0.5 after step 7" in text


def test_the_count_of_steps_does_not_lag_behind_the_loss(site: Site) -> None:
    """Progress is told twice a second, a loss after every step."""
    add(site.store, "first")
    site.store.claim(["cpu"])
    counted = {"kind": "progress", "done": 7, "total": 28, "unit": "steps", "seconds_left": 90.0}
    write_events(site, "first", {"kind": "stage_started"}, counted, {"kind": "metric", "step": 12, "loss": 0.5})
    text = words(read(site, "/parts/home"))
    assert "12 of 28 steps" in text
    assert "loss 0.5 after step 12" in text


def test_names_reasons_and_problems_are_words_and_never_markup(site: Site) -> None:
    site.store.add(HOSTILE, "data: x", site.store.root / "one")
    end(site, "failed", HOSTILE)
    site.board.facts["problems"] = [HOSTILE]
    for path in ("/", "/runs/one"):
        html = read(site, path)
        assert "<img" not in html
        assert "onerror=alert(1)&gt;" in html


# A run


def test_a_run_that_waits_has_a_page_before_it_has_a_directory(site: Site) -> None:
    add(site.store, "one")
    assert "waiting" in words(read(site, "/runs/one"))


def test_the_stages_of_a_run_are_told_as_done_at_work_and_to_come(site: Site) -> None:
    add(site.store, "one")
    site.store.claim(["cpu"])
    write_sample_run(site.store.root / "one", without=("train", "merge", "export", "verify", "evaluate"))
    write_events(site, "one", {"kind": "stage_started"}, {"kind": "progress", "done": 1, "total": 4, "unit": "steps"})
    html = read(site, "/parts/runs/one")
    assert re.findall(r'<li class="([a-z-]+)"', html) == ["done"] * 3 + ["at-work"] + ["to-come"] * 5
    assert "25 %" in words(html)
    assert 'data-api="POST /api/v1/jobs/1/stop"' in html


def test_a_run_without_a_job_shows_its_verdict(site: Site) -> None:
    run = write_sample_run(site.store.root / "old")
    (run / "manifests/report.json").write_text("{}")
    (run / "certificate.json").write_text('{"verdict": "pass"}')
    text = words(read(site, "/runs/old"))
    assert "✓ passed" in text
    assert "Report" in text


def test_there_is_no_page_of_a_report_before_there_is_one(site: Site) -> None:
    write_sample_run(site.store.root / "begun")
    assert "it has no report yet" in words(read(site, "/runs/begun/report", 404))


def test_the_report_is_framed_in_a_sandbox(site: Site) -> None:
    run = write_sample_run(site.store.root / "old")
    (run / "manifests/report.json").write_text("{}")
    (run / "report.html").write_text("<script>alert(1)</script>")
    assert (
        '<iframe class="report" src="/api/v1/runs/old/report" title="Report of old" sandbox="allow-scripts">'
        in read(site, "/runs/old/report")
    )
    policy = site.ask("GET", "/api/v1/runs/old/report").headers["content-security-policy"]
    assert "frame-ancestors 'self'" in policy
    assert re.search(r"script-src 'sha256-[^' ]+';", policy)
    assert "allow-same-origin" not in policy


# All runs


def test_runs_are_found_by_name_and_by_state(site: Site) -> None:
    for name in ("alpha", "beta", "beta-2"):
        (site.store.root / name).mkdir()
    add(site.store, "beta")
    site.store.claim(["cpu"])
    assert "3 runs" in words(read(site, "/runs"))
    assert links(read(site, "/parts/runs?text=BETA")) == {"/runs/beta", "/runs/beta-2"}
    assert links(read(site, "/parts/runs?state=at+work")) == {"/runs/beta"}
    assert "No run is like that" in words(read(site, "/parts/runs?text=%3Cscript%3E"))


def links(html: str) -> set[str]:
    return set(re.findall(r'href="(/runs/[^"?]+)"', html))


def test_runs_come_in_pages(site: Site) -> None:
    for index in range(53):
        (site.store.root / f"run{index}").mkdir()
    first, second = (links(read(site, f"/parts/runs?after={after}")) for after in (0, 50))
    assert (len(first), len(second)) == (50, 3)
    assert not first & second


def test_compared_runs_show_where_their_recipes_differ_and_nothing_else(site: Site) -> None:
    for name in ("one", "two"):
        write_sample_run(site.store.root / name)
    recipe = site.store.root / "two/recipe.yaml"
    changed = recipe.read_text().replace("lora_r: 16", "lora_r: 64")
    recipe.write_text(changed + "system_prompt_for: <b>all</b>\n")
    html = read(site, "/compare?run=one&run=two")
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td>', html))
    different = {key.replace("<wbr>", "") for key in rows} & {"lora_r", "learning_rate", "system_prompt_for"}
    assert different == {"lora_r", "system_prompt_for"}
    assert "&lt;b&gt;all" in html
    assert "<b>" not in html


def test_one_run_cannot_be_compared_and_a_seventh_is_refused(site: Site) -> None:
    assert "Tick them in the list" in words(read(site, "/compare?run=one", 422))
    many = "&".join(f"run=r{index}" for index in range(7))
    assert site.ask("GET", f"/compare?{many}").status_code == 422


# Curves


def test_a_curve_that_went_back_to_a_checkpoint_holds_each_step_once() -> None:
    steps = [1, 2, 3, 4, 3, 4, 5]
    events = [{"kind": "metric", "step": step, "loss": index} for index, step in enumerate(steps)]
    found, evaluations = in_order([*events, {"kind": "metric", "step": 4, "eval_loss": 0.25}])
    assert [(point["step"], point["loss"]) for point in found] == [(1, 0), (2, 1), (3, 4), (4, 5), (5, 6)]
    assert evaluations == [{"step": 4, "eval_loss": 0.25}]


def test_curves_of_a_run_are_thinned_and_finite(site: Site) -> None:
    events = [{"kind": "metric", "step": step, "loss": float("nan") if step == 1 else 0.5} for step in range(1, 5002)]
    write_events(site, "long", *events)
    curves = site.ask("GET", "/api/v1/runs/long/curves").json()
    assert curves["steps"][0] == {"step": 1, "loss": None, "learning_rate": None, "grad_norm": None}
    assert curves["steps"][-1]["step"] == 5001
    assert len(curves["steps"]) <= 2001
    assert site.ask("GET", "/api/v1/runs/nobody/curves").status_code == 404


def test_what_is_no_event_breaks_no_page(site: Site) -> None:
    run = site.store.root / "odd"
    run.mkdir()
    (run / "events.jsonl").write_bytes(b'{"kind": "metric", "step": "x", "loss": 1}\n[1]\n\xff\n{"kind"')
    add(site.store, "odd")
    site.store.claim(["cpu"])
    assert "starting" in words(read(site, "/runs/odd"))
    assert site.ask("GET", "/api/v1/runs/odd/curves").json() == {"steps": [], "evaluations": []}
