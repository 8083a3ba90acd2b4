"""All runs, filtered; and some beside each other: their curves, their figures, and where their recipes differ."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from tunewright.errors import JobNotFoundError, UsageError
from tunewright.jobs.job import ACTIVE
from tunewright.report import numbers
from tunewright.report.head import metric_label
from tunewright.web.curves import curves_of
from tunewright.web.pages.frame import Center, View, page, part
from tunewright.web.runs import NAME, Runs, RunSummary

SHOWN = 50
MOST_COMPARED = 6
STATES = ("at work", "pass", "fail", "unfinished")
RunNames = Annotated[list[Annotated[str, Query(pattern=NAME)]], Query(alias="run", max_length=MOST_COMPARED)]
Words = Annotated[str, Query(max_length=100)]
Place = Annotated[int, Query(ge=0, le=2**53)]


def run_list_routes(center: Center) -> APIRouter:
    router = APIRouter()

    @router.get("/runs")
    def all_runs(text: Words = "", state: Words = "", after: Place = 0) -> Response:
        return page("runs.html.j2", "Runs", "/runs", **list_view(center, text, state, after))

    @router.get("/parts/runs")
    def some_runs(text: Words = "", state: Words = "", after: Place = 0) -> Response:
        return part("run_rows.html.j2", **list_view(center, text, state, after))

    @router.get("/compare")
    def compare(names: RunNames = []) -> Response:  # noqa: B006 - FastAPI copies it
        if len(names) < 2:
            raise UsageError(
                "runs", f"{numbers.plural(len(names), 'run')} chosen", "two or more", "Tick them in the list."
            )
        return page("compare.html.j2", "Compare", "/runs", **compare_view(center.runs, names))

    return router


def list_view(center: Center, text: str, state: str, after: int) -> View:
    """One page of the runs whose name has `text` in it and that are in `state`."""
    working = at_work(center)
    found = [run for run in center.runs.all() if text.lower() in run.name.lower()]
    if state:
        found = [run for run in found if state_of(run, working) == state]
    shown = found[after : after + SHOWN]
    return {
        "rows": [row_view(center.runs, run, state_of(run, working)) for run in shown],
        "total": len(found),
        "text": text,
        "state": state,
        "states": STATES,
        "after": after,
        "more": after + SHOWN if after + SHOWN < len(found) else None,
    }


def at_work(center: Center) -> set[str]:
    marks = ", ".join("?" * len(ACTIVE))
    jobs = center.store.jobs(f"WHERE state IN ({marks})", ACTIVE)
    return {job.run_dir.name for job in jobs if job.state != "queued"}


def state_of(run: RunSummary, working: set[str]) -> str:
    return "at work" if run.name in working else run.verdict


def row_view(runs: Runs, run: RunSummary, state: str) -> View:
    train = runs.facts(run.name, "train") if "train" in run.stages else {}
    return {
        "name": run.name,
        "state": "running" if state == "at work" else state,
        "last_stage": run.last_stage,
        "changed": run.changed,
        "base": base_name(train.get("base")),
        "best_eval_loss": train.get("best_eval_loss"),
    }


def base_name(base: object) -> str:
    """The last part of a base's name, as it is spoken of."""
    return str(base or "").removeprefix("embedded:").rstrip("/").rsplit("/", 1)[-1]


def compare_view(runs: Runs, names: Sequence[str]) -> View:
    names = list(dict.fromkeys(names))
    for name in names:
        runs.summary(name)
    return {
        "names": names,
        "curves": json.dumps([{"name": name, **curves_if_any(runs, name)} for name in names]),
        "figures": figure_rows(runs, names),
        "differences": recipe_differences(runs, names),
    }


def curves_if_any(runs: Runs, name: str) -> dict[str, Any]:
    with suppress(JobNotFoundError):
        return curves_of(runs, name)
    return {"steps": [], "evaluations": []}


def figure_rows(runs: Runs, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """What came of each run, one figure a row."""
    train = [runs.facts(name, "train") for name in names]
    results = [runs.read_if_there(name, "evaluate", "results.json") for name in names]
    rows = [
        ("held-out loss, best", [numbers.decimal(facts.get("best_eval_loss")) for facts in train]),
        ("train loss, last", [numbers.decimal(facts.get("final_loss")) for facts in train]),
        ("steps", [numbers.count(facts.get("optimizer_steps")) for facts in train]),
        ("training", [numbers.duration(facts.get("seconds")) for facts in train]),
    ]
    tables = [scores(result) for result in results]
    for metric in dict.fromkeys(name for table in tables for name in table):
        rows.append((metric_label(metric), [table.get(metric, numbers.NONE) for table in tables]))
    return [(name, values) for name, values in rows if any(value != numbers.NONE for value in values)]


def scores(results: dict[str, Any]) -> dict[str, str]:
    """The tuned model's score by metric."""
    found = {}
    with suppress(KeyError, TypeError, AttributeError):
        for metric in results["metrics"]:
            if score := metric["scores"].get("merged"):
                found[str(metric["name"])] = numbers.percent(score["value"])
    return found


def recipe_differences(runs: Runs, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The keys in which the recipes differ, with the value in each."""
    recipes = [runs.recipe(name) for name in names]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if key != "name")
    rows = [(key, [as_text(recipe.get(key)) for recipe in recipes]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def as_text(value: object) -> str:
    if value is None:
        return numbers.NONE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
