"""The shapes that a row may have, detected row by row, and how each is read into turns.

In: a parsed row. Out: the name of its format and its turns, in order, with roles in the normal form and contents still
as the row had them. A row that fits no format, or more than one, is an error that names the keys found and the shapes
expected. Keys that are no part of a format (`id`, `teacher` and the like) are left alone; keys that would change what
is trained (`images`, `tools`, `chosen`) are an error.

`FORMATS` is the table: a new shape is a new entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunewright.chat.conversation import Role
from tunewright.data.exact_json import Json, JsonNumber
from tunewright.data.faults import Repair, RowError, json_kind

RowObject = dict[str, Json]

OPENAI_ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
REPAIRED_ROLES: Mapping[str, Role] = {"developer": "system", "model": "assistant"}
SHAREGPT_ROLES: Mapping[str, Role] = {
    **OPENAI_ROLES,
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
TOOL_ROLES = frozenset(
    {"tool", "function", "function_call", "function_response", "tool_call", "observation", "ipython"}
)
PROMPT_KEYS = ("prompt", "question", "instruction", "input")
ANSWER_KEYS = ("completion", "response", "answer", "output")
EXTRA_INPUT_KEYS = ("input", "context")
UNTRAINED_KEYS = {
    "tools": "tool calls",
    "functions": "tool calls",
    "tool_calls": "tool calls",
    "function_call": "tool calls",
    "images": "images",
    "image": "images",
    "videos": "videos",
    "video": "videos",
    "audios": "audio",
    "audio": "audio",
}
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
WEIGHT_KEYS = ("weight", "loss_weight")


@dataclass(frozen=True)
class Turn:
    """One message as the row had it.

    Attributes:
        role: in the normal form.
        value: the content, of any JSON type.
        path: of the message, such as `messages[1]`; of the value itself where a message is not an object.
        field: the path of the content, such as `messages[1].content`.
        train: False if the row switches this turn off.
        parts: whether a list may be a list of content parts.
    """

    role: Role
    value: Json
    path: str
    field: str
    train: bool = True
    parts: bool = False


@dataclass(frozen=True)
class RowFormat:
    """A shape of rows.

    Attributes:
        name: stands in the ledger.
        keys: what a row must have to be of this shape.
        unless: keys that make it something else.
        read: the row's turns; adds what it mends to the list of repairs; raises `RowError`.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[RowObject, list[Repair]], list[Turn]]
    unless: tuple[str, ...] = ()

    def matches(self, row: RowObject) -> bool:
        return all(key in row for key in self.keys) and not any(key in row for key in self.unless)


def detect_format(row: Json) -> RowFormat:
    """The one format that a row has.

    Raises:
        RowError: the row is no object, fits no format, or fits several.
    """
    if not isinstance(row, dict):
        raise RowError("unknown shape", f"found a {json_kind(row)}; expected an object with the keys {SHAPES}")
    found = [item for item in FORMATS if item.matches(row)]
    if not found:
        raise RowError("unknown shape", f"found the keys {listed(row)}; expected {SHAPES}")
    if len(found) > 1:
        names = " and ".join(item.name for item in found)
        raise RowError("ambiguous shape", f"the keys {listed(row)} fit {names}; expected one of them")
    return found[0]


def read_turns(row_format: RowFormat, row: RowObject, repairs: list[Repair]) -> list[Turn]:
    """The turns of a row, a system prompt that stands beside the messages included.

    Raises:
        RowError: something in the row is not trained by this version, or is not what its format asks for.
    """
    validate_trainable(row, "")
    if row.get("label") is False:
        raise RowError("unwanted answer", "label is false, which marks an answer not to be learned", "label")
    turns = row_format.read(row, repairs)
    beside = next((key for key in ("system", "system_prompt") if not is_absent(row.get(key))), None)
    if beside is None:
        return turns
    if turns and turns[0].role == "system":
        raise RowError("two system prompts", f"{beside!r} stands beside a system message; expected one", beside)
    return [Turn("system", row[beside], beside, beside), *turns]


def validate_trainable(item: RowObject, path: str) -> None:
    """Raise if a row or a message holds what this version does not train."""
    for key, what in UNTRAINED_KEYS.items():
        if not holds_nothing(item.get(key)):
            raise RowError(f"{what} not trained", f"found {key!r}; this version trains text only", joined(path, key))
    for key in REASONING_KEYS:
        if path and not holds_nothing(item.get(key)):
            raise RowError(
                "reasoning not trained", f"found {key!r}; this version trains content only", joined(path, key)
            )


def is_absent(value: Json) -> bool:
    return value is None or value == ""


def holds_nothing(value: Json) -> bool:
    """Whether a key for tools, images and the like has nothing in it; some tools write lists as JSON text."""
    return value in (None, False, "", "[]", [], {})


def joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def listed(row: RowObject, most: int = 12) -> str:
    names = [repr(key) for key in row]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def read_openai(row: RowObject, repairs: list[Repair]) -> list[Turn]:
    """OpenAI's chat format, LLaMA-Factory's `{"type": "text", "value": …}` parts and `loss_weight` included.

    Source: https://platform.openai.com/docs/guides/supervised-fine-tuning
    """
    return read_messages(row["messages"], "messages", OPENAI_ROLES, repairs)


def read_sharegpt(row: RowObject, repairs: list[Repair]) -> list[Turn]:
    """`conversations` of `from` and `value`; `role` and `content` are understood too."""
    return read_messages(row["conversations"], "conversations", SHAREGPT_ROLES, repairs)


def read_messages(items: Json, path: str, roles: Mapping[str, Role], repairs: list[Repair]) -> list[Turn]:
    if not isinstance(items, list):
        raise RowError("unknown shape", f"{path} is a {json_kind(items)}; expected a list of messages", path)
    if not items:
        raise RowError("no messages", f"{path} is empty; expected a user's and an assistant's message", path)
    return [read_message(item, f"{path}[{number}]", roles, repairs) for number, item in enumerate(items)]


def read_message(item: Json, path: str, roles: Mapping[str, Role], repairs: list[Repair]) -> Turn:
    if not isinstance(item, dict):
        raise RowError(
            "unknown shape", f"{path} is a {json_kind(item)}; expected an object with role and content", path
        )
    role_key = "from" if "from" in item and "role" not in item else "role"
    content_key = "value" if "value" in item and "content" not in item else "content"
    validate_trainable(item, path)
    role = read_role(item.get(role_key), f"{path}.{role_key}", roles, repairs)
    if content_key not in item:
        raise RowError("no content", f"{path} has the keys {listed(item)}; expected 'content'", f"{path}.content")
    return Turn(role, item[content_key], path, f"{path}.{content_key}", is_trained(item, path), parts=True)


def read_role(name: Json, field: str, roles: Mapping[str, Role], repairs: list[Repair]) -> Role:
    if isinstance(name, str) and name in roles:
        return roles[name]
    if isinstance(name, str) and name in REPAIRED_ROLES:
        repairs.append(Repair(f"role {name} read as {REPAIRED_ROLES[name]}", field))
        return REPAIRED_ROLES[name]
    if isinstance(name, str) and name in TOOL_ROLES:
        raise RowError("tool calls not trained", f"found the role {name!r}; this version trains text only", field)
    found = repr(name) if isinstance(name, str) else json_kind(name)
    raise RowError("unknown role", f"found {found}; expected {', '.join({**roles, **REPAIRED_ROLES})}", field)


def is_trained(item: RowObject, path: str) -> bool:
    """Whether neither `train: false` nor a weight of 0 switches the message off."""
    trained = True
    for key in ("train", *WEIGHT_KEYS):
        value = item.get(key)
        if value is None:
            continue
        number = float(value.text) if isinstance(value, JsonNumber) else value
        if not isinstance(value, bool | JsonNumber) or number not in (0, 1):
            raise RowError("weight not 0 or 1", f"{key} is not 0, 1, false or true", f"{path}.{key}")
        trained = trained and bool(number)
    return trained


def pair_format(prompt: str, answer: str) -> RowFormat:
    """A prompt and its answer, as text, as any other JSON value, or each as a list of messages."""

    def read(row: RowObject, repairs: list[Repair]) -> list[Turn]:
        return [
            *read_history(row.get("history")),
            *read_side(row[prompt], prompt, "user", repairs, extra_inputs(row, prompt)),
            *read_side(row[answer], answer, "assistant", repairs, []),
        ]

    name = "alpaca" if (prompt, answer) == ("instruction", "output") else f"{prompt}_{answer}"
    return RowFormat(name, (prompt, answer), read, unless=PROMPT_KEYS[:3] if prompt == "input" else ())


def extra_inputs(row: RowObject, prompt: str) -> list[tuple[str, Json]]:
    return [(key, row[key]) for key in EXTRA_INPUT_KEYS if key != prompt and not is_absent(row.get(key))]


def read_side(value: Json, key: str, role: Role, repairs: list[Repair], extra: list[tuple[str, Json]]) -> list[Turn]:
    """One side of a pair; further inputs follow the prompt on a line of their own, as in LLaMA-Factory's Alpaca."""
    if is_message_list(value):
        if extra:
            raise RowError("unknown shape", f"{extra[0][0]!r} stands beside a list of messages", extra[0][0])
        return read_messages(value, key, OPENAI_ROLES, repairs)
    if extra and not is_absent(value):
        return [Turn(role, InputLines(((key, value), *extra)), key, key)]
    return [Turn(role, value, key, key)]


@dataclass(frozen=True)
class InputLines:
    """Several values of a row, by their keys, that make up one turn, each beginning on a line of its own."""

    items: tuple[tuple[str, Json], ...]


def is_message_list(value: Json) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, dict) and "role" in i for i in value)


def read_history(history: Json) -> list[Turn]:
    """Alpaca's earlier turns: a list of [instruction, answer]."""
    if holds_nothing(history):
        return []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise RowError("unknown shape", "history is no list of [instruction, answer]", "history")
    roles: tuple[Role, Role] = ("user", "assistant")
    return [
        Turn(role, pair[side], f"history[{number}][{side}]", f"history[{number}][{side}]")
        for number, pair in enumerate(history)
        for side, role in enumerate(roles)
    ]


def refuse_preference(row: RowObject, repairs: list[Repair]) -> list[Turn]:
    raise RowError("preferences not trained", "found chosen and rejected answers; this version trains one answer")


FORMATS: tuple[RowFormat, ...] = (
    RowFormat("preference", ("chosen", "rejected"), refuse_preference),
    RowFormat("preference", ("chosen_messages", "rejected_messages"), refuse_preference),
    RowFormat("messages", ("messages",), read_openai, unless=("chosen", "chosen_messages")),
    RowFormat("sharegpt", ("conversations",), read_sharegpt, unless=("chosen", "chosen_messages")),
    *(pair_format(prompt, answer) for prompt in PROMPT_KEYS for answer in ANSWER_KEYS),
)
SHAPES = f"messages, conversations, or {'/'.join(PROMPT_KEYS)} with {'/'.join(ANSWER_KEYS)}"
