"""The monitor for a wall: what is at work, in large figures. It only shows, and looks again by itself."""

from fastapi import APIRouter, Response

from tunewright.web.pages.frame import Center, page, part
from tunewright.web.pages.home import home_view


def wall_routes(center: Center) -> APIRouter:
    router = APIRouter()

    @router.get("/wall")
    def wall() -> Response:
        return page("wall.html.j2", "Monitor", **home_view(center))

    @router.get("/parts/wall")
    def wall_now() -> Response:
        return part("wall_now.html.j2", **home_view(center))

    return router
