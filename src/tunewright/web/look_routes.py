"""The routes of the API that look before a run: files that come, checks, plans, the doctor, recipes in their forms."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.requests import ClientDisconnect

from tunewright.errors import JobNotFoundError, UsageError
from tunewright.jobs.adding import recipe_of_keys
from tunewright.web.guard import UPLOAD_PATH, UPLOAD_TYPE
from tunewright.web.looks import ID, Looks
from tunewright.web.recipe_text import described, keys_of_yaml
from tunewright.web.requests import NewLook, Nothing, RecipeText
from tunewright.web.uploads import Uploads

LookId = Annotated[str, Path(pattern=ID)]
FileName = Annotated[str, Query(min_length=1, max_length=200)]
FILE = {"type": "string", "format": "binary", "minLength": 1}
BODY = {"requestBody": {"content": {UPLOAD_TYPE: {"schema": FILE}}, "required": True}}


def look_routes(looks: Looks, uploads: Uploads) -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.put(UPLOAD_PATH.removeprefix("/api/v1"), status_code=HTTPStatus.CREATED, openapi_extra=BODY)
    async def take_file(request: Request, name: FileName) -> dict[str, Any]:
        """Take a file with rows; the answer has the path by which a recipe names it."""
        said = request.headers.get("content-length", "0")
        size = int(said) if said.isdecimal() and len(said) < 19 else 0
        return asdict(await uploads.take(name, size, pieces_of(request)))

    @router.post("/checks", status_code=HTTPStatus.CREATED)
    def check(new: NewLook) -> dict[str, Any]:
        """Look at rows as `tunewright check` does; with a `model` also at tokens and masks."""
        recipe = recipe_of_keys({"on_bad_row": "reject", **new.recipe})
        given = described(recipe)
        return asdict(looks.begin("check", new.title, given["recipe"], given["yaml"]))

    @router.get("/checks/{look}/ledger", response_class=Response)
    def ledger(look: LookId) -> Response:
        """What became of each row, as JSON Lines."""
        looks.look(look)
        text = looks.file(look, "ledger.jsonl")
        if not text:
            raise JobNotFoundError(f"look {look}", "it has no ledger")
        headers = {"content-disposition": 'attachment; filename="ledger.jsonl"'}
        return Response(text, media_type="application/jsonl", headers=headers)

    @router.post("/plans", status_code=HTTPStatus.CREATED)
    def plan(new: NewLook) -> dict[str, Any]:
        """Plan a run as `tunewright plan` does, and leave nothing behind."""
        recipe = recipe_of_keys(new.recipe)
        return asdict(looks.begin("plan", new.title, described(recipe)["recipe"], recipe.as_yaml()))

    @router.post("/doctor", status_code=HTTPStatus.CREATED)
    def doctor(nothing: Nothing) -> dict[str, Any]:
        """Examine the machine as `tunewright doctor` does."""
        return asdict(looks.begin("doctor", "doctor"))

    @router.get("/looks/{look}")
    def show(look: LookId) -> dict[str, Any]:
        """A check, a plan or an examination: how far it is, and what it found."""
        return {**asdict(looks.look(look)), "result": looks.result(look)}

    @router.post("/recipes")
    def recipe(given: RecipeText) -> dict[str, Any]:
        """The same recipe as keys, as YAML and as a command line, if it could run."""
        if (given.recipe is None) == (given.yaml is None):
            raise UsageError("recipe", "both or none of `recipe` and `yaml` are given", "one of them")
        keys = given.recipe if given.recipe is not None else keys_of_yaml(given.yaml or "")
        return described(recipe_of_keys(keys))

    return router


async def pieces_of(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            if piece:
                yield piece
    except ClientDisconnect:
        raise UsageError("upload", "the request broke off", mend="Send it again.") from None
