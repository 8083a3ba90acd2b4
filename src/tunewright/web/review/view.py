"""What is shown of a review: a row whole, and rows in few words. The API and the pages say the same."""

from typing import Any

from tunewright.chat.conversation import Conversation
from tunewright.report.numbers import count
from tunewright.web.review.answer import account_of, object_in
from tunewright.web.review.journal import Decision
from tunewright.web.review.reviews import Review
from tunewright.web.review.rows import value_of
from tunewright.web.review.sheet import Entry

MOST_SHOWN = 100_000
MOST_EXCERPT = 140
MOST_BYTES = 8 << 20
View = dict[str, Any]


def row_view(review: Review, number: int) -> View:
    """A row whole: what stands before its answer, the answer, and what was decided."""
    entry = review.sheet.entry(number)
    place = review.sheet.place(number)
    latest = review.journal.latest(number)
    return {
        **brief(review, entry),
        "version": review.journal.version(number),
        "why": entry.head.place.why,
        "can_undo": review.journal.to_undo(number) is not None,
        "place": place + 1,
        "previous": review.sheet.at(place - 1),
        "next": review.sheet.at(place + 1),
        **answer_view(review, entry, latest),
        "turns": turns_of_row(review, entry),
    }


def brief(review: Review, entry: Entry) -> View:
    return {
        "row": entry.number,
        "id": entry.head.id,
        "state": review.state(entry.number),
        "notes": list(entry.head.notes),
    }


def answer_view(review: Review, entry: Entry, latest: Decision | None) -> View:
    """The answer as the file has it and as it stands; both None where it is not in one place."""
    original = review.answer(entry) if is_small(entry) else None
    edited = latest.text if latest is not None else None
    is_object = original is not None and object_in(original) is not None
    return {"original": original, "answer": original if edited is None else edited, "is_object": is_object}


def is_small(entry: Entry) -> bool:
    return len(entry.text) <= MOST_BYTES


def turns_of_row(review: Review, entry: Entry) -> list[View]:
    """Everything that the row says but an answer that can be changed; the row itself where no conversation is in it."""
    if not entry.head.is_row:
        return []
    conversations = account_of(value_of(entry.text), review.config).conversations if is_small(entry) else ()
    if len(conversations) != 1:
        return [turn("row", entry.text[: 4 * MOST_SHOWN].decode("utf-8", "replace"))]
    return turns_of(conversations[0], has_answer=entry.head.place.steps is None)


def turns_of(found: Conversation, has_answer: bool) -> list[View]:
    turns = [turn("tools", found.tools)] if found.tools is not None else []
    for message in found.messages:
        is_last = message is found.messages[-1]
        if message.reasoning is not None:
            turns.append(turn(f"{message.role}, reasoning", message.reasoning, is_last))
        if has_answer or not is_last:
            turns.append(turn(message.role, message.text, is_last))
    return turns + [turn(f"{message.role}, not preferred", message.text) for message in found.rejected]


def turn(name: str, text: str, is_answer: bool = False) -> View:
    more = len(text) - MOST_SHOWN
    shown = text if more <= 0 else f"{text[:MOST_SHOWN]} … and {count(more)} characters more"
    return {"name": name, "text": shown, "is_answer": is_answer}


def list_view(review: Review, numbers: list[int]) -> list[View]:
    """Rows in few words."""
    entries = [review.sheet.entry(number) for number in numbers]
    return [{**brief(review, entry), "excerpt": excerpt_of(review, entry)} for entry in entries]


def excerpt_of(review: Review, entry: Entry) -> str:
    """The beginning of the answer as it stands, or of the row."""
    latest = review.journal.latest(entry.number)
    if latest is not None and latest.text is not None:
        return one_line(latest.text)
    if not is_small(entry) or not entry.head.is_row:
        return one_line(entry.head.place.why)
    answer = review.answer(entry)
    if answer is None:
        conversations = account_of(value_of(entry.text), review.config).conversations
        answer = conversations[0].target if conversations else entry.head.place.why
    return one_line(answer)


def one_line(text: str) -> str:
    words = " ".join(text[: 4 * MOST_EXCERPT].split())
    return words if len(words) <= MOST_EXCERPT and len(text) <= 4 * MOST_EXCERPT else f"{words[:MOST_EXCERPT]}…"
