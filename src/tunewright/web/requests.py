"""What a request may say: every field with its bounds. And what every refusal says."""

from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunewright.web.looks import ID as LOOK
from tunewright.web.review.answer import MOST_CHARACTERS
from tunewright.web.runs import NAME

Id = Annotated[int, Field(ge=1, le=2**53)]
Priority = Annotated[int, Field(ge=-1000, le=1000)]
EvidenceName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}$")]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Login(Request):
    token: Annotated[str, Field(max_length=200)]


class NewJob(Request):
    """A job to queue.

    Attributes:
        recipe: keys of a recipe, as in its YAML file; paths are absolute, on the machine of the service.
        name: the name of its run; default: the recipe's, with a number where that is taken.
        needs: jobs that have to be done before.
    """

    recipe: Annotated[dict[str, Any], Field(max_length=200)]
    name: Annotated[str, Field(pattern=NAME)] | None = None
    priority: Priority = 0
    needs: Annotated[list[Id], Field(max_length=100)] = []


class NewLook(Request):
    """What to look at: keys of a recipe, as in `NewJob`, and what a person calls it."""

    recipe: Annotated[dict[str, Any], Field(max_length=200)]
    title: Annotated[str, Field(max_length=200)] = ""


class RecipeText(Request):
    """A recipe as keys or as YAML."""

    recipe: Annotated[dict[str, Any], Field(max_length=200)] | None = None
    yaml: Annotated[str, Field(max_length=1 << 16)] | None = None


class NewExport(Request):
    format: Literal["q8_0", "q6_k", "q5_k_m", "q4_k_m", "f16", "bf16", "f32"]


class NewChat(Request):
    blind: bool = False


class NewQuestion(Request):
    text: Annotated[str, Field(min_length=1, max_length=4000)]


class NewVote(Request):
    """A vote on the answers to a question of a blind chat; questions are counted from 1."""

    question: Annotated[int, Field(ge=1, le=1000)]
    vote: Literal["left", "right", "tie"]


class NewReview(Request):
    """Which file of which check to review; the only one if none is named."""

    check: Annotated[str, Field(pattern=LOOK)]
    file: Annotated[str, Field(max_length=1000)] = ""


class NewDecision(Request):
    """A decision on a row.

    Attributes:
        version: of the row, as it was looked at.
        text: the answer to accept, if it is to be another one than the file's.
        anyway: keep an answer that is no JSON object any more, or lacks keys.
    """

    decision: Literal["accept", "reject", "undo"]
    version: Annotated[int, Field(ge=0, le=2**53)]
    text: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None
    anyway: bool = False


class Finish(Request):
    """Whether rows that nothing was decided on are kept or left out."""

    undecided: Literal["keep", "leave out"]


class Nothing(Request):
    pass


class Retry(Request):
    accept: Annotated[list[EvidenceName], Field(max_length=50)] = []


class Change(Request):
    priority: Priority


class Problem(BaseModel):
    """A refusal, in the parts of every message of tunewright."""

    where: str
    found: str
    expected: str
    mend: str


# What the guard before every route, and the reading of a request, may answer.
REFUSALS = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.MISDIRECTED_REQUEST,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


def described(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of refusals."""
    return {int(status): {"model": Problem, "description": status.phrase} for status in (*REFUSALS, *statuses)}
