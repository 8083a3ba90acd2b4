"""Tells others when a job is done, failed, or stopped at a gate: as JSON, or as Slack, Discord and ntfy take it.

Each change is sent until it was taken or refused for good, in order, also after a restart: how far a hook came is in
the store. A new hook hears of what happens from now on. The address is as secret as a password: it is kept and shown as
its host alone. No redirect is followed.
"""

import hashlib
import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import httpx

from tunewright.artifacts import read_json, write_json
from tunewright.errors import ArtifactError, TunewrightError, UsageError
from tunewright.jobs.store import Store

Form = Literal["json", "slack", "discord", "ntfy"]
TOLD = {"done": "is done", "failed": "failed", "gate": "stopped at a gate and needs you"}
SECONDS_BETWEEN_ROUNDS = 1.0
SECONDS_TO_ANSWER = 10.0
MOST_SECONDS_BETWEEN_TRIES = 300.0
LONGEST_REASON = 500


@dataclass(frozen=True)
class Webhook:
    form: Form
    url: str

    @property
    def key(self) -> str:
        """What it is known by in the store."""
        return hashlib.sha256(f"{self.form} {self.url}".encode()).hexdigest()[:16]

    @property
    def shown(self) -> str:
        """What may be said of it."""
        return f"{self.form} at {urlsplit(self.url).hostname}"


def parse_webhook(text: str) -> Webhook:
    """`slack=https://…`, `discord=…`, `ntfy=…`, `json=…`, or an address alone for JSON.

    Raises:
        UsageError: the form is unknown, or the address is none of http or https. The message does not repeat it.
    """
    form, separator, url = text.partition("=")
    if not separator or "://" in form:
        form, url = "json", text
    if form not in get_args(Form):
        raise UsageError("--webhook", f"found the form {form[:20]!r}", " | ".join(get_args(Form)))
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return Webhook(form, url)  # type: ignore[arg-type]
    raise UsageError("--webhook", "found no address", "FORM=https://…")


class Announcer:
    """Sends the changes of one store to its hooks.

    Args:
        address: where the pages are, for a link to the run.
        client: what sends; a test gives its own.
    """

    def __init__(
        self, store: Store, hooks: Sequence[Webhook], address: str, client: httpx.Client | None = None
    ) -> None:
        self.store = store
        self.hooks = hooks
        self.address = address
        self.client = client or httpx.Client(timeout=SECONDS_TO_ANSWER, follow_redirects=False)
        self._problems: dict[str, str] = {}
        self._not_before: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._told = self._read()

    @property
    def problems(self) -> list[str]:
        return list(self._problems.values())

    def run_until(self, over: threading.Event) -> None:
        while not over.wait(SECONDS_BETWEEN_ROUNDS):
            self.round()

    def round(self) -> None:
        """Send what is due; what cannot be sent or written down now is tried again later."""
        for hook in self.hooks:
            if time.monotonic() >= self._not_before.get(hook.key, 0.0):
                with suppress(TunewrightError, OSError):
                    self._tell(hook)

    def _tell(self, hook: Webhook) -> None:
        for change in self.store.changes_since(self._told[hook.key]):
            if change["state"] in TOLD and not self._send(hook, change):
                return
            self._told[hook.key] = change["id"]
            write_json(self._path, self._told)

    def _send(self, hook: Webhook, change: dict[str, Any]) -> bool:
        """Whether it was taken, or is never going to be."""
        job = self.store.job(change["job"])
        address = f"{self.address}/runs/{job.run_dir.name}"
        body, kind = payload(hook.form, job.id, job.name, change, address)
        try:
            answer = self.client.post(hook.url, content=body, headers={"content-type": kind})
            problem = "" if answer.is_success else f"it answered {answer.status_code}"
            is_settled = answer.is_success or (answer.is_client_error and answer.status_code not in {408, 425, 429})
        except httpx.HTTPError as error:
            problem, is_settled = f"it could not be reached ({type(error).__name__})", False
        self._note(hook, problem, is_settled)
        return is_settled

    def _note(self, hook: Webhook, problem: str, is_settled: bool) -> None:
        self._problems.pop(hook.key, None)
        tries = 0 if is_settled else self._tries.get(hook.key, 0) + 1
        self._tries[hook.key] = tries
        self._not_before[hook.key] = time.monotonic() + (min(2.0**tries, MOST_SECONDS_BETWEEN_TRIES) if tries else 0.0)
        if problem:
            self._problems[hook.key] = f"Webhook {hook.shown}: {problem}."

    @property
    def _path(self) -> Path:
        return self.store.private / "webhooks.json"

    def _read(self) -> dict[str, int]:
        known: dict[str, Any] = {}
        with suppress(ArtifactError):
            known = read_json(self._path)
        newest = self.store.newest_change()
        told = {hook.key: int(known.get(hook.key, newest)) for hook in self.hooks}
        if self.hooks:
            write_json(self._path, {**known, **told})
        return told


def payload(form: Form, number: int, name: str, change: dict[str, Any], address: str) -> tuple[bytes, str]:
    """The body and its content type; no name can make a mention or a link of itself."""
    reason = change["reason"][:LONGEST_REASON]
    text = f"{name} {TOLD[change['state']]}." + (f" {reason}" if reason else "")
    if form == "json":
        facts = {"job": number, "name": name, "state": change["state"], "reason": reason, "time": change["time"]}
        return as_json({**facts, "run": address})
    if form == "slack":
        plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return as_json({"text": f"{plain}\n{address}"})
    if form == "discord":
        return as_json({"content": f"{text}\n{address}"[:2000], "allowed_mentions": {"parse": []}})
    return f"{text}\n{address}".encode(), "text/plain; charset=utf-8"


def as_json(data: dict[str, Any]) -> tuple[bytes, str]:
    return json.dumps(data, ensure_ascii=False).encode(), "application/json"
