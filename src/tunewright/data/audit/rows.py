"""The rows that the audit looks at: conversations with their targets read once.

In: normal conversations with their split. Out: for each, its trained turns with what they answer and, where a target is
JSON, its objects and strings. Rows of both splits are audited.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tunewright.chat.conversation import Conversation
from tunewright.data.near import PromptIndex

NOT_JSON = object()


@dataclass(frozen=True)
class Exchange:
    """A trained turn and the user's turn that it answers."""

    user: str
    target: str

    @cached_property
    def value(self) -> Any:
        """The target as JSON object or array; `NOT_JSON` if it is neither."""
        if self.target.lstrip()[:1] not in {"{", "["}:
            return NOT_JSON
        try:
            return json.loads(self.target, parse_int=float)
        except (ValueError, RecursionError):
            return NOT_JSON

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        """Every object in the target, the outermost first."""
        return list(objects_in(self.value))

    @cached_property
    def texts(self) -> list[str]:
        """What a person reads in the target: its strings if it is JSON, else the target itself."""
        return [self.target] if self.value is NOT_JSON else list(strings_in(self.value))


@dataclass(frozen=True)
class AuditRow:
    """A kept row. `split` is `train` or `eval`."""

    conversation: Conversation
    split: str

    @property
    def id(self) -> str:
        return self.conversation.id

    @cached_property
    def exchanges(self) -> tuple[Exchange, ...]:
        """The trained turns in order; there is at least one."""
        messages = self.conversation.messages
        return tuple(
            Exchange(messages[number - 1].content, message.content)
            for number, message in enumerate(messages)
            if message.role == "assistant" and message.train
        )

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]

    @cached_property
    def _target_place(self) -> int:
        messages = self.conversation.messages
        return max(n for n, message in enumerate(messages) if message.role == "assistant" and message.train)

    @cached_property
    def prompt(self) -> str:
        """What stands before the last trained turn, without the system prompt."""
        before = self.conversation.messages[: self._target_place]
        return "\n".join(message.content for message in before if message.role != "system")

    @property
    def context(self) -> tuple[str | None, str]:
        """The whole of what the last trained turn is conditioned on."""
        return self.conversation.system, self.prompt


@dataclass(frozen=True)
class Corpus:
    """All kept rows, with the index of their prompts in the same order."""

    rows: Sequence[AuditRow]
    prompts: PromptIndex


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(reversed(item.values()))
        elif isinstance(item, list):
            waiting.extend(reversed(item))


def strings_in(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting.extend(reversed(item.values()))
        elif isinstance(item, list):
            waiting.extend(reversed(item))
