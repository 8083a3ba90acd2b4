"""Where the messages of a conversation stand in its rendered text, and which message each token belongs to."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.conversation import Message, Role
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError

Span = tuple[int, int]
NO_MESSAGE = -1


@dataclass(frozen=True)
class TokenPlaces:
    """Where the messages of a row stand.

    Attributes:
        offsets: the characters of each token in the rendered text, in the order of the text.
        messages: the characters of each message's text; None for one that the template left out.
        turns: for each learned turn its message, its first token and one past its end-of-turn token.
    """

    offsets: Sequence[Span]
    messages: tuple[Span | None, ...]
    turns: tuple[tuple[int, int, int], ...]

    def tokens_of(self, message: int) -> int:
        """Tokens that have at least one character of the message's text."""
        span = self.messages[message]
        if span is None:
            return 0
        before_end = self.offsets[: bisect_left(self.offsets, (span[1],))]
        return int(np.count_nonzero(overlap(as_array(before_end), span)))

    def message_of_tokens(self) -> NDArray[np.int32]:
        """The message that each token belongs to, `NO_MESSAGE` where it is the template's own, int32 [T].

        A token belongs to the message whose text it has a character of. The end of a learned turn belongs to the turn.
        """
        offsets = as_array(self.offsets)
        found = np.full(len(offsets), NO_MESSAGE, dtype=np.int32)
        for index, span in enumerate(self.messages):
            if span is not None:
                found[overlap(offsets, span)] = index
        for index, first, last in self.turns:
            found[first:last] = index
        return found


def as_array(offsets: Sequence[Span]) -> NDArray[np.int64]:
    return np.array(offsets, dtype=np.int64).reshape(-1, 2)


def overlap(offsets: NDArray[np.int64], span: Span) -> NDArray[np.bool_]:
    start, end = span
    found: NDArray[np.bool_] = (offsets[:, 0] < end) & (offsets[:, 1] > start)
    return found


def find_messages(
    row_id: str, messages: Sequence[Message], learned: Sequence[int], text: str, openings: Mapping[Role, str]
) -> tuple[Span | None, ...]:
    """Where each message's text, but for whitespace around it, stands in the rendered text, in its order.

    Assistant's turns that are not learned are context: templates may shorten them (thinking is often cut), and do the
    same at inference; for such a one there is None.

    Args:
        openings: what the template writes before a message of each role (see `message_openings`). It is looked for
            together with the text, since a short text, such as `user`, may stand in what the template writes.

    Raises:
        RenderError: the template loses or changes a message.
    """
    position = 0
    spans: list[Span | None] = []
    for index, message in enumerate(messages):
        span = find_message(message, text, position, openings.get(message.role, ""))
        if span is None and (message.role != "assistant" or index in learned):
            raise RenderError(
                f"{row_id}: message {index}",
                f"the template loses or changes the {message.role} message {message.text.strip()[:40]!r}",
                mend="Choose a base whose template keeps it, or change the row.",
            )
        position = span[1] if span else position
        spans.append(span)
    return tuple(spans)


def find_message(message: Message, text: str, position: int, opening: str) -> Span | None:
    stripped = message.text.strip()
    for content in (message.text, stripped) if opening else ():
        found = text.find(opening + content, position)
        if found >= 0:
            return found + len(opening), found + len(opening) + len(content)
    found = text.find(stripped, position)
    return (found, found + len(stripped)) if found >= 0 else None


def message_openings(template: ChatTemplate) -> dict[Role, str]:
    """What the template always writes right before a message, by role; empty where that differs each time.

    Found by rendering marked conversations: what stands between two marks, as far as it is the same each time.
    """
    turns: list[Role] = ["user", "assistant", "user", "assistant"]
    before: dict[Role, list[str]] = {}
    for roles in (turns, ["system", *turns]):
        marks = [Message(role, f"\u2402{index}\u2402") for index, role in enumerate(roles)]
        try:
            pieces = [template.render(marks)]
        except RenderError:
            continue
        for mark in marks:
            pieces[-1:] = pieces[-1].split(mark.text)
        if len(pieces) == len(marks) + 1:
            for mark, piece in zip(marks, pieces, strict=False):
                before.setdefault(mark.role, []).append(piece)
    return {role: common_end(pieces) for role, pieces in before.items()}


def common_end(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    starts = range(len(shortest) + 1)
    return next(shortest[start:] for start in starts if all(text.endswith(shortest[start:]) for text in texts))
