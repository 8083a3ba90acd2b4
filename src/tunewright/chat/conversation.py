"""The one normal form of a row: a conversation of typed messages whose contents are text."""

from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks.
        content: the text, unchanged from the row (a value that was not text has become JSON text).
        train: for an assistant's turn, whether it is learned; a row may switch single turns off.
    """

    role: Role
    content: str
    train: bool = True

    def as_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if not self.train:
            data["train"] = False
        return data

    def for_template(self) -> dict[str, str]:
        """The form that Jinja chat templates expect."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Conversation:
    """A row in its normal form.

    Attributes:
        id: where it came from, as `file.jsonl:12`; unique within a run.
        messages: at most one system message, which is first; then user and assistant in turn.
    """

    id: str
    messages: tuple[Message, ...]

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "messages": [message.as_json() for message in self.messages]}

    @property
    def system(self) -> str | None:
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last turn, which is what inference sees."""
        return self.messages[:-1]

    @property
    def target(self) -> str:
        """The last turn's text."""
        return self.messages[-1].content

    def with_system(self, text: str) -> "Conversation":
        """The same conversation with `text` as its system prompt, replacing one that is there."""
        rest = self.messages[1:] if self.system is not None else self.messages
        return replace(self, messages=(Message("system", text), *rest))


def conversation_from_json(data: dict[str, Any]) -> Conversation:
    messages = tuple(Message(item["role"], item["content"], item.get("train", True)) for item in data["messages"])
    return Conversation(data["id"], messages)


def messages_for_template(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [message.for_template() for message in messages]
