"""What a template makes of conversations of one shape: where their parts go, what it adds, what it leaves out.

In: a template and a conversation whose parts are marks (see `slots`). Out: its `Frame`, or an `UnprovenError`. All of
it comes from rendering and comparing: the prompt of each learned turn against the whole text, the turn where it stands
against the same turn as the last one. Nothing depends on what the parts say, so conversations of one shape share it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunewright.chat.conversation import Message
from tunewright.chat.forms import Form
from tunewright.chat.proof import UnprovenError
from tunewright.chat.skeleton import Skeleton, common_beginning, skeleton_of
from tunewright.chat.slots import MARK, Marked, Slot
from tunewright.chat.template import ChatTemplate
from tunewright.errors import RenderError

ESCAPED = re.compile(r"&(?:#\d+|quot|amp|lt|gt);")


@dataclass(frozen=True)
class Setting:
    """How a template is asked: what it is given beside the messages.

    Attributes:
        form: the form of the messages.
        variables: names and values, in order.
        tools: the exact JSON text of the list of tools.
    """

    template: ChatTemplate
    form: Form
    variables: tuple[tuple[str, Any], ...] = ()
    tools: str | None = None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        variables: Mapping[str, Any] = dict(self.variables)
        formed = self.form.apply(messages)
        return self.template.render(formed, add_generation_prompt, tools=self.tools, variables=variables)


@dataclass(frozen=True)
class TurnFrame:
    """A learned turn in the skeleton.

    Attributes:
        message: its index.
        first, last: its marks, as positions in the skeleton's order; empty for a turn without text.
        opening: characters that the template writes between the prompt and the first mark.
        after_thought: for reasoning that is not learned, the position of its last mark and the number of characters
            behind it that still belong to it; None where all of the turn is learned.
        tail: characters behind the turn that are its own: the same here and where the turn is the last one.
    """

    message: int
    first: int
    last: int
    opening: int
    after_thought: tuple[int, int] | None
    tail: int


@dataclass(frozen=True)
class Graft:
    """How to put the answer behind the prompt where the template itself does not.

    Attributes:
        skeleton: of the text that the template writes with the answer.
        first: the first mark of the answer there.
        opening: as in `TurnFrame`.
    """

    skeleton: Skeleton
    first: int
    opening: int


@dataclass(frozen=True)
class Frame:
    """What a template makes of a conversation of this shape.

    Attributes:
        graft: what to do where the text does not begin with the prompt that inference sends; None where it does.
        closing: what the template writes behind the last turn once another follows, if that is asked for.
    """

    skeleton: Skeleton
    turns: tuple[TurnFrame, ...]
    notes: tuple[str, ...]
    graft: Graft | None = None
    closing: str = ""


def frame_of(setting: Setting, marked: Marked, learned: tuple[int, ...], closed: bool = False) -> Frame:
    """Raises `UnprovenError` where a part is lost, or a turn does not continue its prompt.

    Args:
        closed: whether the last turn, the only one that is learned, is to have the beginning of the next one.
    """
    text = rendered(setting, marked.messages)
    validate_not_escaped(setting, text)
    if not setting.form.text_arguments:
        validate_json(marked.messages, text)
    closing = closing_of(setting, marked, text) if closed else ""
    graft = None
    if learned == (len(marked.messages) - 1,):
        prompt = rendered(setting, marked.messages[:-1], add_generation_prompt=True)
        if not text.startswith(prompt):
            graft, text = grafted(prompt, text, learned[0])
    text += closing
    skeleton = skeleton_of(text)
    notes = lost_parts(skeleton, marked, learned)
    turns = tuple([turn_frame(setting, marked, text, skeleton, index) for index in learned])
    written = [text_before_answer(skeleton, turn) for turn in turns]
    notes += [f"the template writes {text!r} before the answer, learned with it" for text in written if text.strip()]
    if graft:
        notes.append("with the answer the template writes earlier turns otherwise: the row has what inference sends")
    if closed and not closing:
        raise UnprovenError("d", "no stop token follows the assistant's text", learned[0])
    if closing:
        notes.append("the turn ends with the token that opens the next one, on which generation stops")
    return Frame(skeleton, turns, tuple(dict.fromkeys(notes)), graft, closing)


def validate_not_escaped(setting: Setting, text: str) -> None:
    """Raise where what the template writes came out in HTML's escapes, which it does not have itself."""
    own = setting.template.source + (setting.tools or "")
    found = next((each for each in ESCAPED.findall(text) if each not in own), None)
    if found:
        raise UnprovenError("f", f"the template's own text comes out escaped for HTML, as {found!r}")


def validate_json(messages: Sequence[Message], text: str) -> None:
    """Raise where an object or a list of a call's arguments is written as Python spells it, which is not JSON."""
    for index, message in enumerate(messages):
        for call in message.tool_calls:
            for value in containers(json.loads(call.arguments)):
                if repr(value) in text and repr(value) != json.dumps(value, ensure_ascii=False):
                    raise UnprovenError("f", f"the template writes arguments of {call.name!r} that are no JSON", index)


def containers(value: Any) -> Iterator[Any]:
    """The objects and lists within a JSON value, itself among them."""
    if isinstance(value, (dict, list)):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from containers(item)


def closing_of(setting: Setting, marked: Marked, text: str) -> str:
    """What the template writes between the last turn and what the next one says."""
    called = marked.messages[-1].tool_calls
    mark = f"Qzx{len(marked.slots)}xzQ"
    following = Message("user", mark)
    if called:
        following = Message("tool", mark, name=called[-1].name, tool_call_id=called[-1].id)
    longer = rendered(setting, [*marked.messages, following])
    if not longer.startswith(text):
        return ""
    return longer[len(text) :].partition(mark)[0]


def grafted(prompt: str, text: str, index: int) -> tuple[Graft, str]:
    """The prompt with the answer behind it, where the text goes on behind the last mark of the prompt as the prompt."""
    before, skeleton = skeleton_of(prompt), skeleton_of(text)
    if not before.order or before.order[-1] not in skeleton.order:
        raise other_prompt(index, text, prompt)
    place = len(skeleton.order) - skeleton.order[::-1].index(before.order[-1])
    ending, following = before.pieces[-1], skeleton.pieces[place]
    if not following.startswith(ending) or place == len(skeleton.order):
        raise other_prompt(index, text, prompt)
    opening = len(following) - len(ending)
    rest = [f"Qzx{number}xzQ{piece}" for number, piece in zip(skeleton.order, skeleton.pieces[1:], strict=True)]
    answer = following[len(ending) :] + "".join(rest[place:])
    return Graft(skeleton, place, opening), prompt + answer


def rendered(setting: Setting, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    try:
        return setting.render(messages, add_generation_prompt)
    except RenderError as error:
        found = f"the template takes these messages but not others of the same shape ({MARK.sub('…', error.found)})"
        raise UnprovenError("f", found) from None


def text_before_answer(skeleton: Skeleton, turn: TurnFrame) -> str:
    piece = skeleton.pieces[turn.first]
    return piece[len(piece) - turn.opening :] if turn.first < turn.last else ""


def lost_parts(skeleton: Skeleton, marked: Marked, learned: tuple[int, ...]) -> list[str]:
    """Notes on parts that context may lose; an `UnprovenError` for any other part that is lost."""
    there, notes = set(skeleton.order), []
    for number, slot in enumerate(marked.slots):
        if number in there:
            continue
        role = marked.messages[slot.message].role
        if slot.kind != "reasoning" or slot.message in learned:
            mend = "Choose a base whose template keeps it, or change the row."
            if slot.kind == "reasoning":
                mend = "Set `reasoning: strip`, or choose a base whose template keeps it."
            raise UnprovenError("f", lost_name(slot, role), slot.message, mend=mend)
        notes.append(f"the template cuts the reasoning of message {slot.message}, as it does at inference")
    for number in sorted(there):
        if skeleton.order.count(number) > 1:
            notes.append(f"the template writes a part of message {marked.slots[number].message} more than once")
    return notes


def lost_name(slot: Slot, role: str) -> str:
    kinds = {"content": f"the {role} message", "reasoning": "the reasoning of", "argument": "arguments of the calls of"}
    return f"the template loses or changes {kinds[slot.kind]} {{text}}"


def turn_frame(setting: Setting, marked: Marked, text: str, skeleton: Skeleton, index: int) -> TurnFrame:
    prompt = rendered(setting, marked.messages[:index], add_generation_prompt=True)
    if not text.startswith(prompt):
        raise other_prompt(index, text, prompt)
    before = skeleton_of(prompt)
    first = len(before.order)
    last = first
    while last < len(skeleton.order) and marked.slots[skeleton.order[last]].message == index:
        last += 1
    own = [number for number, slot in enumerate(marked.slots) if slot.message == index]
    if sorted(skeleton.order[first:last]) != own or any(number in own for number in skeleton.order[last:]):
        found = "after the prompt the template does not write this turn {text} once and in one place"
        raise UnprovenError("b", found, index)
    taken = len(before.pieces[-1])
    tail = skeleton.pieces[last][taken if first == last else 0 :]
    if index + 1 < len(marked.messages):
        tail = common_beginning(tail, tail_as_last(setting, marked, skeleton, prompt, index, last))
    thought = end_of_thought(setting, marked, skeleton, index, range(first, last))
    return TurnFrame(index, first, last, len(skeleton.pieces[first]) - taken, thought, len(tail))


def other_prompt(index: int, text: str, prompt: str) -> UnprovenError:
    text, prompt = MARK.sub("…", text), MARK.sub("…", prompt)
    same = len(common_beginning(text, prompt))
    sent, written = prompt[same : same + 30], text[same : same + 30]
    return UnprovenError(
        "a",
        f"inference sends {sent!r} where the template writes {written!r} in training: it renders the turns before the "
        "answer differently",
        index,
        mend="Leave the row out, or choose a base whose template can be proven.",
    )


def tail_as_last(setting: Setting, marked: Marked, skeleton: Skeleton, prompt: str, index: int, last: int) -> str:
    """What the template writes behind the turn where nothing follows it; raises if the turn itself differs."""
    alone_text = rendered(setting, marked.messages[: index + 1])
    alone = skeleton_of(alone_text)
    is_same = alone.order == skeleton.order[:last] and alone.pieces[:-1] == skeleton.pieces[:last]
    if not is_same or not alone_text.startswith(prompt):
        raise UnprovenError("f", "the template writes the turn {text} differently once others follow", index)
    first = len(skeleton_of(prompt).order)
    return alone.pieces[-1][len(skeleton_of(prompt).pieces[-1]) if first == last else 0 :]


def end_of_thought(
    setting: Setting, marked: Marked, skeleton: Skeleton, index: int, own: range
) -> tuple[int, int] | None:
    """Where reasoning that is not learned ends: its last mark, and how much of what follows closes it.

    What closes it is what the template writes there whether a content or a call follows.
    """
    thoughts = [place for place in own if marked.slots[skeleton.order[place]].kind == "reasoning"]
    if marked.messages[index].train_reasoning or not thoughts:
        return None
    following = skeleton.pieces[thoughts[-1] + 1]
    if thoughts[-1] + 1 in own and marked.slots[skeleton.order[thoughts[-1] + 1]].kind == "content":
        return thoughts[-1], len(following)
    number = skeleton.order[thoughts[-1]]
    beside = marked.messages[index].reasoning
    content = "Qzx9999xzQ" if beside else (marked.messages[index].content or "") + "Qzx9999xzQ"
    answer = replace(marked.messages[index], content=content, tool_calls=())
    other = skeleton_of(rendered(setting, [*marked.messages[:index], answer]))
    if number not in other.order:
        raise UnprovenError("b", "the template shows no end of the reasoning of {text}", index)
    return thoughts[-1], len(common_beginning(following, other.pieces[other.order.index(number) + 1]))
