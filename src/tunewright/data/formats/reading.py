"""What the readers of every format share: the turns that they give, and what they note about the row on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tunewright.chat.conversation import Role, ToolCall
from tunewright.data.exact_json import Json, JsonNumber, json_text, parse_json
from tunewright.data.faults import Repair, RowError, a_kind, json_kind, writable

RowObject = dict[str, Json]
NO_NAMES: Mapping[str, str] = {}
NO_ROLES: Mapping[str, Role] = {}


@dataclass(slots=True)
class Turn:
    """One message as the row had it.

    Attributes:
        role: in the normal form.
        value: the content, of any JSON type; None for none.
        path: of the message, such as `messages[1]`; of the value itself where a message is not an object.
        field: the path of the content, such as `messages[1].content`.
        train: False if the row switches this turn off.
        reasoning, reasoning_field: what stands beside the content as reasoning, and its path.
        calls: of tools.
        name: of the speaker or the tool.
        answers: the id of the call that a tool answers.
    """

    role: Role
    value: Json
    path: str
    field: str
    train: bool = True
    reasoning: Json = None
    reasoning_field: str = ""
    calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    answers: str | None = None


@dataclass(slots=True)
class Dialogue:
    """The turns of one conversation, and the turns that were not preferred to its last ones."""

    turns: list[Turn]
    rejected: list[Turn] = field(default_factory=list)


@dataclass(slots=True)
class Reading:
    """One row while it is read.

    Attributes:
        format: its name, as soon as it is known.
        repairs: what was mended so far.
        doubts: why its shape could be read otherwise, without values of the row: they are counted.
        ignored: keys that nothing was read from, such as `id` and `messages[].time`.
        tools: the JSON text of the list of tools.
        columns: the recipe's, by normal key.
        roles: the recipe's, by the row's name.
    """

    repairs: list[Repair]
    columns: Mapping[str, str] = field(default_factory=lambda: NO_NAMES)
    roles: Mapping[str, Role] = field(default_factory=lambda: NO_ROLES)
    format: str = "unknown"
    doubts: list[str] = field(default_factory=list)
    ignored: tuple[str, ...] = ()
    tools: str | None = None

    def path(self, key: str) -> str:
        """The row's own name of a normal key."""
        return self.columns.get(key, key) if self.columns else key

    def repair(self, what: str, where: str) -> None:
        self.repairs.append(Repair(what, where))

    def doubt(self, why: str) -> None:
        if why not in self.doubts:
            self.doubts.append(why)

    def ignore(self, *keys: str) -> None:
        self.ignored = tuple(dict.fromkeys((*self.ignored, *map(writable, keys))))

    def text_of(self, value: Json, where: str) -> str:
        """A text as it is, any other value as its JSON text, which is a repair."""
        if isinstance(value, str):
            return value
        self.repair(f"{json_kind(value)} written as JSON text", where)
        return json_text(value)

    def list_of(self, value: Json, where: str, what: str) -> list[Json]:
        """A list, given as such or, as tables have to, as JSON text, which is a repair."""
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = parsed_text(value, where)
            self.repair("JSON text read as a list", where)
        if not isinstance(value, list):
            raise RowError("unknown shape", f"{where} is {a_kind(value)}; expected a list of {what}", where)
        return value


def parsed_text(text: str, where: str) -> Json:
    """The value of a JSON text that stands in a row; a fault is the field's."""
    try:
        return parse_json(text)
    except RowError as fault:
        raise RowError(fault.kind, f"{where} is not JSON: {fault.detail}", where) from None


def is_absent(value: Json) -> bool:
    return value is None or value == ""


def holds_nothing(value: Json) -> bool:
    """Whether a key for tools, images and the like has nothing in it; some tools write lists as JSON text."""
    return value is None or value is False or value in ("", "[]", "{}", [], {})


def is_switch(value: Json) -> bool:
    """Whether a value could mean true or false, though it is no boolean."""
    text = value.text if isinstance(value, JsonNumber) else value
    return isinstance(text, str) and text.lower() in {"0", "1", "0.0", "1.0", "true", "false"}


def listed(row: RowObject, most: int = 12) -> str:
    names = [repr(key) for key in row]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"
