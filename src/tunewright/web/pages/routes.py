"""All pages, and the files that they load."""

from fastapi import APIRouter, Response
from starlette.exceptions import HTTPException

from tunewright.web.pages.artifacts import artifact_routes
from tunewright.web.pages.chat import chat_page_routes
from tunewright.web.pages.data import data_routes
from tunewright.web.pages.frame import Center, page
from tunewright.web.pages.home import home_routes
from tunewright.web.pages.live import live_routes
from tunewright.web.pages.new_run import new_run_routes
from tunewright.web.pages.review import review_page_routes
from tunewright.web.pages.run_list import run_list_routes
from tunewright.web.pages.settings import settings_routes
from tunewright.web.pages.wall import wall_routes
from tunewright.web.static_files import PLACES, PREFIX, static_file

PAGES = (
    *(home_routes, run_list_routes, live_routes, chat_page_routes, artifact_routes, data_routes, new_run_routes),
    *(review_page_routes, settings_routes, wall_routes),
)
KEPT_FOR_EVER = "private, max-age=31536000, immutable"


def page_routes(center: Center) -> APIRouter:
    router = APIRouter()
    for routes in PAGES:
        router.include_router(routes(center))

    @router.get(PREFIX + "{name}")
    def static(name: str) -> Response:
        if name not in PLACES:
            raise HTTPException(404, "there is no such file")
        found = static_file(name)
        return Response(found.content, media_type=found.media_type, headers={"cache-control": KEPT_FOR_EVER})

    return router


def login_page() -> bytes:
    """What is shown in place of any page to who has no cookie; it says nothing of the store."""
    return bytes(page("login.html.j2", "Token").body)
