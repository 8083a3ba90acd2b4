"""Turns into a conversation: contents become text without loss, and the order of roles is held.

Nothing is cut or stripped. A content that is not text becomes JSON text, which is a repair; an empty content of a user
or an assistant is an error. What comes out begins with at most one system message and goes on user, assistant, user, …
up to an assistant, with at least one turn to train.
"""

from tunewright.chat.conversation import Message
from tunewright.data.exact_json import Json, json_text
from tunewright.data.faults import Repair, RowError, json_kind
from tunewright.data.formats import InputLines, Turn


def normal_messages(turns: list[Turn], repairs: list[Repair]) -> tuple[Message, ...]:
    """The messages of a row; what was mended is added to `repairs`.

    Raises:
        RowError: roles out of order, an empty content, a part that is not text, a lone surrogate, nothing to train.
    """
    kept = without_empty_system(turns, repairs)
    validate_order(kept)
    messages = tuple(
        Message(turn.role, text_of(turn, repairs), turn.train or turn.role != "assistant") for turn in kept
    )
    if not any(message.train for message in messages if message.role == "assistant"):
        raise RowError("nothing to train", "every assistant turn is switched off; expected one that is trained")
    return messages


def without_empty_system(turns: list[Turn], repairs: list[Repair]) -> list[Turn]:
    if not turns or turns[0].role != "system" or not is_empty(turns[0].value):
        return turns
    repairs.append(Repair("empty system message left out", turns[0].field))
    return turns[1:]


def is_empty(value: Json) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def validate_order(turns: list[Turn]) -> None:
    dialogue = turns[1:] if turns and turns[0].role == "system" else turns
    before = "system" if len(dialogue) < len(turns) else "nothing"
    for number, turn in enumerate(dialogue):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            raise RowError(
                "roles out of order",
                f'{turn.path} is "{turn.role}" after {before}; expected "{expected}"',
                turn.path,
            )
        before = f'"{turn.role}"'
    if not dialogue or dialogue[-1].role != "assistant":
        where = turns[-1].path if turns else ""
        found = f'{where} is "{turns[-1].role}"' if turns else "no turn is left"
        raise RowError("last turn is not the assistant's", f'{found}; expected an "assistant" turn at the end', where)


def text_of(turn: Turn, repairs: list[Repair]) -> str:
    if is_empty(turn.value):
        raise RowError("empty content", f"{turn.field} of the {turn.role} is {empty_name(turn.value)}", turn.field)
    if isinstance(turn.value, InputLines):
        text = "\n".join(value_text(value, key, repairs) for key, value in turn.value.items)
    elif turn.parts and is_part_list(turn.value):
        text = joined_parts(turn.value, turn.field)
    else:
        text = value_text(turn.value, turn.field, repairs)
    if not text.strip():
        raise RowError("empty content", f"{turn.field} of the {turn.role} has no text", turn.field)
    validate_unicode(text, turn.field)
    return text


def empty_name(value: Json) -> str:
    if isinstance(value, str) and value:
        return "only white space"
    return "null" if value is None else "empty"


def value_text(value: Json, field: str, repairs: list[Repair]) -> str:
    if isinstance(value, str):
        return value
    repairs.append(Repair(f"{json_kind(value)} written as JSON text", field))
    return json_text(value)


def is_part_list(value: Json) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, dict) and isinstance(part.get("type"), str) for part in value
    )


def joined_parts(parts: list[dict[str, Json]], field: str) -> str:
    """The texts of content parts, one after the other with nothing between, as chat templates write them."""
    for number, part in enumerate(parts):
        if part["type"] != "text":
            what = f"found a part of type {part['type']!r}; expected 'text'"
            raise RowError(f"{part_kind(part['type'])} not trained", what, f"{field}[{number}].type")
    texts = []
    for number, part in enumerate(parts):
        text = part.get("text", part.get("value"))
        if not isinstance(text, str):
            raise RowError("unknown shape", f"the text part holds a {json_kind(text)}", f"{field}[{number}].text")
        texts.append(text)
    return "".join(texts)


def part_kind(name: str) -> str:
    known = {"image": "images", "video": "videos", "audio": "audio", "tool": "tool calls", "reasoning": "reasoning"}
    return next((what for key, what in known.items() if key in name), "content parts other than text")


def validate_unicode(text: str, field: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(
            "not Unicode text", f"character {error.start + 1} of {field} is half of a surrogate pair", field
        ) from None
