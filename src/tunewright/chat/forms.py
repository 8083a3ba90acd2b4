"""The forms in which templates take what is the same message: clients and engines differ in them, and so do templates.

In: messages. Out: the same messages in another form. The plain form is the one that transformers documents: contents
are text, arguments are objects, a turn that only calls tools has no content.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunewright.chat.conversation import Message, ToolCall


@dataclass(frozen=True)
class Form:
    """How messages are handed to a template.

    Attributes:
        text_arguments: arguments of tool calls are JSON text in place of objects.
        empty_content: a turn that only calls tools has the content "" in place of none.
        parts: a content is a list with one part of text.
    """

    text_arguments: bool = False
    empty_content: bool = False
    parts: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        said = {
            "arguments of tool calls are given to the template as JSON text": self.text_arguments,
            'a turn without content is given to the template with the content ""': self.empty_content,
            "contents are given to the template as lists of parts": self.parts,
        }
        return tuple(text for text, holds in said.items() if holds)

    def apply(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        if self == PLAIN:
            return tuple(messages)
        return tuple(FormedMessage(**vars(message), form=self) for message in messages)


PLAIN = Form()


@dataclass(frozen=True)
class FormedMessage(Message):
    """A message that reaches templates in a form of its own."""

    form: Form = field(default=PLAIN, kw_only=True)

    def for_template(self) -> dict[str, Any]:
        data = replace(self, tool_calls=()).plain() if self.form.text_arguments else self.plain()
        if self.form.text_arguments and self.tool_calls:
            data["tool_calls"] = [with_text_arguments(call) for call in self.tool_calls]
        if self.form.empty_content and self.content is None:
            data["content"] = ""
        if self.form.parts and data["content"] is not None:
            data["content"] = [{"type": "text", "text": data["content"]}]
        return data

    def plain(self) -> dict[str, Any]:
        return super().for_template()


def with_text_arguments(call: ToolCall) -> dict[str, Any]:
    data = replace(call, arguments="{}").for_template()
    data["function"]["arguments"] = call.arguments
    return data


def forms_for(messages: Sequence[Message]) -> Iterator[Form]:
    """Every form that makes a difference for `messages`, the plain one first."""
    calls = any(message.tool_calls for message in messages)
    bare = any(message.content is None for message in messages)
    for parts in (False, True):
        for empty_content in (False, True)[: 1 + bare]:
            for text_arguments in (False, True)[: 1 + calls]:
                yield Form(text_arguments, empty_content, parts)
