"""Data: drop a file, and see what was read, what became of each row, and what would be learned of it."""

import json
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from markupsafe import Markup

from tunewright.web.looks import ID, Look
from tunewright.web.pages.frame import Center, View, page, part
from tunewright.web.pages.run_list import base_name
from tunewright.web.progress import event_of, progress_in

LookId = Annotated[str, Path(pattern=ID)]
SHOWN = 20
MOST_FILES = 200


def data_routes(center: Center) -> APIRouter:
    router = APIRouter()

    @router.get("/data")
    def data() -> Response:
        checks = [check_view(center, look) for look in center.looks.all("check")[:SHOWN]]
        reviews = center.reviews.all()[:SHOWN]
        return page("data.html.j2", "Data", "/data", checks=checks, bases=bases_used(center), reviews=reviews)

    @router.get("/data/{look}")
    def check(look: LookId) -> Response:
        found = center.looks.look(look)
        return page("check_page.html.j2", title_of(found), "/data", **whole_view(center, found))

    @router.get("/parts/data/{look}")
    def check_now(look: LookId) -> Response:
        return part("check_now.html.j2", **whole_view(center, center.looks.look(look)))

    return router


def check_view(center: Center, look: Look) -> View:
    """A check at a glance; `head` is that of its page, with the verdict."""
    return {
        "id": look.id,
        "title": title_of(look),
        "state": look.state,
        "problem": look.problem,
        "created": look.created,
        "base": base_name(look.recipe.get("model")),
        "head": json_of(center.looks.file(look.id, "head.json")),
    }


def whole_view(center: Center, look: Look) -> View:
    # The body comes from the check's own template, which escaped what the rows say.
    body = Markup(center.looks.file(look.id, "body.html")) if look.state == "done" else ""  # noqa: S704
    return {
        "check": check_view(center, look),
        "body": body,
        "files": files_of(center, look) if look.state == "done" else [],
        "progress": progress_in(events_of(center, look)),
    }


def files_of(center: Center, look: Look) -> list[str]:
    """The files that a check read, by the names that it gave them."""
    return [str(item["file"]) for item in center.looks.result(look.id).get("files", [])][:MOST_FILES]


def events_of(center: Center, look: Look) -> Iterator[dict[str, Any]]:
    lines = center.looks.file(look.id, "events.jsonl").encode().splitlines() if look.state == "running" else []
    return (event for event in map(event_of, lines) if event is not None)


def title_of(look: Look) -> str:
    names = [FilePath(str(name)).name for name in look.recipe.get("data", [])]
    return look.title or ", ".join(names[:3]) or "Rows"


def json_of(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def bases_used(center: Center) -> list[str]:
    """The bases of late checks and jobs, to choose from; the embedded one always."""
    used = [str(look.recipe["model"]) for look in center.looks.all()[:SHOWN] if look.recipe.get("model")]
    return list(dict.fromkeys([*used, "embedded:smollm2-135m-instruct"]))
