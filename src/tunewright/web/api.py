"""The routes below `/api/v1`, and `/metrics`. Each is a few lines: what it does is in `jobs` and beside this module."""

import json
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from tunewright import __version__
from tunewright.errors import EnvironmentLackError, JobError, JobNotFoundError, TunewrightError, UsageError
from tunewright.jobs.adding import add_export, add_job, recipe_of_keys
from tunewright.jobs.arrivals import arrivals
from tunewright.jobs.inbox import safe_name
from tunewright.jobs.job import State
from tunewright.jobs.store import Store
from tunewright.recipe import build_recipe
from tunewright.report.page import script_source
from tunewright.web.access import COOKIE, Access
from tunewright.web.chat_routes import chat_routes
from tunewright.web.chats import Chats
from tunewright.web.curves import curves_of
from tunewright.web.guard import SESSION_PATH, Guard, problem
from tunewright.web.look_routes import look_routes
from tunewright.web.looks import Looks
from tunewright.web.pages.frame import Center, page
from tunewright.web.pages.routes import login_page, page_routes
from tunewright.web.requests import Change, Id, Login, NewExport, NewJob, Nothing, Retry, described
from tunewright.web.review.reviews import Reviews
from tunewright.web.review_routes import review_routes
from tunewright.web.runs import NAME, Runs
from tunewright.web.static_files import PATHS
from tunewright.web.status import StatusBoard
from tunewright.web.streams import Streams, finite, streamed
from tunewright.web.uploads import Uploads

# In a sandbox a report has no origin, so no cookie; and of scripts only the one that every report comes with may run.
REPORT_POLICY = (
    f"sandbox allow-scripts; default-src 'none'; script-src {script_source()}; style-src 'unsafe-inline'; "
    "img-src data:; font-src data:; frame-ancestors 'self'"
)
LOG_BYTES_AT_ONCE = 1 << 18
MOST_POINTS = 200_000
SECONDS_OF_A_LOGIN = 30 * 24 * 3600
NOT_POSSIBLE = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.SERVICE_UNAVAILABLE)

JobId = Annotated[Id, Path()]
RunName = Annotated[str, Path(pattern=NAME)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Place = Annotated[int, Query(ge=0, le=2**53)]
LastEventId = Annotated[int, Header(alias="Last-Event-ID", ge=0, le=2**53)]


def make_app(store: Store, access: Access, board: StatusBoard, streams: Streams, runs: Runs) -> FastAPI:
    """The application; `guarded` puts the guard before it."""
    app = FastAPI(
        title="tunewright",
        version=__version__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses=described(),
    )
    for error, answer in ANSWERS.items():
        app.add_exception_handler(error, answer)
    app.include_router(session_routes(access), tags=["session"])
    app.include_router(status_routes(store, board), tags=["status"])
    app.include_router(job_routes(store), prefix="/api/v1/jobs", tags=["jobs"])
    app.include_router(run_routes(store, runs), prefix="/api/v1/runs", tags=["runs"])
    app.include_router(stream_routes(streams, runs), tags=["streams"])
    looks, uploads, reviews = Looks(store.private), Uploads(store), Reviews(store.private)
    app.include_router(look_routes(looks, uploads), tags=["looks"], responses=described(HTTPStatus.NOT_FOUND))
    app.include_router(review_routes(reviews, looks, uploads), tags=["reviews"], responses=described(*NOT_POSSIBLE))
    chats = Chats(runs, board)
    app.include_router(chat_routes(chats, streams), tags=["chats"], responses=described(*NOT_POSSIBLE))
    app.include_router(page_routes(Center(store, board, runs, looks, chats, reviews)), include_in_schema=False)
    return app


def guarded(app: FastAPI, access: Access) -> Guard:
    """The application behind its guard, with what may be read without the token."""
    return Guard(app, access, PATHS, login_page())


def session_routes(access: Access) -> APIRouter:
    router = APIRouter()

    @router.post(SESSION_PATH, status_code=HTTPStatus.NO_CONTENT, responses=described(HTTPStatus.UNAUTHORIZED))
    def log_in(login: Login) -> Response:
        """Give the cookie for the token."""
        if not access.knows_token(login.token):
            return JSONResponse(problem("token", "it is wrong"), HTTPStatus.UNAUTHORIZED)
        answer = Response(status_code=HTTPStatus.NO_CONTENT)
        answer.set_cookie(COOKIE, access.cookie, max_age=SECONDS_OF_A_LOGIN, httponly=True, samesite="strict")
        return answer

    @router.delete(SESSION_PATH, status_code=HTTPStatus.NO_CONTENT)
    def log_out() -> Response:
        """Take the cookie away."""
        answer = Response(status_code=HTTPStatus.NO_CONTENT)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


def status_routes(store: Store, board: StatusBoard) -> APIRouter:
    router = APIRouter()

    @router.get("/api/v1/status")
    async def status() -> Response:
        """What goes on: jobs by state, what is at work, GPUs, disk, and what needs attention."""
        return Response(board.as_bytes, media_type="application/json")

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """The same figures for Prometheus."""
        return Response(board.as_prometheus(), media_type="text/plain; version=0.0.4")

    @router.get("/api/v1/inbox")
    def inbox(limit: Limit = 100) -> list[dict[str, Any]]:
        """What arrived last, the newest first."""
        return [asdict(item) for item in arrivals(store, "WHERE id > (SELECT max(id) FROM arrivals) - ?", (limit,))][
            ::-1
        ]

    return router


def job_routes(store: Store) -> APIRouter:
    router = APIRouter(responses=described(*NOT_POSSIBLE))

    @router.get("")
    def list_jobs(state: State | None = None, before: Place = 2**53, limit: Limit = 100) -> list[dict[str, Any]]:
        """Jobs, the newest first; the next page is asked for with `before`, the last number of this one."""
        if state is None:
            return [job.as_json() for job in store.jobs("WHERE id < ?", [before], limit)]
        return [job.as_json() for job in store.jobs("WHERE id < ? AND state = ?", [before, state], limit)]

    @router.post("", status_code=HTTPStatus.CREATED)
    def add(new: NewJob) -> dict[str, Any]:
        """Queue a run of a recipe."""
        return add_job(store, recipe_of_keys(new.recipe), new.name, new.priority, new.needs).as_json()

    @router.get("/{job}")
    def show(job: JobId) -> dict[str, Any]:
        """A job with its recipe, its history and its attempts."""
        found = store.job(job)
        attempts = [attempt.as_json() for attempt in store.attempts(job)]
        return {**found.as_json(), "recipe": found.recipe, "history": store.history(job), "attempts": attempts}

    @router.patch("/{job}")
    def change(job: JobId, change: Change) -> dict[str, Any]:
        """Set the priority: the higher goes first."""
        return store.set_priority(job, change.priority).as_json()

    @router.post("/{job}/retry")
    def retry(job: JobId, retry: Retry) -> dict[str, Any]:
        """Queue a job again that has ended; what `accept` names may fail this time."""
        return store.retry(job, retry.accept).as_json()

    @router.post("/{job}/{wish}")
    def wish(job: JobId, wish: Literal["cancel", "stop"], nothing: Nothing) -> dict[str, Any]:
        """Cancel a job, or stop it so that it can go on later."""
        return store.want(job, wish).as_json()

    @router.get("/{job}/log")
    def log(job: JobId, attempt: Annotated[int, Query(ge=1, le=10_000)] = 1, after: Place = 0) -> dict[str, Any]:
        """A piece of an attempt's log, without what would speak to a terminal, and where the next one begins."""
        store.job(job)
        return piece_of_log(store, job, attempt, after)

    return router


def run_routes(store: Store, runs: Runs) -> APIRouter:
    router = APIRouter(responses=described(HTTPStatus.NOT_FOUND))

    @router.get("")
    def list_runs(after: Place = 0, limit: Limit = 100) -> dict[str, Any]:
        """Runs, the one that changed last first."""
        found = runs.all()
        return {"total": len(found), "runs": [asdict(run) for run in found[after : after + limit]]}

    @router.get("/{name}")
    def show(name: RunName) -> dict[str, Any]:
        """A run with its recipe."""
        summary = runs.summary(name)
        with runs.opened(name, "recipe.yaml") as file:
            return {**asdict(summary), "recipe": file.read(1 << 20).decode("utf-8", "replace")}

    @router.get("/{name}/certificate")
    def certificate(name: RunName) -> dict[str, Any]:
        """All evidence, and the hash of every artifact."""
        return dict(finite(runs.read_json(name, "certificate.json")))

    @router.get("/{name}/curves")
    def curves(name: RunName) -> dict[str, list[dict[str, Any]]]:
        """Losses, learning rate and gradient norm by step, at most 2,000 points of each."""
        return curves_of(runs, name)

    @router.get("/{name}/report", response_class=Response)
    def report(name: RunName) -> Response:
        """The report for people. It may not do anything but be looked at."""
        with runs.opened(name, "report.html") as file:
            return Response(file.read(), media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    @router.get("/{name}/files/{path:path}", response_class=StreamingResponse)
    def download(name: RunName, path: Annotated[str, Path(max_length=500)]) -> Response:
        """A file that a stage published, and no other."""
        record = runs.published(name, path)
        shown = safe_name(path.rpartition("/")[2])
        headers = {"content-length": str(record["bytes"]), "content-disposition": f'attachment; filename="{shown}"'}
        return StreamingResponse(runs.pieces(name, path), media_type="application/octet-stream", headers=headers)

    @router.post("/{name}/exports", status_code=HTTPStatus.CREATED, responses=described(HTTPStatus.CONFLICT))
    def export(name: RunName, wanted: NewExport) -> dict[str, Any]:
        """Queue a further GGUF format of a finished run; what it has stays, and is proven anew."""
        recipe = build_recipe(runs.recipe(runs.summary(name).name), f"run {name}")
        return add_export(store, name, recipe, wanted.format).as_json()

    return router


def stream_routes(streams: Streams, runs: Runs) -> APIRouter:
    router = APIRouter(prefix="/api/v1", responses=described(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE))

    @router.get("/events", response_class=StreamingResponse)
    async def job_events(last: LastEventId = 0) -> Response:
        """Changes of state of all jobs, as they come."""
        return streamed(streams, lambda: streams.of_jobs(last))

    @router.get("/runs/{name}/events", response_class=StreamingResponse)
    async def run_events(name: RunName, last: LastEventId = 0) -> Response:
        """The events of a run (`events.jsonl`) from its beginning or from `Last-Event-ID` on, as they come."""
        # A job that waits has no directory yet: its stream is silent until it has one.
        if not streams.store.jobs("WHERE run_dir = ?", [str(runs.root / name)], 1):
            runs.summary(name)
        return streamed(streams, lambda: streams.of_run(name, last))

    return router


def piece_of_log(store: Store, job: int, attempt: int, after: int) -> dict[str, Any]:
    path = store.log_path(job, attempt)
    try:
        with path.open("rb") as file:
            file.seek(after)
            piece = file.read(LOG_BYTES_AT_ONCE)
    except FileNotFoundError:
        raise JobNotFoundError(f"job {job}", f"it has no log of attempt {attempt}") from None
    text = "".join(letter for letter in piece.decode("utf-8", "replace") if letter.isprintable() or letter in "\n\t")
    return {"text": text, "next": after + len(piece)}


STATUS_OF = {
    JobNotFoundError: HTTPStatus.NOT_FOUND,
    JobError: HTTPStatus.CONFLICT,
    UsageError: HTTPStatus.UNPROCESSABLE_ENTITY,
    EnvironmentLackError: HTTPStatus.SERVICE_UNAVAILABLE,
}


async def answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TunewrightError)  # noqa: S101 - it is registered for nothing else
    status = next((status for kind, status in STATUS_OF.items() if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)
    return problem_answer(request, problem(error.where, error.found, error.expected, error.mend), status)


def problem_answer(request: Request, what: dict[str, str], status: int, **options: Any) -> Response:
    """The problem as JSON, or as a page where one was asked for."""
    is_api = request.url.path.startswith(("/api/", "/metrics", "/static/"))
    if is_api or "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(what, status, **options)
    return page(
        "problem.html.j2",
        "Not found" if status == HTTPStatus.NOT_FOUND else "Problem",
        status=HTTPStatus(status),
        problem=what,
    )


async def answer_invalid(request: Request, error: Exception) -> Response:
    """What is wrong with the request; not the value itself, which may be anything."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    found = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
    text = json.dumps(problem("request", found[:1000])).encode("ascii")
    return Response(text, HTTPStatus.UNPROCESSABLE_ENTITY, media_type="application/json")


async def answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    return problem_answer(request, problem("request", error.detail), error.status_code, headers=error.headers)


ANSWERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    TunewrightError: answer_error,
    RequestValidationError: answer_invalid,
    HTTPException: answer_http_error,
}
