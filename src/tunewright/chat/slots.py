"""The parts of a conversation that a template prints, and the same conversation with a mark in the place of each.

In: messages. Out: their slots, and messages that differ from them only in that each slot's text is a mark. A template
that is given both writes the same frame around both, so the marked text shows which characters come from which part.
Always: whitespace around a part, keys of arguments, and all that has no text of its own stay as they are.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunewright.chat.conversation import Message, ToolCall

Kind = Literal["content", "reasoning", "argument"]

# Plain letters and digits, which no template escapes, trims or cuts; a number stays a number.
MARK = re.compile(r"Qzx(\d+)xzQ|73195(\d{4})59137")
MOST_SLOTS = 9999
# The block that data keeps at the start of a content (see `data/normal.py`), with the whitespace around its parts.
THOUGHT = re.compile(r"(\s*<think>)(.*?)(</think>)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Slot:
    """A part of a message.

    Attributes:
        message: index of its message.
        kind: what it is.
        text: what has to stand in the rendered text, without whitespace around it.
        before, after: the whitespace that the message has there.
        spelling: another way to write it, for numbers.
    """

    message: int
    kind: Kind
    text: str
    before: str = ""
    after: str = ""
    spelling: str = ""

    def writings(self) -> Iterator[str]:
        """The ways to write it that lose nothing: as it is, as Python spells it, within a JSON string."""
        yield self.text
        if self.spelling:
            yield self.spelling
        yield from json_texts(self.text)


@dataclass(frozen=True)
class Marked:
    """Messages with marks, and the slots in the order of their numbers."""

    messages: tuple[Message, ...]
    slots: tuple[Slot, ...]


def mark(messages: Sequence[Message], text_arguments: bool = False) -> Marked:
    """The marked form of `messages`; with `text_arguments` the arguments of a call are one slot of JSON text."""
    marker = _Marker()
    marked = tuple([marker.message(index, message, text_arguments) for index, message in enumerate(messages)])
    return Marked(marked, tuple(marker.slots))


class _Marker:
    def __init__(self) -> None:
        self.slots: list[Slot] = []

    def message(self, index: int, message: Message, text_arguments: bool) -> Message:
        content, reasoning, calls = message.content, message.reasoning, message.tool_calls
        if reasoning:
            reasoning = self.text(index, "reasoning", reasoning)
        if content:
            content = self.content(index, message.role, content)
        if calls:
            calls = tuple(replace(call, arguments=self.arguments(index, call, text_arguments)) for call in calls)
        return Message(
            message.role,
            content,
            message.train,
            reasoning,
            message.train_reasoning,
            calls,
            message.name,
            message.tool_call_id,
        )

    def content(self, index: int, role: str, content: str) -> str:
        thought = THOUGHT.fullmatch(content) if role == "assistant" and "<think>" in content else None
        if thought is None:
            return self.text(index, "content", content)
        opening, inner, closing, rest = thought.groups()
        return opening + self.text(index, "reasoning", inner) + closing + self.text(index, "content", rest)

    def text(self, index: int, kind: Kind, text: str) -> str:
        """`text` with a mark in place of what it says; the same text where it says nothing."""
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        before, after = text[:start], text[start + len(core) :]
        return before + self.add(Slot(index, kind, core, before, after)) + after

    def add(self, slot: Slot) -> str:
        self.slots.append(slot)
        return f"Qzx{len(self.slots) - 1}xzQ"

    def arguments(self, index: int, call: ToolCall, as_text: bool) -> str:
        if as_text:
            return self.text(index, "argument", call.arguments)
        return json.dumps(self.value(index, json.loads(call.arguments)), ensure_ascii=False)

    def value(self, index: int, value: Any) -> Any:
        """A JSON value with marks for its texts and numbers."""
        if isinstance(value, str):
            return self.text(index, "argument", value)
        if isinstance(value, dict):
            return {key: self.value(index, item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(index, item) for item in value]
        if isinstance(value, (int, float)) and not isinstance(value, bool) and len(self.slots) < MOST_SLOTS:
            self.slots.append(Slot(index, "argument", json.dumps(value), spelling=str(value)))
            return int(f"73195{len(self.slots) - 1:04}59137")
        return value


def json_texts(text: str) -> tuple[str, ...]:
    """How `text` may stand within a JSON string; empty where it stands there as it is."""
    plain, escaped = json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1]
    in_html = plain
    for character in "<>&'":
        in_html = in_html.replace(character, f"\\u{ord(character):04x}")
    return tuple(dict.fromkeys(each for each in (plain, escaped, in_html) if each != text))
