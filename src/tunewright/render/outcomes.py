"""What becomes of a conversation once its tokens are known: trained on whole, cut, or left out.

In: a conversation, its proven rows and the row limit. Out: the rows to train on and an `Outcome`. It always holds that
a row without a learned token is not trained on, and that `lost` names every token that was cut off.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tunewright.chat.conversation import Conversation
from tunewright.chat.places import NO_MESSAGE
from tunewright.chat.supervise import SupervisedRow
from tunewright.errors import RenderError

OnLongRow = Literal["stop", "reject", "truncate"]
UNPROVEN, TOO_LONG, NOTHING_LEARNED = "no proof", "too long", "nothing left to learn"


@dataclass(frozen=True)
class Outcome:
    """What became of a conversation.

    Attributes:
        conversation: its id.
        tokens, supervised: of the rows that are trained on; 0 if it was left out.
        kind, reason: why it was left out, if it was; the reason begins with the kind.
        lost: which tokens were cut off, a JSON object for each message that lost some: `message` is its index, None for
            what the template puts around the messages; then its `role`, the `tokens` lost, `of` how many it had, and
            whether lost ones were to be learned (`supervised`). Where a conversation became several rows, `row` is the
            one that was cut.
    """

    conversation: str
    tokens: int = 0
    supervised: int = 0
    kind: str = ""
    reason: str = ""
    lost: tuple[dict[str, Any], ...] = ()

    @property
    def rejected(self) -> bool:
        return bool(self.reason)

    @property
    def lost_tokens(self) -> int:
        return sum(entry["tokens"] for entry in self.lost)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def outcome_from_json(data: dict[str, Any]) -> Outcome:
    return Outcome(**{**data, "lost": tuple(data["lost"])})


def refused(conversation: Conversation, error: RenderError) -> Outcome:
    """The outcome of a conversation without a proof."""
    reason = str(error).removeprefix(conversation.id).removeprefix(": ")
    return rejection(conversation.id, UNPROVEN, reason)


def rejection(conversation: str, kind: str, detail: str) -> Outcome:
    return Outcome(conversation, kind=kind, reason=f"{kind}: {detail}")


def fit(
    conversation: Conversation, rows: list[SupervisedRow], limit: int, on_long_row: OnLongRow
) -> tuple[list[SupervisedRow], Outcome]:
    """The rows of a conversation that are trained on when none may be longer than `limit` tokens."""
    longest = max(len(row.ids) for row in rows)
    if longest > limit and on_long_row != "truncate":
        return [], rejection(conversation.id, TOO_LONG, f"{longest} tokens are more than {limit}")
    kept = [cut(row, limit) for row in rows if row.mask[:limit].any()]
    if not kept:
        detail = f"the first {limit} of {longest} tokens have none that is learned"
        return [], rejection(conversation.id, NOTHING_LEARNED, detail)
    tokens, supervised = (sum(len(row.ids) for row in kept), sum(int(np.count_nonzero(row.mask)) for row in kept))
    lost = tuple(entry for row in rows for entry in lost_from(row, conversation, limit))
    return kept, Outcome(conversation.id, tokens, supervised, lost=lost)


def cut(row: SupervisedRow, limit: int) -> SupervisedRow:
    if len(row.ids) <= limit:
        return row
    prompt_length = min(row.last_prompt_length, limit)
    return SupervisedRow(row.conversation, row.ids[:limit], row.mask[:limit], prompt_length, row.message)


def lost_from(row: SupervisedRow, conversation: Conversation, limit: int) -> list[dict[str, Any]]:
    """Which tokens of which messages the row loses, in the order of the messages, those of the template last.

    A row of several that has no learned token within the limit is left out: it loses all.
    """
    if len(row.ids) <= limit or row.places is None:
        return []
    start = limit if row.mask[:limit].any() else 0
    owners = row.places.message_of_tokens()
    counts = zip(*np.unique(owners[start:], return_counts=True), strict=True)
    named = {} if row.message is None else {"row": row.id}
    lost = [
        {
            **named,
            "message": None if owner == NO_MESSAGE else int(owner),
            "role": "template" if owner == NO_MESSAGE else conversation.messages[owner].role,
            "tokens": int(count),
            "of": int(np.count_nonzero(owners == owner)),
            "supervised": bool(row.mask[start:][owners[start:] == owner].any()),
        }
        for owner, count in counts
    ]
    return sorted(lost, key=lambda entry: entry["message"] is None)
