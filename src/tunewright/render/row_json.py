"""A conversation as the lines of `tunewright render --json`: its rows with their proof, or why there are none.

In: a conversation and a supervisor. Out: JSON objects, one a line, always with `row` and either

    text, input_ids, assistant_mask (0 or 1 for each id), proof (a to f, each with verdict and reason; variables; notes)
    refused, the reason, and claim, the letter of the claim that does not hold (or `template`, or an empty text)

Other programs read this form: what is in it stays.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tunewright.chat.conversation import Conversation
from tunewright.chat.supervise import SupervisedRow, Supervisor
from tunewright.errors import RenderError


def rows_as_json(conversation: Conversation, supervisor: Supervisor) -> Iterator[dict[str, Any]]:
    """One object for each row of the conversation, or one that says why it is refused."""
    try:
        rows = supervisor.rows(conversation)
    except RenderError as error:
        yield refusal_as_json(conversation, error)
        return
    for row in rows:
        yield row_as_json(row)


def row_as_json(row: SupervisedRow) -> dict[str, Any]:
    return {
        "row": row.id,
        "text": row.text,
        "input_ids": row.ids.tolist(),
        "assistant_mask": row.mask.astype(np.int8).tolist(),
        "proof": row.proof.as_json() if row.proof else None,
    }


def refusal_as_json(conversation: Conversation, error: RenderError) -> dict[str, Any]:
    return {"row": conversation.id, "refused": str(error), "claim": error.claim}
