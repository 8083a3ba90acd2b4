"""JSON in and JSON text out without loss.

Numbers stay the characters that they were: `1e2`, `0.10` and integers of any length come out as they went in. Keys keep
their order, strings their Unicode. What JSON does not allow (NaN, Infinity) and what would lose something (a key that
appears twice) is a `RowError`.
"""

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from tunewright.data.faults import RowError

Json = Any


@dataclass(frozen=True, slots=True)
class JsonNumber:
    """A number by its JSON text."""

    text: str


def parse_json(text: str) -> Json:
    """The value of a whole JSON text; its numbers are `JsonNumber`.

    Raises:
        RowError: broken JSON, with the parser's position; a doubled key; NaN or Infinity; nested too deeply.
    """
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowError("broken JSON", f"{error.msg.removesuffix(' at')} at column {error.colno}") from None
    except RecursionError:
        raise RowError("nested too deeply", "the JSON is nested deeper than can be read") from None


def json_text(value: Json) -> str:
    """JSON text of a parsed value, spaced like `json.dumps`, Unicode kept; `parse_json` gives the value back."""
    if isinstance(value, JsonNumber):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json_text(key)}: {json_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(json_text(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    data = dict(pairs)
    if len(data) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError("duplicate key", f"the key {twice!r} appears twice in one object", twice)
    return data


def _constant(name: str) -> NoReturn:
    raise RowError("not a JSON number", f"found {name}, which JSON does not have")


DECODER = json.JSONDecoder(
    parse_int=JsonNumber, parse_float=JsonNumber, parse_constant=_constant, object_pairs_hook=_object
)
