"""The page: every section's view poured into one self-contained HTML file.

In goes what the run holds, out comes HTML. It always holds that text from the run is escaped, that the page loads
nothing (its Content-Security-Policy admits only the style and the script that stand in it, by their hash), and that a
section whose stage has not finished says so instead of failing.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tunewright import __version__
from tunewright.errors import ArtifactError
from tunewright.report import comparison, gates, head, rows, training
from tunewright.report.contents import Contents


@dataclass(frozen=True)
class Section:
    """A part of the page: `build` makes what its macro in the template shows, from artifacts of `stages`."""

    id: str
    title: str
    build: Callable[[Contents], dict[str, Any]]
    stages: tuple[str, ...] = ()


SECTIONS = (
    Section("trained", "What was trained", training.trained_view, ("plan", "train")),
    Section("ledger", "Where every row went", rows.ledger_view, ("data",)),
    Section("mask", "What was learned, on real rows", rows.mask_view, ("render",)),
    Section("lengths", "Lengths", rows.lengths_view, ("render",)),
    Section("loss", "How training went", training.loss_view, ("train",)),
    Section("parity", "Is it still the same model?", comparison.parity_view, ("verify",)),
    Section("evaluation", "Base against tuned", comparison.evaluation_view, ("evaluate",)),
    Section("formats", "Which GGUF to take", comparison.formats_view, ("export",)),
    Section("gates", "Every gate", gates.gates_view),
    Section("hashes", "Hashes", gates.hashes_view),
)


@dataclass(frozen=True)
class Page:
    """The HTML, and a sentence for each section that could not be shown although its stage has finished."""

    html: str
    unreadable: list[str]


def render_page(contents: Contents, written_at: str) -> Page:
    """The whole report; `written_at` is shown in its foot."""
    built = [_built(section, contents) for section in SECTIONS]
    html = framed(head.view(contents), built, written_at)
    return Page(html, [f"{section['title']}: {section['note']}" for section in built if section["unreadable"]])


def framed(
    head_view: dict[str, Any],
    sections: list[dict[str, Any]],
    written_at: str,
    package: str = "tunewright.report",
    macros: str = "sections.html.j2",
) -> str:
    """A whole page in the report's frame and style.

    Args:
        head_view: see `page.html.j2`; with an empty `hash` the page speaks of no certificate.
        sections: each with `id`, `title`, and `view` or else `note`.
        macros: template of `package` with one macro for each section, named by its id.
    """
    style, script = _packaged("style.css"), _packaged("page.js")
    return (
        _environment(package)
        .get_template("page.html.j2")
        .render(
            macros=macros,
            head=head_view,
            sections=sections,
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            policy=content_security_policy(style, script),
            version=__version__,
            written_at=written_at,
        )
    )


def render_sections(sections: list[dict[str, Any]], package: str, macros: str) -> str:
    """The sections of a page alone, to stand within another one that has the report's style (see `framed`)."""
    return _environment(package).get_template("body.html.j2").render(macros=macros, sections=sections)


def _built(section: Section, contents: Contents) -> dict[str, Any]:
    """The section with its view, or with a note in place of it."""
    entry: dict[str, Any] = {"id": section.id, "title": section.title, "view": None, "note": "", "unreadable": False}
    if missing := [stage for stage in section.stages if stage not in contents.manifests]:
        return {**entry, "note": f"The stage {missing[0]} has not finished, so there is nothing to show here yet."}
    try:
        return {**entry, "view": section.build(contents)}
    except ArtifactError as error:
        name = error.where.removeprefix(f"{contents.run.path}/")
        return {**entry, "note": f"{name}: {error.found}.", "unreadable": True}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        note = f"What the stage {section.stages[0]} wrote does not have the expected form ({error!r})."
        return {**entry, "note": note, "unreadable": True}


def content_security_policy(style: str, script: str) -> str:
    """Nothing from anywhere, but this style and this script."""
    return (
        f"default-src 'none'; style-src '{_csp_hash(style)}'; script-src '{_csp_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def script_source() -> str:
    """What a Content-Security-Policy has to allow for the report's own script, and no other, to run."""
    return f"'{_csp_hash(_packaged('page.js'))}'"


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _packaged(name: str) -> str:
    return (files("tunewright.report") / "template" / name).read_text(encoding="utf-8")


@cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, "template") for name in ("tunewright.report", package)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


def breakable(text: str) -> Markup:
    """Escaped text that may break after an underscore, a slash, or a dot before a letter."""
    return Markup(re.sub(r"([_/]|\.(?=[A-Za-z]))", r"\1<wbr>", str(escape(text))))  # noqa: S704
