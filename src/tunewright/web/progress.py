"""How far a run is, from the end of its `events.jsonl`: a few kilobytes, however long the file is."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tunewright.errors import TunewrightError
from tunewright.web.runs import Runs

BYTES_OF_THE_END = 1 << 16


@dataclass(frozen=True)
class Progress:
    """The stage at work and how far it is.

    Attributes:
        share: from 0 to 1; None where the stage counts nothing.
        seconds_left: of the stage; None if that is not known.
        step, loss: the last step that was trained, if any was lately.
    """

    stage: str
    share: float | None = None
    words: str = ""
    seconds_left: float | None = None
    step: int | None = None
    loss: float | None = None


def progress_of(runs: Runs, name: str) -> Progress | None:
    """The progress of a run; None before it has said anything."""
    return progress_in(last_events(runs, name))


def progress_in(given: Iterable[dict[str, Any]]) -> Progress | None:
    """The progress that events tell, the oldest first."""
    events = list(given)
    stage = next((str(event["stage"]) for event in reversed(events) if event.get("stage")), "")
    if not stage:
        return None
    own = [event for event in events if event.get("stage") == stage]
    begun = max((index for index, event in enumerate(own) if event["kind"] == "stage_started"), default=0)
    trained = last_of([event for event in own[begun:] if "loss" in event], "metric")
    counted = caught_up(last_of(own[begun:], "progress"), trained.get("step"))
    return Progress(
        stage,
        share_of(counted),
        f"{counted['done']:,} of {counted['total']:,} {counted['unit']}" if share_of(counted) is not None else "",
        counted.get("seconds_left"),
        trained.get("step"),
        trained.get("loss"),
    )


def caught_up(counted: dict[str, Any], step: object) -> dict[str, Any]:
    """The count, which is told twice a second at most, as of the last step that was told of."""
    if counted.get("unit") != "steps" or not isinstance(step, int) or not counted["done"] < step <= counted["total"]:
        return counted
    return {**counted, "done": step}


def share_of(counted: dict[str, Any]) -> float | None:
    total = counted.get("total")
    return counted["done"] / total if isinstance(total, int) and total > 0 else None


def last_of(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((event for event in reversed(events) if event["kind"] == kind), {})


def last_events(runs: Runs, name: str) -> list[dict[str, Any]]:
    """The whole events at the end of the file; what is no event is left out."""
    try:
        with runs.opened(name, "events.jsonl") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - BYTES_OF_THE_END))
            block = file.read(BYTES_OF_THE_END)
    except TunewrightError:
        return []
    lines = block.split(b"\n")[1 if size > BYTES_OF_THE_END else 0 : -1]
    return [event for event in map(event_of, lines) if event is not None]


def event_of(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and "kind" in event else None
