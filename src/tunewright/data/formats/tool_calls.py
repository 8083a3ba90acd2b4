"""Tools in rows: the list of those that may be called, and the calls, both as exact JSON text.

In: what a row has, in OpenAI's form (`{"id", "type", "function": {"name", "arguments"}}`), as a bare
`{"name", "arguments"}`, or as Anthropic's `{"name", "input"}`; each as JSON or as JSON text. Out: JSON text that is
exactly the row's where it was text, and `json_text` of the value where it was not.
"""

from tunewright.chat.conversation import ToolCall
from tunewright.data.exact_json import Json, json_text
from tunewright.data.faults import RowError, a_kind
from tunewright.data.formats.reading import Reading, holds_nothing, is_absent, parsed_text

ARGUMENT_KEYS = ("arguments", "parameters", "input")


def read_tools(value: Json, where: str) -> str | None:
    """The JSON text of a list of tools; None if there are none."""
    if holds_nothing(value):
        return None
    tools = parsed_text(value, where) if isinstance(value, str) else value
    if not isinstance(tools, list):
        raise RowError("unknown shape", f"{where} is {a_kind(tools)}; expected a list of tools", where)
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict):
            found = f"{where}[{number}] is {a_kind(tool)}; expected an object that describes a tool"
            raise RowError("unknown shape", found, f"{where}[{number}]")
    if not tools:
        return None
    return value if isinstance(value, str) else json_text(value)


def read_calls(value: Json, where: str, reading: Reading) -> tuple[ToolCall, ...]:
    """The calls in a list, a single object, or the JSON text of either."""
    if isinstance(value, str):
        value = parsed_text(value, where)
    if isinstance(value, list):
        return tuple(read_call(item, f"{where}[{number}]", reading) for number, item in enumerate(value))
    return (read_call(value, where, reading),)


def read_call(item: Json, where: str, reading: Reading) -> ToolCall:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        function, inner = item["function"], f"{where}.function"
    else:
        function, inner = item, where
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        found = f"{inner} is {a_kind(function)}" if not isinstance(function, dict) else f"{inner} names no tool"
        raise RowError("broken tool call", f"{found}; expected an object with name and arguments", inner)
    key = next((key for key in ARGUMENT_KEYS if key in function), "arguments")
    arguments = read_arguments(function.get(key), f"{inner}.{key}", reading)
    return ToolCall(function["name"], arguments, read_id(item.get("id"), f"{where}.id"))


def read_arguments(value: Json, where: str, reading: Reading) -> str:
    """The exact JSON text of an object; none at all are `{}`, which is a repair."""
    if is_absent(value):
        reading.repair("missing arguments read as {}", where)
        return "{}"
    parsed = parsed_text(value, where) if isinstance(value, str) else value
    if not isinstance(parsed, dict):
        raise RowError("broken tool call", f"{where} is {a_kind(parsed)}; expected an object", where)
    return value if isinstance(value, str) else json_text(value)


def read_id(value: Json, where: str) -> str | None:
    """A name or an id as a text; a number by its digits."""
    if is_absent(value):
        return None
    if isinstance(value, bool | list | dict):
        raise RowError("unknown shape", f"{where} is {a_kind(value)}; expected a text", where)
    return value if isinstance(value, str) else json_text(value)
