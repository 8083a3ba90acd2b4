"""Webhooks: what is sent, that nothing is lost or doubled, and that no secret is told; and streams that are resumed."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from jobs_bench import add
from tunewright.errors import UsageError
from tunewright.jobs.job import Outcome
from tunewright.jobs.store import Store
from tunewright.web.runs import Runs
from tunewright.web.streams import Streams
from tunewright.web.webhooks import Announcer, Webhook, parse_webhook

SECRET = "https://hooks.example/services/T0/SECRET"  # noqa: S105 - an address made up
HOOK = Webhook("json", SECRET)
HOME = "http://127.0.0.1:7860"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def announcer(store: Store, answer: Callable[[httpx.Request], httpx.Response], *hooks: Webhook) -> Announcer:
    return Announcer(store, hooks or (HOOK,), HOME, httpx.Client(transport=httpx.MockTransport(answer)))


def end(store: Store, name: str, state: str, reason: str = "") -> None:
    add(store, name)
    attempt = store.claim(["cpu"])
    assert attempt is not None
    store.finish(attempt, Outcome(state, reason))  # type: ignore[arg-type]


def test_what_needs_to_be_known_is_told_once_and_the_rest_is_not(store: Store) -> None:
    sent: list[dict[str, object]] = []

    def take(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200)

    end(store, "before", "done")
    told = announcer(store, take)
    end(store, "one", "done")
    end(store, "two", "gate", "leakage")
    end(store, "three", "stopped")
    told.round()
    told.round()
    assert [(item["name"], item["state"], item["run"]) for item in sent] == [
        ("one", "done", f"{HOME}/runs/one"),
        ("two", "gate", f"{HOME}/runs/two"),
    ]
    announcer(store, take).round()
    assert len(sent) == 2


def test_what_was_not_taken_is_sent_again_after_a_restart_and_in_order(store: Store) -> None:
    sent: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no")

    told = announcer(store, refuse)
    end(store, "one", "done")
    end(store, "two", "failed")
    told.round()
    assert told.problems == ["Webhook json at hooks.example: it could not be reached (ConnectError)."]

    def take(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content)["name"])
        return httpx.Response(204)

    later = announcer(store, take)
    later.round()
    assert sent == ["one", "two"]
    assert later.problems == []


def test_a_hook_that_does_not_answer_is_left_alone_for_a_while(store: Store) -> None:
    tries: list[int] = []

    def busy(request: httpx.Request) -> httpx.Response:
        tries.append(1)
        return httpx.Response(503)

    told = announcer(store, busy)
    end(store, "one", "done")
    for _ in range(5):
        told.round()
    assert len(tries) == 1


def test_a_hook_that_refuses_for_good_does_not_hold_up_what_follows(store: Store) -> None:
    sent: list[str] = []

    def gone(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content)["name"])
        return httpx.Response(404)

    told = announcer(store, gone)
    end(store, "one", "done")
    end(store, "two", "done")
    told.round()
    assert sent == ["one", "two"]
    assert told.problems == ["Webhook json at hooks.example: it answered 404."]


def test_no_redirect_is_followed(store: Store) -> None:
    asked: list[str] = []

    def redirect(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(307, headers={"location": "http://169.254.169.254/"})

    told = announcer(store, redirect)
    end(store, "one", "done")
    told.round()
    assert asked == ["hooks.example"]


@pytest.mark.parametrize("form", ["slack", "discord", "ntfy"])
def test_a_name_makes_no_mention_and_no_link_of_itself(store: Store, form: str) -> None:
    bodies: list[bytes] = []

    def take(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return httpx.Response(200)

    told = announcer(store, take, Webhook(form, SECRET))  # type: ignore[arg-type]
    store.add("<!channel> @everyone", "data: x", store.root / "run")
    attempt = store.claim(["cpu"])
    assert attempt is not None
    store.finish(attempt, Outcome("failed", "<http://evil.example|click>"))
    told.round()
    text = bodies[0].decode()
    assert f"{HOME}/runs/run" in text
    if form == "slack":
        assert "<" not in json.loads(text)["text"]
    if form == "discord":
        assert json.loads(text)["allowed_mentions"] == {"parse": []}


@pytest.mark.parametrize(
    "text", ["teams=https://x.example/SECRET", "slack=file:///SECRET", "SECRET", "", "slack=https://"]
)
def test_an_address_that_cannot_be_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_webhook(text)
    assert "SECRET" not in str(refused.value)


def test_an_address_may_stand_alone_or_with_its_form() -> None:
    assert parse_webhook(SECRET) == HOOK
    assert parse_webhook(f"slack={SECRET}?a=b") == Webhook("slack", f"{SECRET}?a=b")
    assert "SECRET" not in HOOK.shown


def test_the_secret_is_not_in_the_store(store: Store) -> None:
    announcer(store, lambda request: httpx.Response(200)).round()
    assert "SECRET" not in (store.private / "webhooks.json").read_text()


# Streams that are resumed


def first(stream: AsyncIterator[str]) -> str:
    async def take() -> str:
        return await anext(stream)

    return asyncio.run(take())


@pytest.mark.parametrize("place", [3, 10_000])
def test_an_id_that_a_run_never_gave_begins_anew(store: Store, place: int) -> None:
    run = store.root / "run"
    run.mkdir()
    (run / "events.jsonl").write_text('{"kind": "note", "text": "one"}\n{"kind": "note", "text": "two"}\n')
    text = first(Streams(store, Runs(store.root)).of_run("run", place))
    assert text.startswith("event: begun-anew\n")


def test_an_id_at_the_end_of_a_line_gives_what_follows(store: Store) -> None:
    run = store.root / "run"
    run.mkdir()
    (run / "events.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    assert first(Streams(store, Runs(store.root)).of_run("run", 9)) == 'id: 18\ndata: {"n": 2}\n\n'


def test_an_id_that_the_jobs_never_gave_begins_anew(store: Store) -> None:
    add(store, "one")
    streams = Streams(store, Runs(store.root))
    assert first(streams.of_jobs(99)).startswith("event: begun-anew\n")
    assert first(streams.of_jobs(0)).startswith("id: 1\n")
