"""The recipe's `columns`: which of a row's keys are meant, where detection does not know them.

In: a row, and for each normal key the row's own key, or a path such as `data.question` or `choices.0.text`. Out: the
row with its values under the normal keys. What the recipe names is taken alone: keys of the row that would make another
reading of it are dropped and noted as ignored.
"""

from collections.abc import Mapping

from tunewright.data.exact_json import Json
from tunewright.data.faults import RowError
from tunewright.data.formats.pairs import ANSWER_KEYS, EXTRA_INPUT_KEYS, PROMPT_KEYS
from tunewright.data.formats.reading import Reading, RowObject, listed

IN_MESSAGES = frozenset({"role", "content"})
LISTS = ("messages", "conversations", "chosen_messages", "rejected_messages")
RIVALS: Mapping[str, frozenset[str]] = {
    "messages": frozenset({*LISTS, *PROMPT_KEYS, *ANSWER_KEYS, "context"}),
    "prompt": frozenset({*LISTS, *PROMPT_KEYS, *EXTRA_INPUT_KEYS}),
    "completion": frozenset({*LISTS, *ANSWER_KEYS, "chosen", "rejected"}),
    "chosen": frozenset({*LISTS[2:], *ANSWER_KEYS}),
    "system": frozenset({"system_prompt"}),
    "tools": frozenset({"functions"}),
    "reasoning": frozenset({"reasoning_content", "thinking"}),
}
MISSING = object()


def mapped_row(row: RowObject, columns: Mapping[str, str], reading: Reading) -> RowObject:
    """The row under normal keys.

    Raises:
        RowError: the row lacks a key that the recipe names.
    """
    mapped = {key: value_at(row, path, key) for key, path in columns.items() if key not in IN_MESSAGES}
    taken = {top_key(row, path) for key, path in columns.items() if key not in IN_MESSAGES}
    rivals = set(mapped).union(*(RIVALS.get(key, ()) for key in mapped))
    dropped = [key for key in row if key in rivals and key not in taken]
    reading.ignore(*dropped)
    return {**mapped, **{key: value for key, value in row.items() if key not in taken and key not in rivals}}


def value_at(row: RowObject, path: str, key: str) -> Json:
    value = lookup(row, path)
    if value is MISSING:
        found = f"`columns` names {path!r} for {key}; found the keys {listed(row)}"
        raise RowError("mapped key missing", found, path)
    return value


def lookup(row: RowObject, path: str) -> Json:
    """The value under a key, or else at a dotted path; `MISSING` if there is none."""
    if path in row:
        return row[path]
    value: Json = row
    for step in path.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return MISSING
    return value


def top_key(row: RowObject, path: str) -> str:
    return path if path in row else path.split(".")[0]
