"""Conversations on disk: JSON Lines, one conversation a line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tunewright.chat.conversation import Conversation, conversation_from_json

ENCODE = json.JSONEncoder(ensure_ascii=False).encode


def conversation_line(conversation: Conversation) -> str:
    """The conversation as one line of JSON, its end included; `conversation_from_line` gives it back exactly."""
    return ENCODE(conversation.as_json()) + "\n"


def conversation_from_line(line: str | bytes) -> Conversation:
    return conversation_from_json(json.loads(line))


def read_conversations(path: Path) -> Iterator[Conversation]:
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield conversation_from_line(line)


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> int:
    """Write `conversations` and return how many there were."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for count, conversation in enumerate(conversations, 1):  # noqa: B007
            file.write(conversation_line(conversation))
    return count
