"""The API against its own OpenAPI document: schemathesis asks what the document allows, and a little more.

It is no dependency of tunewright: `pip install schemathesis`. Streams, which have no end, are left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from jobs_bench import add
from report_sample import write_sample_run
from test_web_chat import FAKE_CHAT
from tunewright.web import chats as chats_module
from tunewright.web.looks import Looks
from web_bench import PORT, Site, site_of

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
EXAMPLES = 30
# What these refuse is not in the shape of the body: rows that are not there, values that do not go together.
TAKES_A_RECIPE = {f"POST /api/v1/{name}" for name in ("jobs", "checks", "plans", "recipes")}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A store with a run and two jobs, in which nothing is started."""
    monkeypatch.setattr(chats_module, "CHAT_COMMAND", FAKE_CHAT)
    monkeypatch.setattr(Looks, "_go_on", lambda self: None)
    found = site_of(tmp_path / "store")
    write_sample_run(found.store.root / "old")
    add(found.store, "one")
    add(found.store, "two", needs=(1,))
    found.board.update()
    return found


def positive_data_acceptance() -> Any:
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    return positive_data_acceptance


def operations(site: Site, headers: dict[str, str]) -> Iterator[Any]:
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", site.app, headers=headers)
    for found in schema.exclude(path_regex="/events$").get_all_operations():
        yield found.ok()


def ask_everything(operation: Any, headers: dict[str, str]) -> None:
    """Ask one operation all kinds of things that its document allows, and some that it does not."""
    left_out = [positive_data_acceptance()] if operation.label in TAKES_A_RECIPE else []

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        case.call_and_validate(headers=headers, excluded_checks=left_out)

    ask()


def test_no_request_breaks_the_service_or_the_contract(site: Site) -> None:
    headers = {**site.token, "host": f"127.0.0.1:{PORT}"}
    asked = list(operations(site, headers))
    for operation in asked:
        ask_everything(operation, headers)
    assert len(asked) > 25
