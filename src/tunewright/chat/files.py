"""Conversations on disk: JSON Lines, one conversation a line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tunewright.chat.conversation import Conversation, conversation_from_json


def read_conversations(path: Path) -> Iterator[Conversation]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield conversation_from_json(json.loads(line))


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> int:
    """Write `conversations` and return how many there were."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, conversation in enumerate(conversations, 1):  # noqa: B007
            file.write(json.dumps(conversation.as_json(), ensure_ascii=False) + "\n")
    return count
