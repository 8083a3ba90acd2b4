"""The sections that compare: every artifact with the recorded canaries, the tuned model with its base.

In goes what the run holds, out come plain dictionaries for the page. It always holds that a figure is judged by the
limit that was recorded with it, and that one without a limit is shown without a verdict.
"""

import json
from typing import Any

from tunewright.report import charts, numbers
from tunewright.report.contents import Contents
from tunewright.report.head import metric_label

View = dict[str, Any]
SHOWN_ROWS = 3
CEILINGS = ("mean_kl", "degenerate_answers")
PARITY_COLUMNS = (
    ("prompt_ids_equal", "Prompt ids", numbers.percent),
    ("top1_agreement", "Top-1", numbers.percent),
    ("mean_kl", "Mean KL", numbers.decimal),
    ("greedy_agreement", "Greedy", numbers.percent),
    ("degenerate_answers", "Degenerate", numbers.count),
)


def parity_view(contents: Contents) -> View:
    """A table of engines against figures, and the canaries' texts."""
    verified = contents.json("verify", "verify.json")
    return {
        "columns": [title for _, title, _ in PARITY_COLUMNS],
        "engines": [_engine_row(engine) for engine in verified["engines"]],
        "canaries": [_canary(one) for one in verified["canaries"]],
    }


def _engine_row(engine: View) -> View:
    limits = {"prompt_ids_equal": 1.0, **(engine.get("limits") or {})}
    cells = []
    for key, _, shown in PARITY_COLUMNS:
        value, limit = engine.get(key), limits.get(key)
        cells.append(
            {
                "value": shown(value),
                "limit": f"{'≤' if key in CEILINGS else '≥'} {_limit_text(key, limit)}" if limit is not None else "",
                "holds": limit is None or _holds(key, value, limit),
            }
        )
    holds = all(cell["holds"] for cell in cells)
    return {"name": engine["engine"], "artifact": engine["artifact"], "cells": cells, "holds": holds}


def _limit_text(key: str, limit: float) -> str:
    return f"{limit:g}" if key in CEILINGS else f"{limit * 100:.3g}{numbers.NARROW_SPACE}%"


def _holds(key: str, value: float | None, limit: float) -> bool:
    if value is None:
        return False
    return value <= limit if key in CEILINGS else value >= limit


def _canary(canary: View) -> View:
    answers = [
        {"engine": engine, "text": text, "same": text == canary["recorded"]}
        for engine, text in canary["answers"].items()
    ]
    return {**canary, "answers": answers, "same": all(one["same"] for one in answers)}


def formats_view(contents: Contents) -> View:
    """Each GGUF format with its size, what it costs, and its use."""
    rows = [
        {
            "name": each["name"],
            "size": numbers.size(each["bytes"]),
            "ratio": numbers.percent(each["size_ratio"]),
            "kl": numbers.decimal(each["mean_kl"]),
            "top1": numbers.percent(each["top1"]),
            "score": each["score"]
            and {"value": numbers.percent(each["score"]["value"]), "span": _interval(each["score"])},
            "use": each["use"],
            "failed": bool(each["failed"]),
        }
        for each in contents.certificate["formats"]
    ]
    return {"rows": rows}


def evaluation_view(contents: Contents) -> View:
    """Metrics of each system with their intervals, and the rows with the highest and the lowest scores."""
    results = contents.json("evaluate", "evaluate/results.json")
    systems = _systems(results)
    exact = {one["name"].removeprefix("exact:") for one in results["metrics"] if one["name"].startswith("exact:")}
    best, worst = best_and_worst(results["answers"])
    return {
        "rows": results["rows"],
        "is_json": results["kind"] == "json",
        "systems": [system_name(system) for system in systems],
        "chart": _metrics_chart(results["metrics"], systems) if results["metrics"] else "",
        "metrics": [_metric_row(metric, systems, results["headline"]) for metric in results["metrics"]],
        "best": [_answer(row, systems, exact) for row in best],
        "worst": [_answer(row, systems, exact) for row in worst],
    }


def _systems(results: View) -> list[str]:
    """Base and merged first, then the formats in the order of the file."""
    found = list(dict.fromkeys(name for metric in results["metrics"] for name in metric["scores"]))
    return sorted(found, key=lambda name: {"base": 0, "merged": 1}.get(name, 2))


def system_name(system: str) -> str:
    return {"base": "base", "merged": "tuned"}.get(system, f"GGUF {system}")


def _metrics_chart(metrics: list[View], systems: list[str]) -> Any:
    items = [
        charts.Whisker(metric_label(metric["name"]), system_name(system), score["value"], score["low"], score["high"])
        for metric in metrics
        for system in systems
        if (score := metric["scores"].get(system))
    ]
    return charts.whiskers("metrics", "Base against tuned, with 95 % intervals", items)


def _metric_row(metric: View, systems: list[str], headline: str) -> View:
    scores = [metric["scores"].get(system) for system in systems]
    difference = metric.get("difference")
    return {
        "gain": difference and {"value": f"{difference['value'] * 100:+.1f}", "interval": _interval(difference)},
        "label": metric_label(metric["name"]),
        "headline": metric["name"] == headline,
        "scores": [
            {
                "value": numbers.percent(score["value"]),
                "interval": _interval(score),
            }
            if score
            else None
            for score in scores
        ],
    }


def _interval(score: View) -> str:
    return f"{score['low'] * 100:.0f} to {score['high'] * 100:.0f}"


def best_and_worst(answers: list[View]) -> tuple[list[View], list[View]]:
    """The rows that the tuned model answered best (the largest gain over the base first) and worst; none twice."""

    def rank(answer: View) -> tuple[float, float]:
        tuned, base = (float(answer["score"].get(name) or 0.0) for name in ("merged", "base"))
        return tuned, tuned - base

    ranked = sorted(answers, key=rank, reverse=True)
    half = (len(ranked) + 1) // 2
    best = ranked[: min(SHOWN_ROWS, half)]
    worst = ranked[len(best) :][-SHOWN_ROWS:]
    return best, worst[::-1]


def _answer(row: View, systems: list[str], exact: set[str]) -> View:
    target = _json_object(row["target"])
    cards = [{"name": "target", "score": "", **_card(row["target"], target, target, exact)}]
    for system in systems:
        text = row["answers"].get(system)
        if text is not None:
            score = row["score"].get(system)
            card = _card(text, _json_object(text), target, exact)
            cards.append({"name": system_name(system), "score": numbers.percent(score), **card})
    return {"id": row["id"], "prompt": row["prompt"], "cards": cards}


def _json_object(text: str) -> View | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _card(text: str, data: View | None, target: View | None, exact: set[str]) -> View:
    """An answer as fields with a mark each, or as text if either side is no JSON object."""
    if target is None or data is None:
        return {"text": text, "fields": [], "broken": target is not None and data is None}
    names = dict.fromkeys([*target, *data])
    return {"text": "", "fields": [_field(name, data, target, name in exact) for name in names], "broken": False}


def _field(name: str, data: View, target: View, is_exact: bool) -> View:
    value = data.get(name, "(missing)")
    same = name in data and name in target and data[name] == target[name]
    mark = "same" if same else "differs" if is_exact or name not in data or name not in target else "reworded"
    return {
        "name": name,
        "text": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
        "mark": mark,
    }
