"""The tokens that end a turn.

As the template writes it, for where no `generation_config.json` says on which to stop. In: a template and its
tokenizer. Out: ids of special tokens. A base with a `generation_config` needs none of this: what
generation stops on is then known, and the proof holds the template against it.
"""

from collections.abc import Collection, Sequence

from tunewright.chat.conversation import Message, ToolCall
from tunewright.chat.encoding import Encoder
from tunewright.chat.forms import forms_for
from tunewright.chat.frame import Setting
from tunewright.chat.skeleton import common_beginning
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError

QUESTION, ANSWERED = Message("user", "Qzx0xzQ"), Message("assistant", "Qzx1xzQ")
CALLED = Message("assistant", None, tool_calls=(ToolCall("Qzx2xzQ", '{"a": "Qzx1xzQ"}', "call12345"),))


def end_of_turn_ids(encoder: Encoder, template: ChatTemplate) -> frozenset[int]:
    """The last special token of what stands behind every answer, and the last one behind a call.

    Tokens that stand before the first message open turns, and are left out where others are there.
    """
    answered = rendered(template, (QUESTION, ANSWERED))
    behind = answered.rpartition("Qzx1xzQ")[2]
    between = rendered(template, (QUESTION, ANSWERED, QUESTION)).partition("Qzx1xzQ")[2].partition("Qzx0xzQ")[0]
    opening = special_in(encoder, answered.partition("Qzx0xzQ")[0])
    always = special_in(encoder, common_beginning(behind, between))
    ending = without(opening, always)[-1:] or special_in(encoder, behind)[:1] or special_in(encoder, between)[:1]
    after_call = special_in(encoder, rendered(template, (QUESTION, CALLED)).rpartition("Qzx1xzQ")[2])
    called = without(opening, [number for number in after_call if number in always] or after_call)
    return frozenset([*ending, *called[-1:]])


def without(opening: list[int], numbers: list[int]) -> list[int]:
    return [number for number in numbers if number not in opening] or numbers


def special_in(encoder: Encoder, text: str) -> list[int]:
    return [number for number in encoder.encode(text).ids if number in encoder.special]


def rendered(template: ChatTemplate, messages: tuple[Message, ...]) -> str:
    """The text in the first form that the template takes without losing a message; nothing where it takes none."""
    for form in forms_for(messages):
        try:
            text = Setting(template, form).render(messages)
        except RenderError:
            continue
        if "Qzx0xzQ" in text and "Qzx1xzQ" in text:
            return text
    return ""


def without_stops(ids: Sequence[int], stop_ids: Collection[int]) -> list[int]:
    """`ids` without the stop tokens at their end."""
    kept = list(ids)
    while kept and kept[-1] in stop_ids:
        kept.pop()
    return kept
