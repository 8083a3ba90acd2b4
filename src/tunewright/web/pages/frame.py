"""What all pages share: the templates, the frame around a page, and figures in words."""

import re
import time
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tunewright import __version__
from tunewright.jobs.store import Store
from tunewright.report import numbers
from tunewright.report.page import breakable
from tunewright.web.chats import Chats
from tunewright.web.looks import Looks
from tunewright.web.review.reviews import Reviews
from tunewright.web.runs import Runs
from tunewright.web.static_files import address_of
from tunewright.web.status import StatusBoard

View = dict[str, Any]
PLACES = (("/", "Home"), ("/runs", "Runs"), ("/data", "Data"), ("/new", "New run"), ("/settings", "Settings"))


@dataclass(frozen=True)
class Center:
    """What pages are made from."""

    store: Store
    board: StatusBoard
    runs: Runs
    looks: Looks
    chats: Chats
    reviews: Reviews


def page(template: str, title: str, here: str = "", status: HTTPStatus = HTTPStatus.OK, **view: Any) -> HTMLResponse:
    """A whole page; `here` is the place in the navigation that it belongs to."""
    html = environment().get_template(template).render(title=title, here=here, places=PLACES, **view)
    return HTMLResponse(html, status)


def part(template: str, **view: Any) -> HTMLResponse:
    """A piece of a page, fetched again now and then."""
    return HTMLResponse(environment().get_template(template).render(**view))


@cache
def environment() -> Environment:
    found = Environment(
        loader=ChoiceLoader(
            [PackageLoader("tunewright.web", "template"), PackageLoader("tunewright.report", "template")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "breakable": breakable,
        "duration": numbers.duration,
        "size": numbers.size,
        "count": numbers.count,
        "decimal": numbers.decimal,
        "figure": numbers.figure,
        "limit": numbers.limit,
        "moment": numbers.moment,
        "ago": ago,
        "code": with_code,
    }
    found.globals |= {"asset": address_of, "version": __version__, "plural": numbers.plural}
    return found


def with_code(text: str) -> Markup:
    """Escaped text in which what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704


def ago(moment: float) -> str:
    """`just now`, `5 min ago`, `3 h ago`, or after two days the date."""
    seconds = time.time() - moment
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f} h ago"
    return numbers.moment(moment)[:10]
