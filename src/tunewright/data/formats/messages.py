"""Lists of messages: OpenAI's `role` and `content`, ShareGPT's `from` and `value`.

In: the list, as JSON or as JSON text. Out: one turn for each message, content parts joined, tool calls and reasoning
beside the content. What a message has besides is noted as ignored; what would change the meaning is a fault.

Sources: https://platform.openai.com/docs/guides/supervised-fine-tuning, LLaMA-Factory's `data/README.md`, whose parts
`{"type": "text", "value": …}` and weights `loss_weight` are understood too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tunewright.chat.conversation import Role, ToolCall
from tunewright.data.exact_json import Json, JsonNumber
from tunewright.data.faults import RowError, a_kind
from tunewright.data.formats import roles
from tunewright.data.formats.reading import Reading, RowObject, Turn, holds_nothing, is_absent, listed
from tunewright.data.formats.roles import read_role
from tunewright.data.formats.tool_calls import read_call, read_calls, read_id

MEDIA = {
    "images": "images",
    "image": "images",
    "videos": "videos",
    "video": "videos",
    "audios": "audio",
    "audio": "audio",
}
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
WEIGHT_KEYS = ("train", "training", "weight", "loss_weight")
CALL_KEYS = ("tool_calls", "function_call")
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
TEXT_KEYS = ("text", "value")
USED = frozenset({*REASONING_KEYS, *WEIGHT_KEYS, *CALL_KEYS, "name", "tool_call_id", "train_reasoning"})


def read_messages(items: Json, path: str, reading: Reading) -> list[Turn]:
    messages = reading.list_of(items, path, "messages")
    if not messages:
        raise RowError("no messages", f"{path} is empty; expected a user's and an assistant's message", path)
    return [read_message(item, f"{path}[{number}]", reading) for number, item in enumerate(messages)]


def read_message(item: Json, path: str, reading: Reading) -> Turn:
    if not isinstance(item, dict):
        found = f"{path} is {a_kind(item)}; expected an object with role and content"
        raise RowError("unknown shape", found, path)
    role_key, content_key, own = keys_of(item, reading)
    role = read_role(item.get(role_key), f"{path}.{role_key}", own, reading)
    content, where = item.get(content_key), f"{path}.{content_key}"
    if len(item) == 2 and isinstance(content, str) and item[role_key] not in roles.CALLS:
        return Turn(role, content, path, where)
    return read_rich_message(item, Turn(role, content, path, where), role_key, content_key, reading)


def keys_of(item: RowObject, reading: Reading) -> tuple[str, str, Mapping[str, Role]]:
    """The keys that hold role and content, and the names that roles have beside them."""
    if "role" in item and "content" in item and not reading.columns:
        return "role", "content", roles.OPENAI
    is_sharegpt = "from" in item and "role" not in item
    role_key = reading.columns.get("role", "from" if is_sharegpt else "role")
    is_value = "value" in item and "content" not in item
    content_key = reading.columns.get("content", "value" if is_value else "content")
    return role_key, content_key, roles.SHAREGPT if is_sharegpt else roles.OPENAI


def read_rich_message(item: RowObject, turn: Turn, role_key: str, content_key: str, reading: Reading) -> Turn:
    """A message that has more than a role and a text."""
    validate_message(item, turn.path)
    turn.train = is_trained(item, turn.path)
    read_beside(item, turn, reading)
    if item[role_key] in roles.CALLS:
        turn.value, turn.calls = None, read_calls(item.get(content_key), turn.field, reading)
    elif is_part_list(turn.value):
        take_parts(turn, reading)
    if content_key not in item and not turn.calls:
        raise RowError("no content", f"{turn.path} has the keys {listed(item)}; expected {content_key!r}", turn.field)
    unused = item.keys() - USED - {role_key, content_key}
    if unused:
        where = turn.path.rpartition("[")[0]
        reading.ignore(*(f"{where}[].{key}" for key in item if key in unused and not is_absent(item[key])))
    return turn


def validate_message(item: RowObject, path: str) -> None:
    """Raise if a message holds what is not trained, or what belongs to the row."""
    for key, what in MEDIA.items():
        if not holds_nothing(item.get(key)):
            raise RowError(f"{what} not trained", f"found {key!r}; tunewright trains text", f"{path}.{key}")
    for key in ("tools", "functions"):
        if not holds_nothing(item.get(key)):
            found = f"{path} holds the list of tools; expected it beside the messages"
            raise RowError("tools in a message", found, f"{path}.{key}", "Move it to the key 'tools' of the row.")


def is_trained(item: RowObject, path: str) -> bool:
    """Whether neither `train: false` nor a weight of 0 switches the message off."""
    trained = True
    for key in WEIGHT_KEYS:
        value = item.get(key)
        if value is None:
            continue
        number = float(value.text) if isinstance(value, JsonNumber) else value
        if not isinstance(value, bool | JsonNumber) or number not in (0, 1):
            raise RowError("weight not 0 or 1", f"{key} is not 0, 1, false or true", f"{path}.{key}")
        trained = trained and bool(number)
    return trained


def read_beside(item: RowObject, turn: Turn, reading: Reading) -> None:
    """What stands beside the content: tool calls, reasoning, names."""
    for key in CALL_KEYS:
        if not holds_nothing(item.get(key)):
            turn.calls += read_calls(item[key], f"{turn.path}.{key}", reading)
    if turn.calls and turn.role != "assistant":
        found = f'{turn.path} is "{turn.role}" and calls a tool; expected "assistant"'
        raise RowError("broken tool call", found, turn.path)
    for key in REASONING_KEYS:
        if holds_nothing(item.get(key)):
            continue
        if turn.role != "assistant" or turn.reasoning is not None:
            reading.ignore(f"{turn.path.rpartition('[')[0]}[].{key}")
            continue
        turn.reasoning, turn.reasoning_field = item[key], f"{turn.path}.{key}"
    turn.name = read_id(item.get("name"), f"{turn.path}.name")
    turn.answers = read_id(item.get("tool_call_id"), f"{turn.path}.tool_call_id")


def is_part_list(value: Json) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in value)
    )


@dataclass(slots=True)
class Parts:
    """Content parts by what they are; the texts of each kind belong together."""

    texts: list[str]
    reasoning: list[str]
    calls: list[ToolCall]


def take_parts(turn: Turn, reading: Reading) -> None:
    """Put the parts of a content where they belong.

    Texts are joined with nothing between, as chat templates write them.
    """
    parts = Parts([], [], [])
    for number, part in enumerate(turn.value):
        read_part(part, f"{turn.field}[{number}]", parts, reading)
    if (parts.calls or parts.reasoning) and turn.role != "assistant":
        found = f'{turn.path} is "{turn.role}" and holds the assistant\'s own parts; expected texts'
        raise RowError("broken content parts", found, turn.field)
    turn.value = "".join(parts.texts) if parts.texts else None
    turn.calls += tuple(parts.calls)
    if parts.reasoning:
        turn.reasoning, turn.reasoning_field = "".join(parts.reasoning), turn.field


def read_part(part: RowObject, where: str, parts: Parts, reading: Reading) -> None:
    kind = part["type"]
    if kind in TEXT_PARTS:
        parts.texts.append(part_text(part, TEXT_KEYS, where))
    elif kind in {"reasoning", "thinking"}:
        parts.reasoning.append(part_text(part, (kind, "text", "value"), where))
    elif kind in {"tool_call", "function_call"} and "value" in part:
        parts.calls.extend(read_calls(part["value"], f"{where}.value", reading))
    elif kind in {"tool_use", "tool_call", "function_call"}:
        parts.calls.append(read_call(part, where, reading))
    else:
        known = {"image": "images", "video": "videos", "audio": "audio"}
        what = next((what for key, what in known.items() if key in kind), "content parts of this kind")
        raise RowError(f"{what} not trained", f"found a part of type {kind!r}; expected 'text'", f"{where}.type")


def part_text(part: RowObject, keys: tuple[str, ...], where: str) -> str:
    key = next((key for key in keys if key in part), keys[0])
    text = part.get(key)
    if not isinstance(text, str):
        raise RowError("unknown shape", f"the {part['type']} part holds {a_kind(text)}", f"{where}.{key}")
    return text


def is_message(value: Json) -> bool:
    return isinstance(value, dict) and ("role" in value or ("from" in value and "value" in value))


def is_message_list(value: Json) -> bool:
    return isinstance(value, list) and bool(value) and all(is_message(item) for item in value)
