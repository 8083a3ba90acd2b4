"""The answer of a row: where it stands, the row with another one, and what a new one would break.

In: a parsed row of any format that is read, with the recipe's `columns` and `roles`. Out: the steps that lead from the
row to the answer's text, or why it cannot be changed here. Steps are only given where it was tried: a row in which
another text stood there was read again, and nothing of its conversation but the answer had changed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.chat.conversation import Conversation
from tunewright.data.account import Account, account_for
from tunewright.data.exact_json import Json, json_text, parse_json
from tunewright.data.faults import RowError, a_kind
from tunewright.data.formats.detect import read_row
from tunewright.data.formats.messages import TEXT_KEYS, TEXT_PARTS, is_part_list
from tunewright.data.formats.reading import Dialogue, Reading
from tunewright.data.read import Record, Row, Source
from tunewright.recipe import DataKeys
from tunewright.report.numbers import plural

Steps = tuple[str | int | None, ...]  # None goes into a JSON text

# Of the guard's mebibyte for a whole request, as escapes may need six bytes for a character.
MOST_CHARACTERS = 150_000
PROBE = "Another answer."
NOWHERE = Source(Path(), "row")
INDEX = re.compile(r"\[(\d+)\]|\.?(\d+)")
WHY_NOT: Mapping[str, str] = {
    "preference": "The row has two answers, one of them preferred. Which one is better cannot be said here.",
    "tree": "The row is a tree with several answers.",
    "chat_text": "The row is one text that a template wrote; its turns are not apart.",
}


@dataclass(frozen=True)
class Place:
    """Where the answer of a row stands.

    Attributes:
        steps: None if it cannot be changed here; `why` says why in a sentence.
    """

    steps: Steps | None
    why: str = ""


def account_of(value: Json, config: DataKeys) -> Account:
    """What becomes of a row by itself."""
    return account_for(Row("row", NOWHERE, Record(1, 0, b"", value), ""), config)


def place_of(value: Json, config: DataKeys) -> Place:
    """Where the answer of a row stands that can be read."""
    account = account_of(value, config)
    if account.fault is not None:
        return Place(None, f"The row cannot be trained on ({account.fault.reason}).")
    columns: Mapping[Any, str] = config.columns
    reading = Reading([], columns, config.roles)
    dialogues = read_row(value, reading)
    why = why_not(dialogues, reading)
    steps = None if why else steps_to_answer(value, dialogues[0].turns[-1].field)
    if steps is None:
        return Place(None, why or "The answer is put together from several places of the row.")
    if not is_proven(value, steps, account.conversations, config):
        return Place(None, "More than the answer would change with it.")
    return Place(steps, "") if is_fit_for_a_page(text_at(value, steps)) else Place(None, UNFIT)


def why_not(dialogues: list[Dialogue], reading: Reading) -> str:
    if reading.format in WHY_NOT:
        return WHY_NOT[reading.format]
    if dialogues[0].turns[-1].calls:
        return "The answer calls a tool."
    return ""


UNFIT = f"The answer has more than {MOST_CHARACTERS:,} characters, or zero bytes, which a page cannot hold."


def is_fit_for_a_page(text: str) -> bool:
    return len(text) <= MOST_CHARACTERS and "\0" not in text


def steps_to_answer(value: Json, field: str) -> Steps | None:
    """The steps to a field that a reader named, and on into the one text of content parts."""
    steps = steps_to(value, field)
    if steps is None:
        return None
    found = value_at(value, steps)
    if not is_part_list(found):
        return steps
    texts = [number for number, part in enumerate(found) if part["type"] in TEXT_PARTS]
    return (*steps, texts[0], text_key(found[texts[0]])) if len(texts) == 1 else None


def text_key(part: dict[str, Json]) -> str:
    """Under which key a part of a content has its text."""
    return next((key for key in TEXT_KEYS if key in part), TEXT_KEYS[0])


def steps_to(value: Json, field: str) -> Steps | None:
    """The steps that a path such as `messages[1].content` or `data.answer` means; keys may hold any character."""
    if not field:
        return ()
    for step, rest in first_steps(value, field):
        inner = parse_json(value) if step is None else value[step]
        further = steps_to(inner, rest)
        if further is not None:
            return (step, *further)
    return None


def first_steps(value: Json, field: str) -> list[tuple[str | int | None, str]]:
    """What the path may begin with in this value, and what is left of it then."""
    if isinstance(value, str):
        return [(None, field)] if value.lstrip().startswith("[") else []
    if isinstance(value, list):
        match = INDEX.match(field)
        number = int(match[1] or match[2]) if match else len(value)
        return [(number, field[match.end() :])] if match and number < len(value) else []
    if not isinstance(value, dict):
        return []
    path = field.removeprefix(".")
    keys = [key for key in value if path.startswith(key) and path[len(key) : len(key) + 1] in {"", ".", "["}]
    return [(key, path[len(key) :]) for key in sorted(keys, key=len, reverse=True)]


def value_at(value: Json, steps: Steps) -> Json:
    for step in steps:
        value = parse_json(value) if step is None else value[step]
    return value


def text_at(value: Json, steps: Steps) -> str:
    """The answer as text; one that is no text is its JSON text."""
    found = value_at(value, steps)
    return found if isinstance(found, str) else json_text(found)


def replaced(value: Json, steps: Steps, new: Json) -> Json:
    """The value with something else in one place; nothing else is touched, and no number read."""
    if not steps:
        return new
    step, rest = steps[0], steps[1:]
    if step is None:
        return json_text(replaced(parse_json(value), rest, new))
    copy = value.copy()
    copy[step] = replaced(value[step], rest, new)
    return copy


def is_proven(value: Json, steps: Steps, before: tuple[Conversation, ...], config: DataKeys) -> bool:
    """Whether another text in that place is read as another answer, and as nothing else."""
    after = account_of(replaced(value, steps, PROBE), config).conversations
    if len(before) != 1 or len(after) != 1:
        return False
    answer = replace(before[0].messages[-1], content=PROBE)
    return after[0] == replace(before[0], messages=(*before[0].messages[:-1], answer))


def with_answer(value: Json, steps: Steps, text: str, config: DataKeys) -> Json:
    """The row with a new answer, which stays an object or a list where it was one.

    Raises:
        RowError: nothing could be learned from the row then.
    """
    row = replaced(value, steps, new_value(value_at(value, steps), text))
    fault = account_of(row, config).fault
    if fault is not None:
        raise fault
    return row


def new_value(old: Json, text: str) -> Json:
    if isinstance(old, str):
        return with_line_ends_of(old, text)
    try:
        return parse_json(text)
    except RowError:
        return text


def with_line_ends_of(old: str, text: str) -> str:
    """A text from a page has LF alone, whatever the answer had."""
    if "\r" in text or "\r\n" not in old or "\n" in old.replace("\r\n", ""):
        return text
    return text.replace("\n", "\r\n")


def is_same(old: str, text: str) -> bool:
    """Whether a text that went through a page is the old one."""
    return in_a_page(old) == in_a_page(text)


def in_a_page(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def object_in(text: str) -> dict[str, Json] | None:
    """The JSON object that a text is; None if it is none."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = parse_json(text)
    except RowError:
        return None
    return found if isinstance(found, dict) else None


def broken_by(old: str, new: str) -> str:
    """What is wrong with a new answer in the place of a JSON object; empty if nothing is, or the old one was none."""
    keys = object_in(old)
    if keys is None:
        return ""
    try:
        found = parse_json(new)
    except RowError as fault:
        return f"the answer was a JSON object; the new one is no valid JSON ({fault.detail})"
    if not isinstance(found, dict):
        return f"the answer was a JSON object; the new one is {a_kind(found)}"
    missing = [key for key in keys if key not in found]
    if not missing:
        return ""
    names = ", ".join(repr(key[:60]) for key in missing[:5]) + (" and more" if len(missing) > 5 else "")
    return f"the new answer lacks {plural(len(missing), 'key')} of the old one: {names}"
