"""The one normal form of a row: a conversation of typed messages whose contents are text.

What is not text in a row (the arguments of tool calls, the list of tools) is kept as its exact JSON text. On disk a
plain conversation is `{"id", "messages": [{"role", "content"}]}`; further keys stand there where they say something.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by the assistant.

    Attributes:
        name: of the tool.
        arguments: the exact JSON text of an object.
        id: which a tool's answer may name.
    """

    name: str
    arguments: str
    id: str | None = None

    def as_json(self) -> dict[str, Any]:
        data = {"name": self.name, "arguments": self.arguments}
        return data if self.id is None else {**data, "id": self.id}

    def for_template(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": json.loads(self.arguments)}
        if self.id is None:
            return {"type": "function", "function": function}
        return {"type": "function", "id": self.id, "function": function}

    @property
    def text(self) -> str:
        """The call as JSON text, its arguments as exact as they were."""
        return f'{{"name": {json.dumps(self.name, ensure_ascii=False)}, "arguments": {self.arguments}}}'


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks.
        content: the text, unchanged from the row (a value that was not text has become JSON text). None only for an
            assistant's turn that calls tools and says nothing.
        train: for an assistant's turn, whether it is learned; a row may switch single turns off.
        reasoning: what the assistant thought before it answered, where the row keeps it beside the content. A block
            `<think>…</think>` at the start of a content stays there.
        train_reasoning: whether the reasoning, beside the content or at its start, is learned with the turn.
        tool_calls: of an assistant's turn.
        name: of the speaker, or of the tool that answers.
        tool_call_id: of the call that a tool answers.
    """

    role: Role
    content: str | None
    train: bool = True
    reasoning: str | None = None
    train_reasoning: bool = True
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """Everything that the turn says: its content, and each tool call as JSON text on a line of its own."""
        if not self.tool_calls:
            return self.content or ""
        calls = [call.text for call in self.tool_calls]
        return "\n".join([self.content, *calls] if self.content else calls)

    def as_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if not self.train:
            data["train"] = False
        if self.reasoning is not None:
            data["reasoning"] = self.reasoning
        if not self.train_reasoning:
            data["train_reasoning"] = False
        if self.tool_calls:
            data["tool_calls"] = [call.as_json() for call in self.tool_calls]
        return data | self._names()

    def for_template(self) -> dict[str, Any]:
        """The form that Jinja chat templates expect; the arguments of tool calls are objects."""
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            data["reasoning_content"] = self.reasoning
        if self.tool_calls:
            data["tool_calls"] = [call.for_template() for call in self.tool_calls]
        return data | self._names()

    def _names(self) -> dict[str, str]:
        named = {"name": self.name, "tool_call_id": self.tool_call_id}
        return {key: value for key, value in named.items() if value is not None}


@dataclass(frozen=True)
class Conversation:
    """A row in its normal form.

    Attributes:
        id: where it came from, as `file.jsonl:12`; unique within a run.
        messages: at most one system message, which is first; then as `data/normal.py` says.
        tools: the exact JSON text of the list of tools that the assistant may call.
        rejected: the answer that was not preferred, in the place of the last turns; not learned.
        tree: what conversations of one tree have in common; they stay on one side of the split.
    """

    id: str
    messages: tuple[Message, ...]
    tools: str | None = None
    rejected: tuple[Message, ...] = ()
    tree: str | None = None

    def as_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"id": self.id, "messages": [message.as_json() for message in self.messages]}
        if self.tools is not None:
            data["tools"] = self.tools
        if self.rejected:
            data["rejected"] = [message.as_json() for message in self.rejected]
        if self.tree is not None:
            data["tree"] = self.tree
        return data

    @property
    def system(self) -> str | None:
        return self.messages[0].content if self.messages and self.messages[0].role == "system" else None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last turn, which is what inference sees."""
        return self.messages[:-1]

    @property
    def target(self) -> str:
        """What the last turn says, tool calls as JSON text."""
        return self.messages[-1].text

    def with_system(self, text: str) -> "Conversation":
        """The same conversation with `text` as its system prompt, replacing one that is there."""
        rest = self.messages[1:] if self.system is not None else self.messages
        return replace(self, messages=(Message("system", text), *rest))


def conversation_from_json(data: dict[str, Any]) -> Conversation:
    """What `Conversation.as_json` gave."""
    return Conversation(
        data["id"],
        messages_from_json(data["messages"]),
        data.get("tools"),
        messages_from_json(data.get("rejected", ())),
        data.get("tree"),
    )


def messages_from_json(items: Iterable[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(
        Message(**{**item, "tool_calls": tuple(ToolCall(**call) for call in item["tool_calls"])})
        if "tool_calls" in item
        else Message(**item)
        for item in items
    )


def messages_for_template(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [message.for_template() for message in messages]
