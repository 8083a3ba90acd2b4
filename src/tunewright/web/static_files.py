"""The files that pages load: styles, scripts, an icon. Nothing of a store is in them, so they need no token.

The style of the report is served as it is: report and pages are one design.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
PLACES = {
    "report.css": ("tunewright.report", "template/style.css"),
    "report.js": ("tunewright.report", "template/page.js"),
    "htmx.js": ("tunewright.web", "static/vendor/htmx.min.js"),
    "uplot.js": ("tunewright.web", "static/vendor/uPlot.iife.min.js"),
    "uplot.css": ("tunewright.web", "static/vendor/uPlot.min.css"),
    **{
        name: ("tunewright.web", f"static/{name}")
        for name in (
            *(
                "center.css",
                "center.js",
                "login.js",
                "icon.svg",
                "charts.js",
                "live.js",
                "compare.js",
                "data.js",
                "new.js",
                "chat.js",
                "review.js",
            ),
        )
    },
}
PREFIX = "/static/"
PATHS = frozenset(PREFIX + name for name in PLACES)


@dataclass(frozen=True)
class StaticFile:
    content: bytes
    media_type: str
    version: str


@cache
def static_file(name: str) -> StaticFile:
    package, place = PLACES[name]
    content = files(package).joinpath(place).read_bytes()
    kind = MEDIA_TYPES[name.rpartition(".")[2]]
    return StaticFile(content, kind, hashlib.sha256(content).hexdigest()[:12])


def address_of(name: str) -> str:
    """Where a page loads it from; another content has another address, so that it may be kept for ever."""
    return f"{PREFIX}{name}?v={static_file(name).version}"
