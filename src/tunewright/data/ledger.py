"""The ledger: what became of every row.

In: rows. Out: one account for each, kept, repaired (with each repair) or rejected (with the reason and the field), and
one line of `ledger.jsonl` for each account. The balance always holds: rows in = kept + repaired + rejected.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunewright.chat.conversation import Conversation
from tunewright.data.faults import Repair, RowError
from tunewright.data.formats import detect_format, read_turns
from tunewright.data.normal import normal_messages
from tunewright.data.read import Row
from tunewright.errors import DataError
from tunewright.recipe import DataKeys

Fate = Literal["kept", "repaired", "rejected"]
SystemPromptFrom = Literal["row", "recipe", "none"]
ERRORS_SHOWN = 20


@dataclass(frozen=True)
class Account:
    """What became of one row.

    Attributes:
        format: the name of the row's format, `unknown` where none was recognised.
        repairs: what was mended; of a rejected row, up to where it was given up.
        conversation: the normal form; None if the row was rejected.
        system_prompt: where its system prompt is from; None if the row was rejected.
        fault: why it was rejected.
    """

    row: Row
    format: str
    repairs: tuple[Repair, ...] = ()
    conversation: Conversation | None = None
    system_prompt: SystemPromptFrom | None = None
    fault: RowError | None = None

    @property
    def fate(self) -> Fate:
        if self.conversation is None:
            return "rejected"
        return "repaired" if self.repairs else "kept"

    def as_json(self, split: str | None) -> dict[str, Any]:
        """The ledger's line; `sha256` is that of the row's bytes without the line's end."""
        return {
            "row": self.row.id,
            "file": self.row.source.label,
            "line": self.row.record.line,
            "byte_offset": self.row.record.byte_offset,
            "sha256": self.row.sha256,
            "split": split,
            "fate": self.fate,
            "format": self.format,
            "repairs": [repair.as_json() for repair in self.repairs],
            "reason": self.fault.reason if self.fault else None,
            "field": self.fault.field if self.fault else None,
            "system_prompt": self.system_prompt,
        }


def account_for(row: Row, config: DataKeys) -> Account:
    """Read one row as far as it goes."""
    repairs = list(row.repairs)
    name = "unknown"
    try:
        if row.record.fault is not None:
            raise row.record.fault
        row_format = detect_format(row.record.value)
        name = row_format.name
        messages = normal_messages(read_turns(row_format, row.record.value, repairs), repairs)
    except RowError as fault:
        return Account(row, name, tuple(repairs), fault=fault)
    except RecursionError:
        too_deep = RowError("nested too deeply", "a value is nested deeper than can be written as text")
        return Account(row, name, tuple(repairs), fault=too_deep)
    conversation, source = with_system_prompt(Conversation(row.id, messages), config, repairs)
    return Account(row, name, tuple(repairs), conversation, source)


def with_system_prompt(
    conversation: Conversation, config: DataKeys, repairs: list[Repair]
) -> tuple[Conversation, SystemPromptFrom]:
    """The conversation with the recipe's system prompt where the recipe wants it."""
    own, given = conversation.system, config.system_prompt
    if given is None or (own is not None and config.system_prompt_for == "missing"):
        return conversation, "none" if own is None else "row"
    if own not in (None, given):
        repairs.append(Repair("system prompt replaced", "messages[0].content"))
    return conversation.with_system(given), "recipe"


def validate_balance(rows_in: int, accounts: Sequence[Account]) -> None:
    """Raise unless every row that was read has exactly one account."""
    fates = Counter(account.fate for account in accounts)
    names = {account.row.id for account in accounts}
    if rows_in != fates.total() or len(names) != rows_in:
        found = f"{rows_in} rows were read, but {dict(fates)} are accounted for under {len(names)} names"
        raise DataError("ledger", found, "every row once", "This is a fault of the program: please report it.")


def validate_rows(accounts: Sequence[Account]) -> None:
    """Raise with the first rejected rows if any was rejected."""
    rejected = [account for account in accounts if account.fault]
    if rejected:
        raise DataError(
            "data",
            f"{len(rejected)} of {len(accounts)} rows cannot be used\n{listed_faults(rejected)}\n"
            f"In all: {counted_faults(rejected)}",
            mend="Fix the rows, or pass --on-bad-row reject to leave them out.",
        )


def validate_rows_left(accounts: Sequence[Account], held_out: bool) -> None:
    """Raise if every row of `data`, or of `eval_data`, was rejected."""
    own = [account for account in accounts if account.row.source.held_out == held_out]
    if all(account.fault for account in own):
        key = "eval_data" if held_out else "data"
        found = f"all {len(own)} rows were rejected\n{listed_faults(own)}\nIn all: {counted_faults(own)}"
        raise DataError(key, found, mend="Mend the rows, or name a file with rows of a known shape.")


def listed_faults(rejected: Sequence[Account]) -> str:
    lines = [f"  {account.row.id}: {account.fault.reason}" for account in rejected if account.fault]
    more = [f"  and {len(lines) - ERRORS_SHOWN} more"] if len(lines) > ERRORS_SHOWN else []
    return "\n".join(lines[:ERRORS_SHOWN] + more)


def counted_faults(rejected: Sequence[Account]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in count_rejections(rejected).items())


def count_rejections(accounts: Iterable[Account]) -> dict[str, int]:
    """Rejected rows by kind of reason, the most frequent first."""
    return dict(Counter(account.fault.kind for account in accounts if account.fault).most_common())


def count_repairs(accounts: Iterable[Account]) -> dict[str, int]:
    """Repairs of the rows that were not rejected, by kind, the most frequent first."""
    kinds = Counter(repair.what for account in accounts if account.conversation for repair in account.repairs)
    return dict(kinds.most_common())


def write_ledger(path: Path, accounts: Iterable[Account], splits: dict[str, str]) -> None:
    """One line for each account, in order; `splits` has the split of each row that was not rejected."""
    with path.open("w", encoding="utf-8") as file:
        for account in accounts:
            line = account.as_json(splits.get(account.row.id))
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
