"""What a template writes around the parts of a conversation, found by rendering marks in their place.

In: a rendered text with marks. Out: the pieces between the marks, and in which order the marks stand. A real text
matches the skeleton if it is exactly those pieces with each part in its place: then every part is there, whole, and
every other character is the template's own. Nothing is searched for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.chat.places import Span
from tunewright.chat.slots import MARK, Slot


@dataclass(frozen=True)
class Skeleton:
    """A marked text, cut at its marks.

    Attributes:
        pieces: what the template writes before each mark, and after the last.
        order: the slot of each mark; one more piece than marks.
    """

    pieces: tuple[str, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Mismatch:
    """Where a text leaves its skeleton: at the slot before or after that piece, None where there is none."""

    slot: int | None
    position: int


def common_beginning(left: str, right: str) -> str:
    """What both texts begin with."""
    length = min(len(left), len(right))
    while left[:length] != right[:length]:
        length = next(place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return left[:length]


def skeleton_of(text: str) -> Skeleton:
    pieces, order, position = [], [], 0
    for found in MARK.finditer(text):
        pieces.append(text[position : found.start()])
        order.append(int(found[1] or found[2]))
        position = found.end()
    return Skeleton((*pieces, text[position:]), tuple(order))


def match(skeleton: Skeleton, slots: Sequence[Slot], text: str) -> list[Span] | Mismatch:
    """The characters of each mark's part in `text`, in the order of the skeleton."""
    spans: list[Span] = []
    if not text.startswith(skeleton.pieces[0]):
        return Mismatch(skeleton.order[0] if skeleton.order else None, 0)
    position = len(skeleton.pieces[0])
    for number, piece in zip(skeleton.order, skeleton.pieces[1:], strict=True):
        end = _end_of(slots[number], text, position, piece)
        if end is None:
            return Mismatch(number, position)
        spans.append((position, end))
        position = end + len(piece)
    return spans if position == len(text) else Mismatch(skeleton.order[-1] if skeleton.order else None, position)


def _end_of(slot: Slot, text: str, position: int, following: str) -> int | None:
    """Where the part at `position` ends, so that `following` follows it."""
    for writing in slot.writings():
        end = position + len(writing)
        if text.startswith(writing, position) and text.startswith(following, end):
            return end
    return None
