"""Rows whose prompts the engines of `verify` and `evaluate` do not send yet, which is why they are not trained on.

The proof covers tools, reasoning beside the answer, and templates that want other variables or another form of the
messages; `tunewright render` shows such rows. What is trained has to be what is served, though, and is checked with
engines that are sent plain messages of text.
"""

from tunewright.chat.conversation import Conversation
from tunewright.chat.supervise import SupervisedRow, Supervisor
from tunewright.errors import RenderError

MEND = "Leave the row out."
MEND_REASONING = "Set `reasoning: strip`, or leave the row out."


def rows_to_train(conversation: Conversation, supervisor: Supervisor) -> list[SupervisedRow]:
    """The proven rows of a conversation whose prompts are sent as they were trained.

    Raises:
        RenderError: there is no proof, or a prompt holds more than plain messages of text.
    """
    rows = supervisor.rows(conversation)
    validate_sent(conversation, rows)
    return rows


def validate_sent(conversation: Conversation, rows: list[SupervisedRow]) -> None:
    """Raise `RenderError` if a prompt holds more than plain messages of text."""
    if conversation.tools is not None:
        raise not_sent(conversation.id, "tools are declared")
    for index, message in enumerate(conversation.messages):
        where = f"{conversation.id}: message {index}"
        if message.tool_calls or message.role == "tool":
            raise not_sent(where, "a tool is called" if message.tool_calls else "a tool answers")
        if message.reasoning is not None:
            raise not_sent(where, "reasoning stands beside the text", MEND_REASONING)
    for row in rows:
        if row.proof is not None and not row.proof.is_plain:
            raise not_sent(row.id, f"its prompt is not that of plain messages ({'; '.join(row.proof.notes)})")


def not_sent(where: str, found: str, mend: str = MEND) -> RenderError:
    return RenderError(where, f"{found}, which this version proves but does not serve yet", mend=mend)
