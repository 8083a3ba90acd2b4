"""The control center in a real Chromium: from a dropped file to a chat with the tuned model, at two widths.

Playwright drives the Chromium of the machine (`CHROMIUM`, or the one on the path). The check of accessibility takes
axe-core from the file that `TUNEWRIGHT_AXE` names (`npm pack axe-core`); nothing is fetched.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from conftest import TINY_RECIPE
from jobs_bench import add, wait_until
from report_sample import write_sample_run
from tiny_rows import tiny_rows
from tunewright.data.read import Source, read_rows
from tunewright.jobs.job import Outcome
from tunewright.jobs.store import Store
from tunewright.recipe import DataKeys
from tunewright.web.review.rows import Noted, prepare
from web_bench import service

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
SECONDS_OF_A_RUN = 600
# Nothing of the browser's own may call other hosts or wait for them.
CHROMIUM_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
SHOTS = os.environ.get("TUNEWRIGHT_SHOTS")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.skip("there is no chromium on this machine; set CHROMIUM")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def real_service(store: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "tunewright", "up", "--store", str(store), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


class Visitor:
    """A page that is logged in and takes note of what it should not see."""

    def __init__(self, chromium: Any, url: str, token: str, width: str, scheme: str = "light") -> None:
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        self.context = chromium.new_context(viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS_OF_A_RUN * 1000)
        self.url = url
        self.faults: list[str] = []
        self.hosts: set[str | None] = set()
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))
        self.page.goto(url)
        self.page.fill("#token", token)
        self.page.click("text=Come in")
        self.page.wait_for_selector("nav")
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))

    def see(self, name: str) -> None:
        """Nothing is wider than the screen; a picture, if one is wanted."""
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name} is {wide} pixels too wide"
        if SHOTS:
            self.page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))

    def is_content(self) -> None:
        assert self.faults == []
        assert self.hosts <= {"127.0.0.1", None}
        self.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_from_a_dropped_file_to_a_chat_with_the_tuned_model(
    chromium: Any, tiny_base: Path, tmp_path: Path, width: str
) -> None:
    rows = tmp_path / "clerk.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tiny_rows()))
    store = tmp_path / "store"
    with real_service(store) as url:
        visitor = Visitor(chromium, url, (store / ".service/token").read_text(), width)
        page = visitor.page
        visitor.see(f"home-empty-{width}")
        page.click("text=Look at data")
        page.set_input_files("#file", rows)
        page.fill("#model", str(tiny_base))
        page.click("button:text-is('Check')")
        page.wait_for_selector("text=Rows to look at")
        assert page.locator(".masked mark").count() > 0
        visitor.see(f"data-{width}")
        page.click("text=New run with it")
        page.wait_for_selector("#start:enabled")
        recipe = {**TINY_RECIPE, **yaml.safe_load(page.input_value("#yaml")), "name": "clerk"}
        page.fill("#yaml", yaml.safe_dump(recipe))
        wait_until(lambda: page.input_value("#learning_rate") == "0.01")
        page.wait_for_selector("#ask-plan:enabled")
        page.click("#ask-plan")
        page.wait_for_selector("text=Fits in")
        visitor.see(f"new-{width}")
        page.click("#start")
        page.wait_for_url("**/runs/clerk")
        page.wait_for_selector("#loss canvas")
        page.wait_for_selector(".tabs")
        visitor.see(f"live-{width}")
        page.goto(f"{url}/")
        page.wait_for_selector("text=1 run at work")
        visitor.see(f"home-at-work-{width}")
        page.click("h3 >> text=clerk")
        page.wait_for_selector(".state .badge.pass")
        assert page.locator(".stages .done").count() == 9
        assert page.locator("#figures dd").first.inner_text().startswith("17")
        talk(visitor, width)
        page.click("text=Report")
        page.frame_locator("iframe.report").locator("h1").wait_for()
        visitor.see(f"report-{width}")
        page.click("text=Artifacts")
        page.wait_for_selector("text=GGUF q8_0")
        visitor.see(f"artifacts-{width}")
        page.goto(f"{url}/")
        page.wait_for_selector("text=Nothing needs you")
        visitor.see(f"home-{width}")
        visitor.is_content()


def talk(visitor: Visitor, width: str) -> None:
    """Ask both models, then blind, and vote with the keyboard."""
    page = visitor.page
    page.click(".tabs >> text=Chat")
    page.wait_for_selector("#send:enabled")
    page.fill("#question", "Where is the hammer on the bench?")
    page.press("#question", "Enter")
    wait_until(lambda: page.locator(".said:not(:empty)").count() == 2)
    page.wait_for_selector("#send:enabled")
    assert page.locator(".answer h3").all_inner_texts() == ["Base", "Tuned"]
    visitor.see(f"chat-{width}")
    page.check("[value=blind]")
    page.wait_for_selector("#send:enabled")
    page.fill("#question", "Who has a rusted hinge?")
    page.press("#question", "Enter")
    page.wait_for_selector(".verdict-row button")
    assert page.locator(".answer h3").all_inner_texts() == ["First answer", "Second answer"]
    visitor.see(f"chat-blind-{width}")
    page.locator(".verdict-row button").first.focus()
    page.keyboard.press("0")
    page.wait_for_selector("text=A tie.")
    assert sorted(page.locator(".answer h3").all_inner_texts()) == ["Base", "Tuned"]
    page.wait_for_selector("text=No vote was decided yet.")


@pytest.fixture
def axe() -> str:
    path = Path(os.environ.get("TUNEWRIGHT_AXE", ""))
    if not path.is_file():
        pytest.skip("axe-core is not here; TUNEWRIGHT_AXE names its axe.min.js")
    return path.read_text(encoding="utf-8")


PAGES = (
    "/",
    "/runs",
    "/runs/old",
    "/runs/one",
    "/runs/old/chat",
    "/compare?run=old&run=other",
    "/runs/old/artifacts",
    "/data",
    "/new",
)
ROWS_TO_REVIEW = [
    {"prompt": "The press rattles.", "completion": '{"kind": "fault", "urgent": true}', "id": 1},
    {"prompt": "A second key, please.", "completion": '{"kind": "wish", "urgent": false}', "id": 2},
    {"prompt": "Which is better?", "chosen": "This one.", "rejected": "That one.", "id": 3},
]


def review_in(store: Store) -> str:
    """The id of a review of three rows, the last of which the check had noted."""
    path = store.private / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS_TO_REVIEW))
    source = Source(path, path.name)
    last = list(read_rows(source))[-1]
    notes = {last.id: Noted(last.sha256, ["no system prompt: Which is better?"])}
    return prepare(source, DataKeys(), notes, store.private / "reviews").id


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_answers_are_reviewed_with_the_keyboard(chromium: Any, tmp_path: Path, width: str) -> None:
    store = Store(tmp_path / "store")
    number = review_in(store)
    with service(store.root) as (_, client):
        url = str(client.base_url).rstrip("/")
        visitor = Visitor(chromium, url, (store.private / "token").read_text(), width)
        page = visitor.page
        page.set_default_timeout(20_000)
        page.goto(f"{url}/reviews/{number}")
        visitor.see(f"review-{width}")
        page.click("text=Begin")
        page.wait_for_url("**/rows/3")
        assert page.locator("textarea").count() == 0
        page.keyboard.press("r")
        page.wait_for_url("**/rows/1")
        page.keyboard.press("e")
        page.keyboard.type("arse")
        assert page.input_value("#answer").startswith("arse{")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#message >> text=no valid JSON")
        visitor.faults.clear()  # Chromium tells of the refusal in its console
        page.fill("#answer", '{"kind": "fault", "urgent": false}')
        visitor.see(f"review-row-{width}")
        page.keyboard.press("Escape")
        page.keyboard.press("a")
        page.wait_for_url("**/rows/2")
        page.keyboard.press("u")
        page.wait_for_url("**/rows/1")
        page.wait_for_selector(".state >> text=undecided")
        page.keyboard.press("a")
        page.wait_for_url("**/rows/2")
        page.keyboard.press("a")
        page.wait_for_url("**/finish")
        page.wait_for_selector("text=3 of 3 decided")
        page.click("button >> text=Finish")
        page.wait_for_selector("text=Of 3 rows: 2 kept as they are, 0 edited, 1 rejected")
        visitor.see(f"review-finish-{width}")
        visitor.is_content()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_page(chromium: Any, axe: str, tmp_path: Path, scheme: str) -> None:
    store = Store(tmp_path / "store")
    for name in ("old", "other"):
        write_sample_run(store.root / name)
    add(store, "one")
    attempt = store.claim(["cpu"])
    assert attempt is not None
    store.finish(attempt, Outcome("gate", "leakage = 3. Mend it, or go on knowingly with --accept leakage."))
    review = f"/reviews/{review_in(store)}"
    with service(store.root) as (_, client):
        url = str(client.base_url).rstrip("/")
        visitor = Visitor(chromium, url, (store.private / "token").read_text(), "phone", scheme)
        for path in (*PAGES, "/settings", "/wall", review, f"{review}/rows/1", f"{review}/rows/3", f"{review}/finish"):
            visitor.page.goto(url + path)
            visitor.page.evaluate(axe)
            found = visitor.page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
            serious = [
                (one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in {"serious", "critical"}
            ]
            assert serious == [], path
            visitor.see(f"axe{path.replace('/', '_').partition('?')[0]}-{scheme}")
        visitor.is_content()
