"""The review of a file's answers: a list with filters, one row at a time, and the new file at the end."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import RedirectResponse

from tunewright.errors import JobNotFoundError
from tunewright.report.numbers import count, plural
from tunewright.web.looks import ID as LOOK
from tunewright.web.pages.frame import Center, View, page, part
from tunewright.web.review.finish import Finished, finished
from tunewright.web.review.reviews import ID, Filter, Review
from tunewright.web.review.view import list_view, row_view

LookId = Annotated[str, Path(pattern=LOOK)]
ReviewId = Annotated[str, Path(pattern=ID)]
RowNumber = Annotated[int, Path(ge=1, le=2**53)]
Place = Annotated[int, Query(ge=0, le=2**53)]
SHOWN = 50
FILTERS: tuple[tuple[Filter, str], ...] = (
    ("all", "All"),
    ("noted", "With findings"),
    ("undecided", "Undecided"),
    ("accepted", "Accepted"),
    ("edited", "Edited"),
    ("rejected", "Rejected"),
    ("unreadable", "No rows"),
)
FEWEST_LINES, MOST_LINES, LETTERS_OF_A_LINE = 6, 28, 70


def review_page_routes(center: Center) -> APIRouter:
    router = APIRouter()

    @router.get("/opening/{look}")
    def opening(look: LookId) -> Response:
        return page("review_opening.html.j2", "Review", "/data", **opening_view(center, look))

    @router.get("/parts/opening/{look}")
    def opening_now(look: LookId) -> Response:
        return part("review_opening_now.html.j2", **opening_view(center, look))

    @router.get("/reviews/{review}")
    def rows(review: ReviewId, state: Filter = "all", after: Place = 0) -> Response:
        with center.reviews.held(review) as found:
            return page("review.html.j2", f"Review of {found.facts.name}", "/data", **rows_view(found, state, after))

    @router.get("/reviews/{review}/rows/{row}")
    def one_row(review: ReviewId, row: RowNumber) -> Response:
        with center.reviews.held(review) as found:
            return page("review_row.html.j2", f"Row {row} of {found.facts.name}", "/data", **one_view(found, row))

    @router.get("/reviews/{review}/next")
    def next_row(review: ReviewId, after: Place = 0) -> Response:
        with center.reviews.held(review) as found:
            row = found.next_undecided(after)
        where = f"/reviews/{review}/finish" if row is None else f"/reviews/{review}/rows/{row}"
        return RedirectResponse(where, HTTPStatus.SEE_OTHER)

    @router.get("/reviews/{review}/finish")
    def finish(review: ReviewId) -> Response:
        with center.reviews.held(review) as found:
            return page("review_finish.html.j2", f"Finish {found.facts.name}", "/data", **finish_view(found))

    return router


def opening_view(center: Center, number: str) -> View:
    look = center.looks.look(number)
    if look.kind != "review":
        raise JobNotFoundError(f"look {number}", "it is no review")
    return {"look": look, "review": center.looks.result(number).get("review", "") if look.state == "done" else ""}


def rows_view(review: Review, state: Filter, after: int) -> View:
    summary = review.summary()
    numbers = review.rows_like(state)
    return {
        "review": summary,
        "state": state,
        "filters": filters_of(summary),
        "rows": list_view(review, numbers[after : after + SHOWN]),
        "before": max(0, after - SHOWN) if after else None,
        "more": after + SHOWN if after + SHOWN < len(numbers) else None,
    }


def filters_of(summary: View) -> list[tuple[str, str, str]]:
    """Each kind of rows with its name and how many there are; those that no row is of only where it says something."""
    counts = {"all": summary["rows"], **summary}
    shown = [(key, name) for key, name in FILTERS if counts[key] or key in {"all", "undecided"}]
    return [(key, name, count(counts[key])) for key, name in shown]


def one_view(review: Review, row: int) -> View:
    """A row, with the decision that would be taken back first."""
    last = review.journal.last_to_undo()
    undo = None
    if last is not None:
        undo = {"row": last.row, "state": last.state, "version": review.journal.version(last.row)}
    view = row_view(review, row)
    return {"review": review.summary(), "row": view, "undo": undo, "lines": lines_of(view["answer"] or "")}


def lines_of(text: str) -> int:
    """How high a field for a text is."""
    lines = sum(1 + len(line) // LETTERS_OF_A_LINE for line in text[:10_000].split("\n"))
    return max(FEWEST_LINES, min(MOST_LINES, lines + 1))


def finish_view(review: Review) -> View:
    found = finished(review)
    is_old = found is not None and found.decisions != len(review.journal.decisions)
    recipe: dict[str, Any] = {"data": [found.path], **review.facts.keys} if found else {}
    words = sentence_of(found) if found else ""
    return {"review": review.summary(), "finished": found, "sentence": words, "is_old": is_old, "recipe": recipe}


def sentence_of(found: Finished) -> str:
    """Exactly how many rows became what."""
    undecided = "kept as they were" if found.kept_undecided else "left out"
    total = found.accepted + found.edited + found.rejected + found.undecided + found.unreadable
    parts = [
        f"{count(found.accepted)} kept as they are",
        f"{count(found.edited)} edited",
        f"{count(found.rejected)} rejected",
        f"{count(found.undecided)} undecided ({undecided})",
    ]
    if found.unreadable:
        parts.append(f"{count(found.unreadable)} that could not be read and were left out")
    return f"Of {plural(total, 'row')}: {', '.join(parts)}. The new file has {plural(found.rows, 'row')}."
