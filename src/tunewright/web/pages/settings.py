"""How the service is set up, and what the doctor says of the machine."""

from fastapi import APIRouter, Response

from tunewright.web.pages.frame import Center, View, page, part


def settings_routes(center: Center) -> APIRouter:
    router = APIRouter()

    @router.get("/settings")
    def settings() -> Response:
        return page("settings.html.j2", "Settings", "/settings", **settings_view(center))

    @router.get("/parts/doctor")
    def doctor() -> Response:
        return part("doctor.html.j2", **doctor_view(center))

    return router


def settings_view(center: Center) -> View:
    facts, inbox = center.board.facts, center.board.inbox
    hooks = center.board.announcer.hooks if center.board.announcer else []
    rows = [
        ("version", facts.get("version", ""), ""),
        ("store", str(center.store.root), "Runs are here; jobs, logs and uploads in .service/ inside it."),
        (
            "token",
            str(center.store.private / "token"),
            "Only you can read the file. Delete it and start again for a new one.",
        ),
        (
            "at work at once",
            ", ".join(facts.get("slots", [])),
            "One run for each GPU; CUDA_VISIBLE_DEVICES chooses them.",
        ),
        ("inbox", str(inbox.directory) if inbox else "none", "Set with tunewright up --inbox DIR --recipe R."),
        ("webhooks", ", ".join(hook.shown for hook in hooks) or "none", "Set with tunewright up --webhook FORM=URL."),
        ("recipe of the inbox", str(inbox.recipe) if inbox else "none", ""),
    ]
    return {"rows": rows, "started": facts.get("started", 0.0), **doctor_view(center)}


def doctor_view(center: Center) -> View:
    """The last examination and what it found."""
    look = next(iter(center.looks.all("doctor")), None)
    found = center.looks.result(look.id).get("doctor", []) if look else []
    return {"look": look, "evidence": found if isinstance(found, list) else []}
