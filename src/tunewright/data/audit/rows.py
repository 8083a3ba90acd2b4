"""The row as the audit sees it, and as the numbers that are kept of it are computed from.

In: a conversation in its normal form. Out: its trained turns with what they answer and, where a target is JSON, its
objects and strings. A target is what a trained turn of the assistant says; a call of a tool counts as its JSON text.
Whatever the conversation, nothing here raises; what is computed is computed once.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from tunewright.chat.conversation import Conversation, Message

NOT_JSON = object()
DECODER = json.JSONDecoder(parse_int=float)
JSON_OPENS = ("{", "[")
SPACES_IN_PROSE = 3


@dataclass(frozen=True)
class Exchange:
    """A trained turn and the user's turn before it, empty if there is none.

    Attributes:
        calls_tools: whether the target has calls of tools, whose form is that of the tools and not of the data.
    """

    user: str
    target: str
    calls_tools: bool = False

    @cached_property
    def value(self) -> Any:
        """The target as JSON object or array; `NOT_JSON` if it is neither."""
        if not self.target.lstrip().startswith(JSON_OPENS):
            return NOT_JSON
        try:
            return DECODER.decode(self.target)
        except (ValueError, RecursionError):
            return NOT_JSON

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        """Every object in the target, the outermost first."""
        return [] if self.value is NOT_JSON else list(objects_in(self.value))

    @cached_property
    def texts(self) -> list[str]:
        """What a person reads in the target: its strings if it is JSON, else the target itself."""
        return [self.target] if self.value is NOT_JSON else list(strings_in(self.value))

    @property
    def prose(self) -> str:
        """What has a language: the target, or where it is JSON its strings of several words, each on its line."""
        if self.value is NOT_JSON:
            return self.target
        return "\n".join([text for text in self.texts if text.count(" ") >= SPACES_IN_PROSE or not text.isascii()])


@dataclass(frozen=True)
class AuditRow:
    """A usable conversation."""

    conversation: Conversation

    @property
    def id(self) -> str:
        return self.conversation.id

    @property
    def system(self) -> str | None:
        return self.conversation.system

    @cached_property
    def exchanges(self) -> tuple[Exchange, ...]:
        """The trained turns in order."""
        user = ""
        found = []
        for message in self.conversation.messages:
            if message.role == "user":
                user = message.text
            elif is_trained(message):
                found.append(Exchange(user, message.text, bool(message.tool_calls)))
        return tuple(found)

    @cached_property
    def last(self) -> Exchange:
        """The last trained turn; an empty one if no turn is trained."""
        return self.exchanges[-1] if self.exchanges else Exchange("", "")

    @property
    def target(self) -> str:
        return self.last.target

    @cached_property
    def prompt(self) -> str:
        """What stands before the last trained turn, without the system prompt."""
        messages = self.conversation.messages
        end = max((number for number, message in enumerate(messages) if is_trained(message)), default=len(messages))
        return "\n".join([message.text for message in messages[:end] if message.role != "system"])

    @property
    def context(self) -> tuple[str | None, str | None, str]:
        """The whole of what the last trained turn is conditioned on: system prompt, tools, prompt."""
        return self.system, self.conversation.tools, self.prompt

    @cached_property
    def schema(self) -> str | None:
        """The shape of a JSON target, see `shape_text`; None if the target is no JSON object or array."""
        if self.last.calls_tools or self.last.value is NOT_JSON:
            return None
        try:
            return shape_text(self.last.value)
        except RecursionError:
            return None

    @cached_property
    def parts(self) -> list[str]:
        """Every text in the conversation, message by message; a turn's reasoning follows what it says."""
        return [text for message in self.conversation.messages for text in (message.text, message.reasoning) if text]

    @cached_property
    def text(self) -> str:
        """Every text in the conversation."""
        return "\n".join(self.parts)


def is_trained(message: Message) -> bool:
    return message.role == "assistant" and message.train


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


def shape_text(value: Any) -> str:
    """The shape of a JSON value, itself as JSON text: keys sorted, each value as the name of its type.

    The types are text, empty (a text without characters), number, boolean and null; a list is the list of the shapes
    that its items have, each once.
    """
    if isinstance(value, str):
        return '"text"' if value and not value.isspace() else '"empty"'
    if isinstance(value, dict):
        return "{" + ",".join([f"{_quoted(key)}:{shape_text(value[key])}" for key in sorted(value)]) + "}"
    if isinstance(value, list):
        return "[" + ",".join(sorted({shape_text(item) for item in value})) + "]"
    return _SCALAR_SHAPES.get(type(value), '"number"')


_SCALAR_SHAPES = {bool: '"boolean"', type(None): '"null"'}


@lru_cache(maxsize=10_000)
def _quoted(key: str) -> str:
    return json.dumps(key)
