"""The tokens that end a turn as the template writes it, for where no `generation_config.json` says on which to stop.

In: a template and its tokenizer. Out: ids of special tokens. A base with a `generation_config` needs none of this: what
generation stops on is then known, and the proof holds the template against it.
"""

from tunewright.chat.conversation import Message, ToolCall
from tunewright.chat.encoding import EncodedText, Encoder
from tunewright.chat.forms import forms_for
from tunewright.chat.frame import Setting
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError

ANSWER = (Message("user", "Qzx0xzQ"), Message("assistant", "Qzx1xzQ"))
CALL = (ANSWER[0], Message("assistant", None, tool_calls=(ToolCall("Qzx2xzQ", '{"a": "Qzx1xzQ"}', "call12345"),)))


def end_of_turn_ids(encoder: Encoder, template: ChatTemplate) -> frozenset[int]:
    """The first special token behind an answer that is the last turn, and the last one behind a call."""
    answer, call = special_behind(encoder, template, ANSWER), special_behind(encoder, template, CALL)
    return frozenset([*answer[:1], *call[-1:]])


def special_behind(encoder: Encoder, template: ChatTemplate, messages: tuple[Message, ...]) -> list[int]:
    """The special tokens behind the mark of the last turn; none where the template does not take the messages."""
    for form in forms_for(messages):
        try:
            text = Setting(template, form).render(messages)
        except RenderError:
            continue
        _, mark, tail = text.rpartition("Qzx1xzQ")
        if mark:
            read: EncodedText = encoder.read(tail)
            return [read.ids[position] for position in read.added if read.ids[position] in encoder.special]
    return []
