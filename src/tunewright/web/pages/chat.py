"""The chat page of a run: base and tuned answer side by side, also blind; and what the votes came to."""

from typing import Annotated

from fastapi import APIRouter, Path, Response

from tunewright.errors import JobNotFoundError
from tunewright.report import numbers
from tunewright.web.pages.frame import Center, View, page, part
from tunewright.web.runs import NAME
from tunewright.web.votes import Tally

RunName = Annotated[str, Path(pattern=NAME)]


def chat_page_routes(center: Center) -> APIRouter:
    router = APIRouter()

    @router.get("/runs/{name}/chat")
    def chat(name: RunName) -> Response:
        stages = center.runs.summary(name).stages
        if "train" not in stages:
            mend = "Its adapter is there when the stage train is done."
            raise JobNotFoundError(f"run {name}", "there is nothing to talk to yet", mend=mend)
        return page("chat.html.j2", f"Chat with {name}", "/runs", name=name, stages=stages, **tally_view(center, name))

    @router.get("/parts/runs/{name}/votes")
    def votes(name: RunName) -> Response:
        return part("votes.html.j2", **tally_view(center, center.runs.summary(name).name))

    return router


def tally_view(center: Center, name: str) -> View:
    tally = center.chats.votes.tally(name)
    return {"tally": tally, "sentence": sentence_of(tally)}


def sentence_of(tally: Tally) -> str:
    """What the votes say, as far as so few can say it."""
    share = tally.share
    if share is None:
        return "No vote was decided yet." if tally.ties else "Nobody has voted yet."
    low, high = numbers.percent(share.low), numbers.percent(share.high)
    wins = f"Of {numbers.plural(tally.tuned + tally.base, 'decided vote')} the tuned model won {tally.tuned}"
    verdict = "too few to tell" if share.low <= 0.5 <= share.high else "better" if share.low > 0.5 else "worse"
    return f"{wins}: {numbers.percent(share.value)}, 95 % interval {low} to {high}; {verdict}."
