"""Which message of a conversation each token of a row belongs to."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
NO_MESSAGE = -1


@dataclass(frozen=True)
class TokenPlaces:
    """Where the messages of a row stand.

    Attributes:
        offsets: the characters of each token in the rendered text, in the order of the text.
        messages: the characters of each message's text; None for one that has none there.
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
