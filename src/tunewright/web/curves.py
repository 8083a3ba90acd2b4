"""The curves of a run, out of its `events.jsonl`: losses, learning rate and gradient norm by step.

A run that went back to a checkpoint did some steps again: of each step the last account counts, and what an earlier
attempt did beyond it is left out until it is done again.
"""

from collections.abc import Iterable
from typing import Any

from tunewright.web.progress import event_of
from tunewright.web.runs import Runs
from tunewright.web.streams import finite

MOST_POINTS = 2000
Points = list[dict[str, Any]]


def curves_of(runs: Runs, name: str) -> dict[str, Points]:
    """`steps` and `evaluations`, each at most 2,000 points; empty where nothing was trained yet."""
    with runs.opened(name, "events.jsonl") as file:
        events = (event_of(line) for line in file if b'"metric"' in line and line.endswith(b"\n"))
        steps, evaluations = in_order(event for event in events if event is not None)
    return {"steps": thinned(finite(steps)), "evaluations": finite(evaluations)}


def in_order(events: Iterable[dict[str, Any]]) -> tuple[Points, Points]:
    steps: Points = []
    evaluations: Points = []
    for event in events:
        if event["kind"] != "metric" or not isinstance(event.get("step"), int):
            continue
        if "eval_loss" in event:
            add(evaluations, {key: event[key] for key in ("step", "eval_loss")})
        elif "loss" in event:
            add(steps, {key: event.get(key) for key in ("step", "loss", "learning_rate", "grad_norm")})
    return steps, evaluations


def add(points: Points, point: dict[str, Any]) -> None:
    """Add a point, which takes the place of all from its step on."""
    while points and points[-1]["step"] >= point["step"]:
        points.pop()
    points.append(point)


def thinned(points: Points) -> Points:
    """Every n-th point, and the last."""
    every = -(-len(points) // MOST_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]
