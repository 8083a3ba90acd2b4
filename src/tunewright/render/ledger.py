"""The data stage's ledger with what only tokens decide: one line for each input row, its fate and its token counts.

A row that became several conversations is rejected if all of them are left out, and truncated if it lost one or a part
of one. The balance always holds: rows in = kept + repaired + truncated + rejected, and every conversation is accounted
for once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.errors import RenderError
from tunewright.render.outcomes import Outcome

FATES = ("kept", "repaired", "truncated", "rejected")


def continue_ledger(
    data_ledger: Path, outcomes: Mapping[str, Iterable[Outcome]], target: Path, rows_in: int
) -> dict[str, int]:
    """Write the ledger to `target`, and return how many rows have each fate.

    Args:
        data_ledger: the ledger that the data stage wrote.
        outcomes: per split, what became of each conversation, in the order of the rows.
        rows_in: how many rows the data stage read.

    Raises:
        RenderError: a row or a conversation is not accounted for exactly once.
    """
    fates: Counter[str] = Counter()
    waiting = {split: iter(found) for split, found in outcomes.items()}
    with data_ledger.open(encoding="utf-8", newline="\n") as file, target.open("w", encoding="utf-8") as written:
        for text in file:
            line = continued(json.loads(text), waiting)
            fates[line["fate"]] += 1
            written.write(json.dumps(line, ensure_ascii=False) + "\n")
    for split, left in waiting.items():
        if (outcome := next(left, None)) is not None:
            raise out_of_balance(f"{outcome.conversation} of {split} has no line")
    if not fates.total() == rows_in == sum(fates[fate] for fate in FATES):
        raise out_of_balance(f"{rows_in} rows came in and {dict(fates)} are accounted for")
    return {fate: fates[fate] for fate in FATES}


def continued(line: dict[str, Any], waiting: Mapping[str, Iterator[Outcome]]) -> dict[str, Any]:
    """One line with the outcomes of its row's conversations, which are taken from `waiting`."""
    if line["fate"] == "rejected":
        return {**line, "tokens": None, "supervised_tokens": None}
    outcomes = list(islice(waiting[line["split"]], line["conversations"]))
    for number, outcome in enumerate(outcomes, 1):
        expected = line["row"] if number == 1 else f"{line['row']}/{number}"
        if outcome.conversation != expected:
            raise out_of_balance(f"found {outcome.conversation} in the place of {expected}")
    if len(outcomes) != line["conversations"]:
        raise out_of_balance(f"{line['row']} has {line['conversations']} conversations, {len(outcomes)} were rendered")
    return {**line, **fate_of(outcomes)}


def fate_of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the outcomes of a row's conversations add to its line."""
    rejected = [outcome for outcome in outcomes if outcome.rejected]
    named = {
        "rejected_conversations": [{"conversation": each.conversation, "reason": each.reason} for each in rejected]
    }
    several = named if rejected and len(outcomes) > 1 else {}
    if len(rejected) == len(outcomes):
        return {"tokens": None, "supervised_tokens": None, "fate": "rejected", "reason": rejected[0].reason, **several}
    counts = {
        "tokens": sum(outcome.tokens for outcome in outcomes),
        "supervised_tokens": sum(outcome.supervised for outcome in outcomes),
    }
    lost_tokens = sum(outcome.lost_tokens for outcome in outcomes)
    if not lost_tokens and not rejected:
        return counts
    return {**counts, "fate": "truncated", "lost_tokens": lost_tokens, "lost": lost_from_all(outcomes), **several}


def lost_from_all(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What each conversation lost, with its name where there are several."""
    if len(outcomes) == 1:
        return list(outcomes[0].lost)
    return [{"conversation": outcome.conversation, **entry} for outcome in outcomes for entry in outcome.lost]


def out_of_balance(found: str) -> RenderError:
    return RenderError(
        "tokens/ledger.jsonl", found, "every row once, in order", "This is a fault of the program: please report it."
    )
