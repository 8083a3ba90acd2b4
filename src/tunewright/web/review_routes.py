"""The routes of the API that review answers: rows of a file, a decision on each, and a new file of what stays."""

from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from tunewright.errors import JobError
from tunewright.web.looks import Looks
from tunewright.web.requests import Finish, NewDecision, NewReview
from tunewright.web.review.finish import finish as finish_review
from tunewright.web.review.reviews import ID, Filter, Reviews
from tunewright.web.review.view import list_view, row_view
from tunewright.web.uploads import Uploads

ReviewId = Annotated[str, Path(pattern=ID)]
RowNumber = Annotated[int, Path(ge=1, le=2**53)]
Place = Annotated[int, Query(ge=0, le=2**53)]
Limit = Annotated[int, Query(ge=1, le=200)]


def review_routes(reviews: Reviews, looks: Looks, uploads: Uploads) -> APIRouter:
    router = APIRouter(prefix="/api/v1/reviews")

    @router.post("", status_code=HTTPStatus.CREATED)
    def begin(new: NewReview) -> dict[str, Any]:
        """Prepare the review of a checked file; `GET /looks/ID` says in `result` what its id is."""
        check = looks.look(new.check)
        if check.kind != "check" or check.state != "done":
            raise JobError(f"look {new.check}", f"it is a {check.kind} that is {check.state}", "a check that is done")
        return asdict(looks.begin("review", check.title, {"check": new.check, "file": new.file}))

    @router.get("")
    def show_all() -> list[dict[str, Any]]:
        """What there are reviews of, the newest first."""
        return [asdict(facts) for facts in reviews.all()]

    @router.get("/{review}")
    def show(review: ReviewId) -> dict[str, Any]:
        """How far a review is."""
        with reviews.held(review) as found:
            return found.summary()

    @router.get("/{review}/rows")
    def rows(review: ReviewId, state: Filter = "all", after: Place = 0, limit: Limit = 50) -> dict[str, Any]:
        """Rows in few words, those that the check noted first."""
        with reviews.held(review) as found:
            numbers = found.rows_like(state)
            return {"total": len(numbers), "rows": list_view(found, numbers[after : after + limit])}

    @router.get("/{review}/rows/{row}")
    def show_row(review: ReviewId, row: RowNumber) -> dict[str, Any]:
        """A row whole, with its answer as it stands."""
        with reviews.held(review) as found:
            return row_view(found, row)

    @router.post("/{review}/rows/{row}/decisions", status_code=HTTPStatus.CREATED)
    def decide(review: ReviewId, row: RowNumber, new: NewDecision) -> dict[str, Any]:
        """Decide on a row as it was at `version`; with a `text` that is not the file's answer, it is edited."""
        with reviews.held(review) as found:
            return asdict(found.decide(row, new.decision, new.version, new.text, new.anyway))

    @router.post("/{review}/finish", status_code=HTTPStatus.CREATED)
    def finish(review: ReviewId, wanted: Finish) -> dict[str, Any]:
        """Write the rows that stay into a new file; the answer has its path, and how many rows were what."""
        return asdict(finish_review(reviews, review, uploads.files, wanted.undecided == "keep"))

    return router
