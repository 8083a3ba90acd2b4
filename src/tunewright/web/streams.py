"""What goes on for ever, as server-sent events: the events of a run, and the changes of all jobs.

Every event has an id: for a run the place in `events.jsonl` after it, for jobs the number of the change. A client that
comes back with `Last-Event-ID` gets everything after it, and nothing twice.
"""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import IO, Any

from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse

from tunewright.errors import TunewrightError
from tunewright.jobs.store import Store
from tunewright.web.chats import Chat
from tunewright.web.guard import problem
from tunewright.web.runs import Runs

SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_LOOKS_AT_A_CHAT = 0.1
SECONDS_BETWEEN_SIGNS_OF_LIFE = 15.0
BYTES_AT_ONCE = 1 << 18
MOST_STREAMS = 200
BEGUN_ANEW = "event: begun-anew\nid: 0\ndata: {}\n\n"


class Streams:
    """The streams that are open now; `close` ends them all at once, so that no client holds up a stop."""

    def __init__(self, store: Store, runs: Runs) -> None:
        self.store = store
        self.runs = runs
        self.count = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        self._closing.set()

    @property
    def is_full(self) -> bool:
        return self.count >= MOST_STREAMS

    async def of_run(self, name: str, after: int) -> AsyncIterator[str]:
        """The events of a run from the place `after` on."""
        place = after
        async for _ in self._looks():
            lines, place = self._lines_of(name, place)
            while lines:
                yield lines
                lines, place = self._lines_of(name, place)

    async def of_jobs(self, after: int) -> AsyncIterator[str]:
        """The changes of state of all jobs after the one with the number `after`."""
        last = after
        if last > self._newest_change():
            last = 0
            yield BEGUN_ANEW
        async for _ in self._looks():
            while changes := self._changes(last):
                last = changes[-1]["id"]
                yield "".join(event(change["id"], json.dumps(change)) for change in changes)

    async def of_chat(self, chat: Chat, after: int) -> AsyncIterator[str]:
        """The events of a chat after the one with the number `after`, until it is closed."""
        told = after if after <= len(chat.events) else 0
        async for _ in self._looks(SECONDS_BETWEEN_LOOKS_AT_A_CHAT):
            is_closed, new = chat.state == "closed", chat.events[told:]
            if new:
                yield "".join(event(told + number, json.dumps(each)) for number, each in enumerate(new, start=1))
                told += len(new)
            if is_closed:
                return

    async def _looks(self, seconds: float = SECONDS_BETWEEN_LOOKS) -> AsyncIterator[None]:
        self.count += 1
        try:
            while not self._closing.is_set():
                yield
                try:
                    async with asyncio.timeout(seconds):
                        await self._closing.wait()
                except TimeoutError:
                    continue
        finally:
            self.count -= 1

    def _newest_change(self) -> int:
        try:
            return self.store.newest_change()
        except TunewrightError:
            return 2**53

    def _changes(self, last: int) -> list[dict[str, Any]]:
        try:
            return self.store.changes_since(last)
        except TunewrightError:
            return []

    def _lines_of(self, name: str, place: int) -> tuple[str, int]:
        """The whole lines after `place`, as events, and the place after them."""
        try:
            with self.runs.opened(name, "events.jsonl") as file:
                if not follows_a_line(file, place):
                    return BEGUN_ANEW, 0
                block = file.read(BYTES_AT_ONCE)
                while b"\n" not in block and (more := file.read(BYTES_AT_ONCE)):
                    block += more
        except TunewrightError:
            return "", place
        whole = block[: block.rfind(b"\n") + 1]
        events = []
        for line in whole.splitlines(keepends=True):
            place += len(line)
            events.append(event(place, plain_json(line)))
        return "".join(events), place


def follows_a_line(file: IO[bytes], place: int) -> bool:
    """Whether a line ends just before the place, or it is the beginning; the file is then read from there."""
    if place == 0:
        return True
    file.seek(place - 1)
    return file.read(1) == b"\n"


def event(number: int, data: str) -> str:
    return f"id: {number}\ndata: {data}\n\n"


def plain_json(line: bytes) -> str:
    """The line as JSON that a browser reads: a loss that is not finite is null. What is no JSON is null, too."""
    try:
        return json.dumps(finite(json.loads(line)))
    except (ValueError, RecursionError):
        return "null"


def finite(value: Any) -> Any:
    """The same data with null where a number is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


async def with_signs_of_life(stream: AsyncIterator[str]) -> AsyncIterator[str]:
    """The stream, with a comment where nothing is said for long, so that a lost client is noticed."""
    following = asyncio.ensure_future(anext(stream, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=SECONDS_BETWEEN_SIGNS_OF_LIFE)
            if not done:
                yield ": still here\n\n"
                continue
            text = following.result()
            if text is None:
                return
            yield text
            following = asyncio.ensure_future(anext(stream, None))
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration):
            await following


def streamed(streams: Streams, begin: Callable[[], Any]) -> Response:
    if streams.is_full:
        return JSONResponse(problem("streams", "too many are open", mend="Close one."), HTTPStatus.SERVICE_UNAVAILABLE)
    return StreamingResponse(with_signs_of_life(begin()), media_type="text/event-stream")
