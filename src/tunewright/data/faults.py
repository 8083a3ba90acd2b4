"""What can be wrong with one row, and what was done about it.

A `RowError` never leaves this package: `account.py` turns it into a rejected row, and the stage counts the rejected.
Both are pickled on their way from a worker process to the main one.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Repair:
    """Something that was changed in a row so that it can be trained.

    Attributes:
        what: the kind of change, one of few, such as `object written as JSON text`.
        where: the field path, such as `messages[1].content`.
    """

    what: str
    where: str

    def as_json(self) -> dict[str, str]:
        return {"what": self.what, "where": self.where}


class RowError(Exception):
    """A row that cannot be used.

    Args:
        kind: the kind of fault, one of few, without a colon; rejections are counted by it.
        detail: what was found and what was expected, without a full stop.
        field: the path of the field at fault, such as `messages[3].role`; empty if the row as a whole is.
        mend: what to do about it, as one or more full sentences, where the detail does not say so already.
    """

    def __init__(self, kind: str, detail: str, field: str = "", mend: str = "") -> None:
        super().__init__(kind, detail, field, mend)  # these are what pickle gives back to __init__
        self.kind = kind
        self.detail = writable(detail)
        self.field = writable(field)
        self.mend = writable(mend)

    @property
    def reason(self) -> str:
        return f"{self.kind}: {self.detail}" + (f". {self.mend}" if self.mend else "")

    def __str__(self) -> str:
        return self.reason


def writable(text: str) -> str:
    """The text with lone surrogates, which no file can hold, as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def json_kind(value: Any) -> str:
    """What JSON calls the type of a parsed value."""
    if value is None:
        return "null"
    names = {bool: "boolean", str: "string", list: "list", dict: "object"}
    return names.get(type(value), "number")


def a_kind(value: Any) -> str:
    """The same with its article: `a list`, `an object`, `null`."""
    kind = json_kind(value)
    return kind if value is None else f"an {kind}" if kind == "object" else f"a {kind}"
