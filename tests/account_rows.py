"""What the tests of the formats share: the account of a row that is given as an object or as JSON text."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tunewright.data.account import Account, account_for
from tunewright.data.exact_json import parse_json
from tunewright.data.read import Record, Row, Source
from tunewright.recipe import DataKeys

SOURCE = Source(Path("rows.jsonl"), "rows.jsonl")


def account_of(row: Any, **keys: Any) -> Account:
    text = row if isinstance(row, str) else json.dumps(row)
    record = Record(7, 100, text.encode(), parse_json(text))
    return account_for(Row("rows.jsonl:7", SOURCE, record, hashlib.sha256(record.raw).hexdigest()), DataKeys(**keys))


def dialogue(*messages: dict[str, Any], **beside: Any) -> dict[str, Any]:
    return {"messages": list(messages), **beside}


def said(account: Account, number: int = 0) -> list[tuple[str, str | None]]:
    assert account.conversations, account.fault
    return [(message.role, message.content) for message in account.conversations[number].messages]


def repairs_of(account: Account) -> list[tuple[str, str]]:
    return [(repair.what, repair.where) for repair in account.repairs]


def fault_of(account: Account) -> tuple[str, str]:
    assert account.fault is not None, account.conversations
    return account.fault.reason, account.fault.field
