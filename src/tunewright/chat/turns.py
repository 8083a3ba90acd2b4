"""Where the learned turns of a conversation stand in its text: the proof as far as it concerns characters.

In: a setting, a conversation's messages, and the frame of their shape. Out: the text, the characters of each part, and
for each learned turn where its prompt ends, what of it is learned, and how far its end may reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.chat.conversation import Message
from tunewright.chat.frame import Frame, Graft, Setting, TurnFrame
from tunewright.chat.places import Span
from tunewright.chat.proof import UnprovenError
from tunewright.chat.skeleton import Mismatch, match
from tunewright.chat.slots import Slot


@dataclass(frozen=True)
class TextTurn:
    """A learned turn in the text.

    Attributes:
        message: its index.
        prompt: what inference sends before it; the text begins with it.
        learned_from: the first character that is learned; `None` where only the end of turn is.
        content_end: where its last part ends.
        limit: how far its end may reach.
    """

    message: int
    prompt: str
    learned_from: int | None
    content_end: int
    limit: int


@dataclass(frozen=True)
class Layout:
    """A conversation's text, with the characters of its parts."""

    text: str
    parts: tuple[tuple[Slot, Span], ...]
    turns: tuple[TextTurn, ...]
    notes: tuple[str, ...]

    def messages(self, count: int) -> tuple[Span | None, ...]:
        """The characters of each message, from its first part to its last, with the whitespace that is its own."""
        spans: list[Span | None] = [None] * count
        for slot, (start, end) in self.parts:
            if slot.after and self.text.startswith(slot.after, end):
                end += len(slot.after)
            if slot.before and self.text.endswith(slot.before, 0, start):
                start -= len(slot.before)
            known = spans[slot.message]
            spans[slot.message] = (min(known[0], start), max(known[1], end)) if known else (start, end)
        return tuple(spans)


def lay_out(setting: Setting, messages: Sequence[Message], slots: Sequence[Slot], frame: Frame, text: str) -> Layout:
    """Raises `UnprovenError` where the text is not the frame with each part in its place.

    Args:
        text: what the template writes for the messages.
    """
    if frame.graft:
        text = grafted_text(setting, messages, slots, frame.graft, text)
    text += frame.closing
    found = match(frame.skeleton, slots, text)
    if isinstance(found, Mismatch):
        raise changed(found, slots, messages, text)
    turns = tuple([text_turn(setting, messages, turn, found, text) for turn in frame.turns])
    parts = tuple([(slots[number], span) for number, span in zip(frame.skeleton.order, found, strict=True)])
    return Layout(text, parts, turns, (*frame.notes, *rewriting_notes(parts, text)))


def grafted_text(setting: Setting, messages: Sequence[Message], slots: Sequence[Slot], graft: Graft, text: str) -> str:
    """What inference sends before the last turn, and then that turn as the template writes it."""
    found = match(graft.skeleton, slots, text)
    if isinstance(found, Mismatch):
        raise changed(found, slots, messages, text)
    return setting.render(messages[:-1], add_generation_prompt=True) + text[found[graft.first][0] - graft.opening :]


def changed(at: Mismatch, slots: Sequence[Slot], messages: Sequence[Message], text: str) -> UnprovenError:
    written = text[at.position : at.position + 40]
    if at.slot is None:
        return UnprovenError("f", f"the template writes {written!r}, which depends on what the messages say")
    index = slots[at.slot].message
    return UnprovenError(
        "f",
        f"the template loses or changes the {messages[index].role} message {{text}}: it writes {written!r}",
        index,
        mend="Choose a base whose template keeps it, or change the row.",
    )


def text_turn(
    setting: Setting, messages: Sequence[Message], turn: TurnFrame, spans: Sequence[Span], text: str
) -> TextTurn:
    prompt = setting.render(messages[: turn.message], add_generation_prompt=True)
    start = spans[turn.first][0] - turn.opening if turn.first < turn.last else len(prompt)
    if len(prompt) != start or not text.startswith(prompt):
        found = f"inference sends a prompt that ends with {prompt[-30:]!r}, which is not how the training text goes on"
        raise UnprovenError("a", found, turn.message)
    content_end = spans[turn.last - 1][1] if turn.first < turn.last else start
    learned: int | None = start
    if turn.after_thought is not None:
        mark, closing = turn.after_thought
        learned = spans[mark][1] + closing if spans[mark][1] < content_end else None
    return TextTurn(turn.message, prompt, learned, content_end, content_end + turn.tail)


def rewriting_notes(parts: Sequence[tuple[Slot, Span]], text: str) -> list[str]:
    """What the template changes without losing anything: whitespace around a message, JSON escapes."""
    notes = []
    for slot, (start, end) in parts:
        if (slot.before or slot.after) and slot.kind != "argument":
            kept = text.startswith(slot.after, end) and text.endswith(slot.before, 0, start)
            if not kept:
                notes.append(f"the template strips whitespace around the {slot.kind} of message {slot.message}")
        if not slot.spelling and not text.startswith(slot.text, start):
            notes.append(f"the template writes the {slot.kind} of message {slot.message} as JSON text")
    return notes
