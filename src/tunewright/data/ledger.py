"""The ledger: what became of every row.

In: the account of each row. Out: one line of `ledger.jsonl` for each, and the totals. The balance always holds:
rows in = kept + repaired + rejected, every row once and in the order of its file.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.data.account import Account
from tunewright.data.spool import Spool
from tunewright.errors import DataError

ERRORS_SHOWN = 20
UNCERTAIN_SHOWN = 2
Place = tuple[int, int, int]
ENCODE = json.JSONEncoder(ensure_ascii=False).encode


@dataclass
class Totals:
    """Counts over the rows that were accounted for.

    Attributes:
        fates, formats: how many rows of each; `formats_by_file`: the same by the label of the file.
        systems: where the system prompts of usable rows are from.
        repairs: of usable rows, by kind.
        rejections: by kind of reason.
        ignored: keys of usable rows that nothing was read from.
        uncertain: rows whose shape could have been read otherwise, by why.
        rejected, rows: per side of `eval_data`, which is True for held-out files.
        faults: per side, the first rejected rows with their reasons.
        as_understood: the first uncertain rows, as they were read.
        last: source, line and number on the line of the last row.
    """

    fates: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    formats_by_file: dict[str, Counter[str]] = field(default_factory=dict)
    systems: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)
    rejections: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    uncertain: Counter[str] = field(default_factory=Counter)
    rows: Counter[bool] = field(default_factory=Counter)
    rejected: Counter[bool] = field(default_factory=Counter)
    faults: dict[bool, list[tuple[str, str]]] = field(default_factory=lambda: {False: [], True: []})
    as_understood: list[dict[str, Any]] = field(default_factory=list)
    first: Place | None = None
    last: Place | None = None

    def add(self, account: Account, source: int) -> None:
        """Count one row.

        Raises:
            DataError: it does not come after the row before it.
        """
        record = account.row.record
        self._follow((source, record.line, record.on_line), account.row.id)
        held_out = account.row.source.held_out
        self.rows[held_out] += 1
        self.fates[account.fate] += 1
        self.formats[account.format] += 1
        self.formats_by_file.setdefault(account.row.source.label, Counter())[account.format] += 1
        if account.fault is not None:
            self.rejected[held_out] += 1
            self.rejections[account.fault.kind] += 1
            if len(self.faults[held_out]) < ERRORS_SHOWN:
                self.faults[held_out].append((account.row.id, account.fault.reason))
            return
        if account.system_prompt is not None:
            self.systems[account.system_prompt] += 1
        self.repairs.update(repair.what for repair in account.repairs)
        self.ignored.update(account.ignored)
        if account.uncertain is not None:
            self.uncertain[account.uncertain] += 1
            if len(self.as_understood) < UNCERTAIN_SHOWN:
                self.as_understood.append({"why": account.uncertain, **account.conversations[0].as_json()})

    def _follow(self, place: Place, name: str) -> None:
        if self.last is not None and place <= self.last:
            raise DataError(
                "ledger", f"{name} came after {self.last}", "every row once, in order", "Please report this fault."
            )
        self.first, self.last = self.first or place, place

    def merge(self, later: "Totals") -> None:
        """Take in the counts of rows that follow."""
        if later.first is not None:
            self._follow(later.first, str(later.first))
            self.last = later.last
        for name in (
            "fates",
            "formats",
            "systems",
            "repairs",
            "rejections",
            "ignored",
            "uncertain",
            "rows",
            "rejected",
        ):
            getattr(self, name).update(getattr(later, name))
        for file, formats in later.formats_by_file.items():
            self.formats_by_file.setdefault(file, Counter()).update(formats)
        for held_out, faults in later.faults.items():
            self.faults[held_out] = (self.faults[held_out] + faults)[:ERRORS_SHOWN]
        self.as_understood = (self.as_understood + later.as_understood)[:UNCERTAIN_SHOWN]

    @property
    def rows_in(self) -> int:
        return self.rows.total()


def ledger_line(account: Account) -> bytes:
    return (ENCODE(account.as_json()) + "\n").encode()


def validate_balance(totals: Totals, spool: Spool) -> None:
    """Raise unless every row that was read has exactly one fate and one line."""
    lines = sum(1 for _ in spool.ledger_lines())
    if not totals.rows_in == totals.fates.total() == spool.rows == lines:
        found = f"{totals.rows_in} rows were read, {dict(totals.fates)} are accounted for on {lines} lines"
        raise DataError("ledger", found, "every row once", "This is a fault of the program: please report it.")


def validate_rows(totals: Totals) -> None:
    """Raise with the first rejected rows if any was rejected."""
    if totals.rejections:
        faults = sorted(totals.faults.items())
        raise DataError(
            "data",
            f"{totals.rejections.total()} of {totals.rows_in} rows cannot be used\n"
            f"{listed_faults([fault for _, found in faults for fault in found], totals.rejections.total())}\n"
            f"In all: {counted(totals.rejections)}",
            mend="Fix the rows, or pass --on-bad-row reject to leave them out.",
        )


def validate_rows_left(totals: Totals, held_out: bool) -> None:
    """Raise if every row of `data`, or of `eval_data`, was rejected."""
    rejected = totals.rejected[held_out]
    if rejected == totals.rows[held_out]:
        found = f"all {rejected} rows were rejected\n{listed_faults(totals.faults[held_out], rejected)}"
        raise DataError(
            "eval_data" if held_out else "data",
            f"{found}\nIn all: {counted(totals.rejections)}",
            mend="Mend the rows, or name a file with rows of a known shape.",
        )


def listed_faults(faults: Iterable[tuple[str, str]], count: int) -> str:
    lines = [f"  {row}: {reason}" for row, reason in faults][:ERRORS_SHOWN]
    more = [f"  and {count - len(lines)} more"] if count > len(lines) else []
    return "\n".join(lines + more)


def counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())


def write_ledger(path: Path, spool: Spool, is_eval: Iterable[bool]) -> None:
    """The ledger with the split of each row that was not rejected: the side of its conversations."""
    sides = iter(is_eval)
    with path.open("wb") as file:
        for line, conversations in spool.ledger_lines():
            split = b"null"
            for _ in range(conversations):
                split = b'"eval"' if next(sides) else b'"train"'
            file.write(line[:-1] + b', "split": ' + split + b"}\n")
