"""The one stream of progress of a run: `events.jsonl`, one JSON object per line.

Every line has `time` (seconds since the epoch), `stage` and `kind`; the other keys depend on the kind:

    stage_started, stage_skipped, stage_finished (seconds)
    progress (done, total, unit, per_second, seconds_left)
    metric   (step and any of loss, eval_loss, learning_rate, grad_norm, tokens_per_second, ...)
    sample   (step, prompt, answer): a fixed prompt answered at an evaluation
    evidence (the fields of an Evidence)
    note, warning (text)

A process that is killed may leave a half-written last line; it is cut off before the next line is written.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunewright.evidence import Evidence

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Events:
    """Writes events to a file and hands each to the listeners; `stage` names the stage that is at work.

    Args:
        path: the JSONL file to append to, or None to keep nothing.
        listeners: called with each event, in order.
    """

    def __init__(self, path: Path | None = None, listeners: tuple[Listener, ...] = ()) -> None:
        self.path = path
        self.listeners = listeners
        self.stage = ""
        if path is not None:
            cut_half_written_line(path)

    def emit(self, kind: str, **fields: Any) -> None:
        event: Event = {"time": round(time.time(), 3), "stage": self.stage, "kind": kind, **fields}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event, ensure_ascii=False, allow_nan=True) + "\n")
        for listener in self.listeners:
            listener(event)

    def note(self, text: str) -> None:
        self.emit("note", text=text)

    def warning(self, text: str) -> None:
        self.emit("warning", text=text)

    def evidence(self, item: Evidence) -> None:
        self.emit("evidence", **item.as_json())

    def progress(self, unit: str, total: int, done: int = 0) -> "Progress":
        return Progress(self, unit, total, done)


class Progress:
    """Counts work and emits a progress event at most twice a second, and always at the end.

    Args:
        events: where to emit.
        unit: what is counted, in the plural: `rows`, `steps`, `tensors`, `bytes`.
        total: how many there are.
        done: how many were done before, by an earlier process; speed is counted from here.
    """

    SECONDS_BETWEEN = 0.5

    def __init__(self, events: Events, unit: str, total: int, done: int = 0) -> None:
        self.events = events
        self.unit = unit
        self.total = total
        self.done = done
        self._done_at_start = done
        self._started = time.monotonic()
        self._last_emitted = 0.0

    def advance(self, count: int = 1) -> None:
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        self.done = done
        now = time.monotonic()
        if self.done < self.total and now - self._last_emitted < self.SECONDS_BETWEEN:
            return
        self._last_emitted = now
        elapsed = max(now - self._started, 1e-9)
        per_second = (self.done - self._done_at_start) / elapsed
        self.events.emit(
            "progress",
            unit=self.unit,
            done=self.done,
            total=self.total,
            per_second=round(per_second, 3),
            seconds_left=round((self.total - self.done) / per_second, 1) if per_second > 0 else None,
        )


def read_events(path: Path) -> Iterator[Event]:
    """The events of a file, without a half-written last line."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def cut_half_written_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            file.truncate(whole)
