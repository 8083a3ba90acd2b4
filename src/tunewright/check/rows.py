"""Rows to look at: the first ones, and those that the findings name.

In: a look. Out: conversations by their ids, and views of them for the page: the turns by role, or with a base every
token and whether it is learned. A row with what looks like a secret is not shown.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.chat.conversation import Conversation
from tunewright.chat.files import conversation_from_line
from tunewright.check.look import Look
from tunewright.data.audit.rows import AuditRow
from tunewright.data.audit.secrets import secret_in
from tunewright.report.rows import shown

FIRST_ROWS = 10
View = dict[str, Any]
ID_STARTS, ID_ENDS = b'{"id": ', b', "messages"'


def rows_view(found: Look) -> View:
    """The first rows and the rows of every finding, each once."""
    causes = rows_of_findings(found)
    rows = {row.id: row for row in read_rows(found.conversations, causes)}
    hidden = {name for name, row in rows.items() if secret_in(AuditRow(row))}
    shown_rows = [row for name, row in rows.items() if name not in hidden]
    masks = masks_of(found, shown_rows)
    first = [row_view(row, (), masks) for row in shown_rows if row.id not in causes]
    named = [row_view(rows[name], why, masks) for name, why in causes.items() if name in rows and name not in hidden]
    return {
        "masked": masks is not None,
        "groups": [{"title": "The first rows", "rows": first}, {"title": "Rows that the findings name", "rows": named}],
        "hidden": len(hidden),
    }


def rows_of_findings(found: Look) -> dict[str, list[str]]:
    """The ids that findings name, the worst finding first, each with the names of its findings."""
    causes: dict[str, list[str]] = {}
    for item in found.outcome.worst_first:
        if item.evidence.verdict != "pass":
            for row in item.rows:
                causes.setdefault(row.row.partition("#")[0], []).append(item.evidence.name)
    return causes


def read_rows(paths: Iterable[Path], wanted: Iterable[str], first: int = FIRST_ROWS) -> Iterator[Conversation]:
    """The first conversations and the wanted ones, in the order of the files, which are read no further than needed."""
    due = {json.dumps(name, ensure_ascii=False).encode() for name in wanted}
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                if first <= 0 and not due:
                    return
                name = line[len(ID_STARTS) : line.find(ID_ENDS)]
                if first > 0 or name in due:
                    yield conversation_from_line(line)
                first -= 1
                due.discard(name)


def masks_of(found: Look, rows: Sequence[Conversation]) -> "dict[str, Masked] | None":
    if found.tokens is None:
        return None
    from tunewright.check.masks import mask_rows

    return {row.id: Masked(*masked) for row, masked in mask_rows(found.recipe, found.tokens, rows)}


@dataclass(frozen=True)
class Masked:
    """The token rows of a conversation in pieces, and why there are none if there are none."""

    rows: list[View]
    reason: str


def row_view(row: Conversation, causes: Sequence[str], masks: dict[str, Masked] | None) -> View:
    masked = masks[row.id] if masks else Masked([], "")
    return {
        "id": row.id,
        "because": ", ".join(causes),
        "note": masked.reason,
        "masked": masked.rows,
        "turns": [] if masked.rows else turns_of(row),
    }


def turns_of(row: Conversation) -> list[View]:
    """Everything that a conversation says, by role; `learned` marks what a model would learn."""
    turns = [turn("tools", row.tools)] if row.tools is not None else []
    for message in row.messages:
        is_learned = message.role == "assistant" and message.train
        if message.reasoning is not None:
            turns.append(turn(f"{message.role}, reasoning", message.reasoning, is_learned and message.train_reasoning))
        turns.append(turn(message.role, message.text, is_learned))
    return turns + [turn(f"{message.role}, not preferred", message.text) for message in row.rejected]


def turn(name: str, text: str, is_learned: bool = False) -> View:
    return {"name": name, "text": shown(text, shorten=not is_learned), "learned": is_learned}
