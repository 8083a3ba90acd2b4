"""Whether a template shows what stands beside the texts: definitions of tools, names of calls and of speakers.

In: a setting and marked messages. Out: notes on what is not shown, or an `UnprovenError` where a call or a tool would
be lost. Found by rendering with marks in place of names and descriptions, and looking which marks are there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tunewright.chat.conversation import Message
from tunewright.chat.frame import Setting
from tunewright.chat.proof import UnprovenError
from tunewright.chat.skeleton import Skeleton, skeleton_of
from tunewright.chat.slots import Marked
from tunewright.errors import RenderError

CONSTANT_MARK = "Czx0xzC"


def shown_notes(setting: Setting, marked: Marked, skeleton: Skeleton) -> list[str]:
    messages = marked.messages
    return [
        *notes_on_system(setting, marked, skeleton),
        *notes_on_names(setting, messages),
        *notes_on_tools(setting, messages),
        *notes_on_constants(setting, messages),
    ]


def notes_on_system(setting: Setting, marked: Marked, skeleton: Skeleton) -> list[str]:
    """Whether the system prompt stands within a user's turn: behind what opens that turn where there is none."""
    first, *rest = marked.messages
    if first.role != "system" or not marked.slots or marked.slots[0].message != 0 or not rest:
        return []
    place = skeleton.order.index(0)
    if place > 0:
        return ["the template moves the system prompt behind earlier messages"]
    try:
        opening = skeleton_of(setting.render(rest)).pieces[0]
    except RenderError:
        return []
    if opening.strip() and skeleton.pieces[0].startswith(opening):
        return ["the template folds the system prompt into the first user's turn"]
    return []


def notes_on_names(setting: Setting, messages: tuple[Message, ...]) -> list[str]:
    """Every call has to be shown by name; other names are context that inference does not see either."""
    calls = [(index, call.name) for index, message in enumerate(messages) for call in message.tool_calls]
    marks = {name: f"Nzx{number}xzN" for number, name in enumerate(dict.fromkeys(name for _, name in calls))}
    if calls:
        text = rendered_with(setting, [with_called_names(message, marks) for message in messages])
        for index, name in calls:
            if text.count(marks[name]) < sum(other == name for _, other in calls):
                raise UnprovenError("f", f"the template loses a call of {name!r}", index)
    speakers = {index: message.name for index, message in enumerate(messages) if message.name is not None}
    if not speakers:
        return []
    marked = [replace(each, name=f"Nzx{n}xzN" if n in speakers else None) for n, each in enumerate(messages)]
    text = rendered_with(setting, marked)
    hidden = [(index, name) for index, name in speakers.items() if f"Nzx{index}xzN" not in text]
    return [f"the name {name!r} of message {index} is not shown to the model" for index, name in hidden]


def rendered_with(setting: Setting, messages: Sequence[Message]) -> str:
    try:
        return setting.render(messages)
    except RenderError as error:
        raise UnprovenError("f", f"the template takes only some names of tools ({error.found})") from None


def with_called_names(message: Message, marks: Mapping[str, str]) -> Message:
    """The message with marks for the names of its calls; ids that are made of them have the marks too."""
    calls = tuple(
        replace(call, name=marks[call.name], id=call.id and call.id.replace(call.name, marks[call.name]))
        for call in message.tool_calls
    )
    return replace(message, tool_calls=calls)


def notes_on_tools(setting: Setting, messages: tuple[Message, ...]) -> list[str]:
    """Every tool has to be shown by name; descriptions and parameters that are not shown are noted."""
    if setting.tools is None or not json.loads(setting.tools):
        return []
    marker = _ToolMarker()
    tools = json.dumps(marker.value(json.loads(setting.tools), ""), ensure_ascii=False)
    try:
        text = replace(setting, tools=tools).render(messages)
    except RenderError as error:
        raise UnprovenError("f", f"the template takes only some definitions of tools ({error.found})") from None
    hidden = [(kind, name) for mark, (kind, name) in marker.marks.items() if mark not in text]
    lost = [name for kind, name in hidden if kind == "name"]
    if lost:
        mend = "Choose a base whose template takes tools, or leave them out."
        raise UnprovenError("f", f"the template does not show the tool {lost[0]!r}", mend=mend)
    kinds = {"description": "a description of the tools", "parameter": "a parameter of the tools"}
    return [f"{kinds[kind]} is not shown to the model: {name[:40]!r}" for kind, name in hidden]


def notes_on_constants(setting: Setting, messages: tuple[Message, ...]) -> list[str]:
    """Arguments that are true, false or null, where the template writes them as Python does and not as JSON does."""
    if setting.form.text_arguments:
        return []
    notes = []
    for index, message in enumerate(messages):
        for place, call in enumerate(message.tool_calls):
            arguments = json.loads(call.arguments)
            for name, value in arguments.items() if isinstance(arguments, dict) else ():
                if value is None or isinstance(value, bool):
                    marked = replace(call, arguments=json.dumps({**arguments, name: CONSTANT_MARK}))
                    calls = (*message.tool_calls[:place], marked, *message.tool_calls[place + 1 :])
                    changed = (*messages[:index], replace(message, tool_calls=calls), *messages[index + 1 :])
                    if is_written_as(str(value), setting, messages, changed):
                        notes.append(f"the template writes {value} for {json.dumps(value)} in a call of {call.name!r}")
    return notes


def is_written_as(text: str, setting: Setting, messages: Sequence[Message], marked: Sequence[Message]) -> bool:
    """Whether `text` stands in `messages` where `marked` has the mark of a constant."""
    try:
        return setting.render(messages) == setting.render(marked).replace(CONSTANT_MARK, text)
    except RenderError:
        return False


class _ToolMarker:
    """Tools with marks in the place of names, descriptions and parameters.

    Attributes:
        marks: for each mark, what it stands for.
    """

    def __init__(self) -> None:
        self.marks: dict[str, tuple[str, str]] = {}
        self._parameters: dict[str, str] = {}

    def value(self, value: Any, key: str) -> Any:
        if isinstance(value, list):
            if key == "required":
                return [self._parameters.get(item, item) if isinstance(item, str) else item for item in value]
            return [self.value(item, key) for item in value]
        if not isinstance(value, dict):
            is_text = key in {"name", "description"} and isinstance(value, str) and value.strip()
            return self.mark(key, value) if is_text else value
        if key == "properties":
            return {self.parameter(name): self.value(item, name) for name, item in value.items()}
        # What is required names parameters, which have to be known by then.
        found = {name: self.value(item, name) for name, item in value.items() if name != "required"}
        return {name: found[name] if name != "required" else self.value(value[name], name) for name in value}

    def mark(self, kind: str, text: str) -> str:
        mark = f"Tzx{len(self.marks)}xzT"
        self.marks[mark] = (kind, text)
        return mark

    def parameter(self, name: str) -> str:
        if name not in self._parameters:
            self._parameters[name] = self.mark("parameter", name)
        return self._parameters[name]
