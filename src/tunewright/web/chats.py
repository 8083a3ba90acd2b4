"""Chats with a run's base and tuned model side by side: what was asked, what came, and whose answer stands where.

In: questions of a person. Out: the events of a chat, in order, from which a page is built and built again:

    state (state, problem)          waiting, loading, ready, answering, failed or closed
    question (number, text)
    pieces (number, left, right)    what either side adds
    answered (number)
    sides (number, left, right, vote)    whose answer stood where

In a blind chat the sides are drawn anew for each question, which stands alone, and nothing that leaves this process
says whose they are before the vote. Chats live in memory: what lasts is the votes.
"""

import queue
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunewright.errors import EngineError, EnvironmentLackError, JobError, JobNotFoundError, TunewrightError, UsageError
from tunewright.web.chat_model import CHAT_COMMAND, ChatModel
from tunewright.web.runs import Runs
from tunewright.web.status import StatusBoard
from tunewright.web.votes import Votes, Winner, adapter_of

MOST_CHATS = 50
MOST_QUESTIONS = 100
MOST_WAITING = 20
SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_KEPT_IDLE = 600.0
Place = Literal["left", "right"]
PLACES: tuple[Place, ...] = ("left", "right")


@dataclass
class Question:
    """A question and its two answers.

    Attributes:
        left: whose answer stands on the left, `base` or `tuned`.
        answers: by whose they are.
    """

    text: str
    left: str
    answers: dict[str, str] = field(default_factory=lambda: {"base": "", "tuned": ""})
    is_over: bool = False
    vote: str = ""

    def who(self, place: Place) -> str:
        return self.left if place == "left" else other(self.left)

    def winner(self, vote: Place | Literal["tie"]) -> Winner:
        return "tie" if vote == "tie" else "tuned" if self.who(vote) == "tuned" else "base"


@dataclass
class Chat:
    """A conversation with one run.

    Attributes:
        adapter: SHA-256 of the weights that it talks to.
        events: everything that was said of it, in order; it only grows.
    """

    id: str
    run: str
    is_blind: bool
    adapter: str
    state: str = "waiting"
    problem: str = ""
    questions: list[Question] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    is_stopped: bool = False

    def tell(self, kind: str, **facts: Any) -> None:
        self.events.append({"kind": kind, **facts})

    def move(self, state: str, problem: str = "") -> None:
        """Change the state; a chat that is closed stays so."""
        if self.state == "closed":
            return
        self.state, self.problem = state, problem
        self.tell("state", state=state, problem=problem)

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "run": self.run,
            "blind": self.is_blind,
            "state": self.state,
            "problem": self.problem,
            "questions": len(self.questions),
        }

    def messages_of(self, side: str) -> list[dict[str, str]]:
        """What the side is sent: in a blind chat the last question alone, else the whole conversation as it saw it."""
        asked = self.questions[-1:] if self.is_blind else self.questions
        messages = []
        for question in asked[:-1]:
            messages += [message("user", question.text), message("assistant", question.answers[side])]
        return [*messages, message("user", asked[-1].text)]


class Chats:
    """The chats of one store. A thread of its own talks to one model at a time.

    Args:
        command: what answers, as `chat_process` does; the run's directory is added.
    """

    def __init__(self, runs: Runs, board: StatusBoard, command: Sequence[str] | None = None) -> None:
        self.runs, self.board, self.command = runs, board, tuple(command or CHAT_COMMAND)
        self.votes = Votes(runs)
        self._chats: dict[str, Chat] = {}
        self._due: queue.Queue[Chat] = queue.Queue()
        self._model: ChatModel | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    # -- what a person does -----------------------------------------------------------------------------------------

    def open(self, run: str, is_blind: bool) -> Chat:
        """Begin a chat; its model is loaded meanwhile.

        Raises:
            JobNotFoundError: there is no such run.
            UsageError: it has nothing to talk to yet.
        """
        if "train" not in self.runs.summary(run).stages:
            raise UsageError(f"run {run}", "it has not trained yet", "a run with an adapter", "Wait for its training.")
        with self._lock:
            self._validate_room()
            chat = Chat(secrets.token_hex(8), run, is_blind, adapter_of(self.runs, run))
            chat.move("waiting")
            self._chats[chat.id] = chat
            for oldest in list(self._chats)[:-MOST_CHATS]:
                self._chats.pop(oldest).move("closed")
            self._put(chat)
        return chat

    def chat(self, number: str) -> Chat:
        try:
            return self._chats[number]
        except KeyError:
            raise JobNotFoundError(f"chat {number}", "there is no such chat", mend="Begin a new one.") from None

    def ask(self, number: str, text: str) -> int:
        """Put a question; its number in the chat.

        Raises:
            JobError: the last one is not answered yet, or the chat has come to its end.
        """
        chat = self.chat(number)
        with self._lock:
            if chat.state != "ready":
                raise JobError(f"chat {number}", f"it is {chat.state}", "one that is ready")
            if len(chat.questions) >= MOST_QUESTIONS:
                raise JobError(f"chat {number}", f"{MOST_QUESTIONS} questions were put", mend="Begin a new one.")
            self._validate_room()
            left = secrets.choice(("base", "tuned")) if chat.is_blind else "base"
            chat.questions.append(Question(text, left))
            chat.is_stopped = False
            chat.tell("question", number=len(chat.questions), text=text)
            if not chat.is_blind:
                tell_sides(chat, len(chat.questions))
            chat.move("answering")
            self._put(chat)
        return len(chat.questions)

    def stop(self, number: str) -> Chat:
        """End the answers under way where they are."""
        chat = self.chat(number)
        chat.is_stopped = True
        return chat

    def vote(self, number: str, question: int, vote: Literal["left", "right", "tie"]) -> dict[str, Any]:
        """Take a vote on the answers to a question, and say whose they are.

        Raises:
            JobError: there is nothing to vote on, or it was voted already.
        """
        chat = self.chat(number)
        with self._lock:
            asked = chat.questions[question - 1] if question <= len(chat.questions) else None
            if asked is None or not chat.is_blind or not asked.is_over or asked.vote:
                expected = "answers of a blind chat, whole, and not voted on"
                raise JobError(f"chat {number}: question {question}", "there is nothing to vote on", expected)
            winner = asked.winner(vote)
            self.votes.add(chat.run, winner, asked.left, asked.text, asked.answers, chat.adapter)
            asked.vote = winner
            return tell_sides(chat, question)

    def close(self, number: str) -> None:
        """Forget a chat."""
        chat = self.stop(number)
        with self._lock:
            self._chats.pop(number, None)
            chat.move("closed")

    def _validate_room(self) -> None:
        if self._due.qsize() >= MOST_WAITING:
            raise EnvironmentLackError("chat", f"{MOST_WAITING} questions wait", mend="Try again in a moment.")

    def _put(self, chat: Chat) -> None:
        self._due.put(chat)
        if self._thread is None:
            self._thread = threading.Thread(target=self._go_on, name="chats", daemon=True)
            self._thread.start()

    # -- the thread that talks --------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Chat after chat. The model's process belongs to this thread and ends with it at the latest."""
        idle = 0.0
        while True:
            try:
                self._serve(self._due.get(timeout=SECONDS_BETWEEN_LOOKS))
                idle = 0.0
            except queue.Empty:
                idle += SECONDS_BETWEEN_LOOKS
            if self._model and (idle > SECONDS_KEPT_IDLE or self._model.slot in self._slots_at_work()):
                self._drop_model()

    def _serve(self, chat: Chat) -> None:
        """Load the model of a chat, and answer its question if it has one that is open."""
        if chat.state == "closed":
            return
        try:
            model = self._model_of(chat)
            if chat.questions and not chat.questions[-1].is_over:
                self._answer(chat, model, chat.questions[-1])
            chat.move("ready")
        except (TunewrightError, OSError) as error:
            chat.move("failed", str(error))

    def _model_of(self, chat: Chat) -> ChatModel:
        wanted = chat.run, chat.adapter
        if self._model is None or self._model.talks_of != wanted or not self._model.is_alive:
            self._drop_model()
            chat.move("loading")
            self._model = ChatModel(self.runs.root, wanted, self.command, self._free_slot())
            self._model.wait_until_ready(lambda: chat.state == "closed")
            if chat.questions:
                chat.move("answering")
        return self._model

    def _answer(self, chat: Chat, model: ChatModel, question: Question) -> None:
        number = len(chat.questions)
        for pieces in model.answer({side: chat.messages_of(side) for side in question.answers}):
            for side, piece in pieces.items():
                question.answers[side] += piece
            chat.tell("pieces", number=number, **{place: pieces.get(question.who(place), "") for place in PLACES})
            if model.slot in self._slots_at_work():
                model.close()
                raise EngineError("chat", "a job needs the GPU", mend="Begin a new chat when it is free.")
            if chat.is_stopped:
                chat.is_stopped = False
                model.stop()
        question.is_over = True
        chat.tell("answered", number=number)

    def _drop_model(self) -> None:
        if self._model is not None:
            self._model.close()
        self._model = None

    def _slots_at_work(self) -> set[str]:
        return {str(attempt["slot"]) for attempt in self.board.facts.get("at_work", [])}

    def _free_slot(self) -> str:
        """A GPU that no job has; jobs go first."""
        gpus = [slot for slot in self.board.scheduler.slots if slot.startswith("gpu")]
        return next((slot for slot in gpus if slot not in self._slots_at_work()), "")


def tell_sides(chat: Chat, number: int) -> dict[str, Any]:
    question = chat.questions[number - 1]
    left, right = map(question.who, PLACES)
    sides = {"number": number, "left": left, "right": right, "vote": question.vote}
    chat.tell("sides", **sides)
    return sides


def other(side: str) -> str:
    return "base" if side == "tuned" else "tuned"


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
