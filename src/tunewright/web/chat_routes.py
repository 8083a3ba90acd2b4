"""The routes of the API that talk to a run: base and tuned side by side, also blind, and the votes on them."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Response
from fastapi.responses import StreamingResponse

from tunewright.web.chats import Chats
from tunewright.web.requests import NewChat, NewQuestion, NewVote, Nothing
from tunewright.web.runs import NAME
from tunewright.web.streams import Streams, streamed

RunName = Annotated[str, Path(pattern=NAME)]
ChatId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
LastEventId = Annotated[int, Header(alias="Last-Event-ID", ge=0, le=2**53)]


def chat_routes(chats: Chats, streams: Streams) -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.post("/runs/{name}/chats", status_code=HTTPStatus.CREATED)
    def begin(name: RunName, new: NewChat) -> dict[str, Any]:
        """Begin a chat with a run that has trained: base and tuned answer side by side."""
        return chats.open(name, new.blind).as_json()

    @router.get("/runs/{name}/votes")
    def votes(name: RunName) -> dict[str, Any]:
        """How blind votes on the run's adapter came out, with a 95 % interval of the tuned model's share."""
        return chats.votes.tally(chats.runs.summary(name).name).as_json()

    @router.get("/chats/{chat}")
    def show(chat: ChatId) -> dict[str, Any]:
        """How far a chat is."""
        return chats.chat(chat).as_json()

    @router.delete("/chats/{chat}", status_code=HTTPStatus.NO_CONTENT)
    def close(chat: ChatId) -> Response:
        """Forget a chat."""
        chats.close(chat)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @router.post("/chats/{chat}/questions", status_code=HTTPStatus.CREATED)
    def ask(chat: ChatId, question: NewQuestion) -> dict[str, int]:
        """Put a question; the answers come by the stream of the chat's events."""
        return {"question": chats.ask(chat, question.text)}

    @router.post("/chats/{chat}/stop")
    def stop(chat: ChatId, nothing: Nothing) -> dict[str, Any]:
        """End the answers under way where they are."""
        return chats.stop(chat).as_json()

    @router.post("/chats/{chat}/votes", status_code=HTTPStatus.CREATED)
    def vote(chat: ChatId, vote: NewVote) -> dict[str, Any]:
        """Vote on the answers to a question of a blind chat, and learn whose they are."""
        return chats.vote(chat, vote.question, vote.vote)

    @router.get("/chats/{chat}/events", response_class=StreamingResponse)
    async def events(chat: ChatId, last: LastEventId = 0) -> Response:
        """What is said in a chat, from its beginning or from `Last-Event-ID` on, as it comes."""
        found = chats.chat(chat)
        return streamed(streams, lambda: streams.of_chat(found, last))

    return router
