"""Whether what messages say stays text: control tokens that someone typed, and marks of the template as plain text.

In: a row's tokens and the characters of its parts. Out: notes, or an `UnprovenError` where a tokenizer would read a
control token in a message, since then a message could end its turn or open another's.
"""

from bisect import bisect_right
from collections.abc import Sequence

from tunewright.chat.conversation import Message
from tunewright.chat.encoding import EncodedText
from tunewright.chat.proof import UnprovenError
from tunewright.chat.skeleton import Skeleton
from tunewright.chat.turns import Layout, TextTurn

SHORTEST_MARK = 3


def validate_contents(
    encoded: EncodedText, layout: Layout, messages: Sequence[Message], control: frozenset[int]
) -> None:
    """A control token is one of `control`, or an added token that the template writes outside of learned turns.

    An assistant's own text may have the latter, such as a call that was written by hand.
    """
    parts = sorted(layout.parts, key=lambda part: part[1])
    starts = [start for _, (start, _) in parts]
    inside: list[tuple[int, int]] = []
    written = set(control)
    for position in encoded.added:
        start, _ = encoded.span_of_added(position)
        place = bisect_right(starts, start) - 1
        if place >= 0 and start < parts[place][1][1]:
            inside.append((position, parts[place][0].message))
        elif not (is_learned(start, layout.turns) or encoded.encoder.added[encoded.ids[position]].isspace()):
            written.add(encoded.ids[position])
    for position, index in inside:
        number = encoded.ids[position]
        if number in control or (number in written and messages[index].role != "assistant"):
            name = encoded.encoder.added[number]
            raise UnprovenError(
                "c",
                f"the {messages[index].role} message {{text}} has the control token {name!r} as its own text",
                index,
                mend="Leave the row out, or write that text in another way: the tokenizer reads a token there.",
            )


def is_learned(character: int, turns: Sequence[TextTurn]) -> bool:
    return any(len(turn.prompt) <= character < turn.limit for turn in turns)


def notes_on_marks(layout: Layout, skeleton: Skeleton) -> list[str]:
    """Messages that say what the template writes between messages; as plain text it is the same to the model."""
    marks = {piece.strip() for piece in skeleton.pieces if len(piece.strip()) >= SHORTEST_MARK}
    return [
        f"message {slot.message} says {mark!r}, which the template writes around messages"
        for mark in sorted(marks)
        for slot, _ in layout.parts
        if mark in slot.text
    ]
