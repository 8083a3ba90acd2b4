"""Turns into messages: contents become text without loss, reasoning is treated, and the order of roles is held.

Nothing is cut or stripped. A content that is not text becomes JSON text, which is a repair. An empty content is an
error, except that a tool may answer with an empty text, and that an assistant who calls a tool may say nothing (`None`
where the row has null, `""` where it has an empty text).

The order that is accepted, and no other:

    [system]  then once or more:  user  (assistant that calls tools, tool, tool, …)*  assistant

The last assistant of all may call tools and wait for their answers. A tool answers the calls of the assistant right
before it: no more answers than calls, and where ids are given, each names one of them, each only once. At least one
turn is trained.

Reasoning stands beside the content (`reasoning_content`, `reasoning`, `thinking`, content parts) or as a block
`<think>…</think>` at the content's start. `reasoning: train` learns both as the row has them; `keep` leaves both where
they are and marks the turn as `train_reasoning: false`; `strip` removes both, which is a repair. A block stays within
the content, because chat templates differ in what they do with one: those that know it take it out themselves, and the
others show it as it was.
"""

import re
from typing import Literal

from tunewright.chat.conversation import Message
from tunewright.data.exact_json import Json
from tunewright.data.faults import RowError
from tunewright.data.formats.reading import Reading, Turn

Reasoning = Literal["train", "keep", "strip"]
THINK = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)
OPEN_THINK = re.compile(r"\s*<think>")


def normal_messages(turns: list[Turn], reading: Reading, reasoning: Reasoning = "train") -> tuple[Message, ...]:
    """The messages of a conversation; what was mended is noted in `reading`.

    Raises:
        RowError: roles out of order, an empty content, a lone surrogate, a tool that answers nothing, nothing to train.
    """
    if turns and turns[0].role == "system" and is_empty(turns[0].value):
        reading.repair("empty system message left out", turns[0].field)
        turns = turns[1:]
    validate_order(turns)
    messages = tuple([message_of(turn, reading, reasoning) for turn in turns])
    if not any(message.train for message in messages if message.role == "assistant"):
        raise RowError("nothing to train", "every assistant turn is switched off; expected one that is trained")
    return messages


def rejected_messages(turns: list[Turn], reading: Reading, reasoning: Reasoning = "train") -> tuple[Message, ...]:
    """The answer that was not preferred: in no order that could be wrong, and perhaps empty."""
    return tuple(message_of(turn, reading, reasoning, may_be_empty=True) for turn in turns)


def message_of(turn: Turn, reading: Reading, reasoning: Reasoning, may_be_empty: bool = False) -> Message:
    content = content_of(turn, reading, may_be_empty)
    if turn.name is not None or turn.answers is not None or turn.calls:
        validate_names(turn)
    if turn.role != "assistant":
        return Message(turn.role, content, name=turn.name, tool_call_id=turn.answers)
    is_inline = content is not None and "<think>" in content and has_block(content, reading)
    if is_inline or turn.reasoning is not None:
        return message_with_reasoning(turn, content, is_inline, reading, reasoning)
    return Message("assistant", content, turn.train, tool_calls=turn.calls, name=turn.name, tool_call_id=turn.answers)


def message_with_reasoning(
    turn: Turn, content: str | None, is_inline: bool, reading: Reading, reasoning: Reasoning
) -> Message:
    """An assistant's message whose reasoning is treated as the recipe says."""
    beside = reasoning_of(turn, reading)
    if reasoning == "strip":
        if is_inline and content is not None:
            content = without_block(content, turn, reading)
        if beside is not None:
            reading.repair("reasoning removed", turn.reasoning_field)
        beside, is_inline = None, False
    is_learned = reasoning == "train" or not (is_inline or beside)
    return Message("assistant", content, turn.train, beside, is_learned, turn.calls, turn.name, turn.answers)


def content_of(turn: Turn, reading: Reading, may_be_empty: bool) -> str | None:
    """The text of a turn."""
    value = turn.value
    if isinstance(value, str) and (value.isascii() or is_unicode(value, turn.field)) and value and not value.isspace():
        return value
    if is_empty(value):
        if turn.calls and not isinstance(value, str):
            return None
        if turn.calls or may_be_empty or (turn.role == "tool" and isinstance(value, str)):
            return value or ""
        raise RowError("empty content", f"{turn.field} of the {turn.role} is {empty_name(value)}", turn.field)
    text = reading.text_of(value, turn.field)
    is_unicode(text, turn.field)
    return text


def is_empty(value: Json) -> bool:
    return value is None or value == [] or (isinstance(value, str) and (not value or value.isspace()))


def empty_name(value: Json) -> str:
    if isinstance(value, str) and value:
        return "only white space"
    return "null" if value is None else "empty"


def is_unicode(text: str, field: str) -> bool:
    """True; a lone surrogate, which no file can hold, raises."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"character {error.start + 1} of {field} is half of a surrogate pair"
        raise RowError("not Unicode text", found, field) from None
    return True


def validate_names(turn: Turn) -> None:
    calls = [text for call in turn.calls for text in (call.name, call.arguments, call.id)]
    for text in (turn.name, turn.answers, *calls):
        if text is not None:
            is_unicode(text, turn.path)


def has_block(content: str, reading: Reading) -> bool:
    """Whether the content begins with a whole block of reasoning."""
    if THINK.match(content):
        return True
    if OPEN_THINK.match(content):
        reading.doubt("an answer begins with a <think> that is never closed, and is read as an answer")
    return False


def without_block(content: str, turn: Turn, reading: Reading) -> str:
    rest = THINK.sub("", content, count=1)
    if not rest and not turn.calls:
        found = f"{turn.field} of the assistant has nothing but reasoning, which the recipe strips"
        raise RowError("empty content", found, turn.field)
    reading.repair("reasoning removed", turn.field)
    return rest


def reasoning_of(turn: Turn, reading: Reading) -> str | None:
    """What stands beside the content as reasoning; an empty text is none."""
    if turn.reasoning is None or is_empty(turn.reasoning):
        return None
    text = reading.text_of(turn.reasoning, turn.reasoning_field)
    is_unicode(text, turn.reasoning_field)
    return text


def validate_order(turns: list[Turn]) -> None:
    """Raise unless the roles follow one another as the module says."""
    before = "nothing"
    expected: tuple[str, ...] = ("user",)
    waiting: list[Turn] = []
    start = 0
    if turns and turns[0].role == "system":
        before, start = "system", 1
    for turn in turns[start:]:
        if turn.role not in expected:
            raise out_of_order(turn, before, expected)
        if turn.role == "assistant":
            waiting = [turn] if turn.calls else []
            expected = ("tool",) if turn.calls else ("user",)
        elif turn.role == "tool":
            waiting.append(turn)
            validate_answer(waiting)
            expected = ("tool", "assistant")
        else:
            expected = ("assistant",)
        before = f'"{turn.role}"'
    if len(turns) <= start or turns[-1].role != "assistant":
        where = turns[-1].path if turns else ""
        found = f'{where} is "{turns[-1].role}"' if turns else "no turn is left"
        raise RowError("last turn is not the assistant's", f'{found}; expected an "assistant" turn at the end', where)


def out_of_order(turn: Turn, before: str, expected: tuple[str, ...]) -> RowError:
    names = " or ".join(f'"{role}"' for role in expected)
    if turn.role == "tool" and before == '"assistant"':
        found = f'{turn.path} is "tool", but the assistant before it calls no tool'
        return RowError("roles out of order", f"{found}; expected {names}", turn.path)
    return RowError("roles out of order", f'{turn.path} is "{turn.role}" after {before}; expected {names}', turn.path)


def validate_answer(waiting: list[Turn]) -> None:
    """Raise unless the last of these turns, a tool's, answers a call of the first that has no answer yet."""
    caller, *earlier, answer = waiting
    ids = [call.id for call in caller.calls if call.id is not None]
    if answer.answers is not None and ids:
        if answer.answers not in ids:
            found = f"{answer.path} answers {answer.answers!r}; the calls of {caller.path} are {ids}"
            raise RowError("answer without a call", found, f"{answer.path}.tool_call_id")
        if answer.answers in [turn.answers for turn in earlier]:
            found = f"{answer.path} answers {answer.answers!r} a second time"
            raise RowError("answer without a call", found, f"{answer.path}.tool_call_id")
    if len(earlier) >= len(caller.calls):
        found = f"{answer.path} is answer {len(earlier) + 1} to the {len(caller.calls)} calls of {caller.path}"
        raise RowError("answer without a call", found, answer.path)
