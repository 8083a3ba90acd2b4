"""What can be wrong with one row, and what was done about it.

A `RowError` never leaves this package: the ledger turns it into a rejected row, and the stage counts the rejected.
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
        detail: what was found and what was expected.
        field: the path of the field at fault, such as `messages[3].role`; empty if the row as a whole is.
    """

    def __init__(self, kind: str, detail: str, field: str = "") -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail
        self.field = field.encode("utf-8", "backslashreplace").decode()

    @property
    def reason(self) -> str:
        return f"{self.kind}: {self.detail}"


def json_kind(value: Any) -> str:
    """What JSON calls the type of a parsed value."""
    if value is None:
        return "null"
    names = {bool: "boolean", str: "string", list: "list", dict: "object"}
    return names.get(type(value), "number")
