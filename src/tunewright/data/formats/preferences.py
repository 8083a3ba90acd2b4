"""Rows with an answer that was preferred and one that was not.

The preferred answer is the target; the other is kept beside it, for training that compares them. Understood are TRL's
`prompt`, `chosen`, `rejected` (each a text or a list of messages, `prompt` also left out), LLaMA-Factory's
`conversations` or Alpaca keys with the two answers and its `chosen_messages`, `rejected_messages`, and OpenAI's
`input`, `preferred_output`, `non_preferred_output`.

Source of the last: https://platform.openai.com/docs/guides/direct-preference-optimization
"""

from collections.abc import Sequence

from tunewright.data.exact_json import Json
from tunewright.data.faults import RowError
from tunewright.data.formats.messages import is_message, is_message_list, read_message, read_messages
from tunewright.data.formats.pairs import PROMPT_KEYS, read_prompt
from tunewright.data.formats.reading import Dialogue, Reading, RowObject, Turn
from tunewright.data.formats.tool_calls import read_tools


def read_preference(row: RowObject, chosen_key: str, rejected_key: str, reading: Reading) -> list[Dialogue]:
    before = read_before(row, reading)
    chosen = read_answer(row[chosen_key], chosen_key, reading)
    rejected = read_answer(row[rejected_key], rejected_key, reading) if row[rejected_key] is not None else []
    if is_whole(chosen):
        if before and dialogue_of(before) != dialogue_of(chosen)[: len(dialogue_of(before))]:
            reading.doubt(f"the prompt is not the one that {chosen_key!r} begins with, which was taken")
        turns = chosen
    elif before:
        turns = [*before, *chosen]
    else:
        where = reading.path(chosen_key)
        found = f"{where} is an answer alone; expected a prompt beside it, or whole conversations"
        raise RowError("no prompt", found, where, "Name the key of the prompt, as in `columns: {prompt: KEY}`.")
    if rejected and is_whole(rejected):
        rejected = without_shared(rejected, turns)
    if rejected and said_by(rejected) == said_by(turns[-len(rejected) :]):
        reading.doubt(f"{chosen_key!r} and {rejected_key!r} are the same answer")
    return [Dialogue(turns, rejected)]


def read_before(row: RowObject, reading: Reading) -> list[Turn]:
    """What stands before the answers; nothing if they are whole conversations."""
    for key in ("messages", "conversations"):
        if row.get(key) is not None:
            return read_messages(row[key], reading.path(key), reading)
    request = row.get("input")
    if isinstance(request, dict) and "messages" in request:
        reading.tools = read_tools(request.get("tools"), "input.tools")
        return read_messages(request["messages"], "input.messages", reading)
    prompt = next((key for key in PROMPT_KEYS if row.get(key) is not None), None)
    return read_prompt(row, prompt, reading) if prompt else []


def read_answer(value: Json, key: str, reading: Reading) -> list[Turn]:
    where = reading.path(key)
    if is_message_list(value):
        return read_messages(value, where, reading)
    if is_message(value):
        return [read_message(value, where, reading)]
    return [Turn("assistant", value, where, where)]


def is_whole(turns: Sequence[Turn]) -> bool:
    """Whether these are a conversation rather than an answer."""
    return turns[0].role in {"system", "user"}


def said_by(turns: Sequence[Turn]) -> list[tuple[str, Json]]:
    return [(turn.role, turn.value) for turn in turns]


def dialogue_of(turns: Sequence[Turn]) -> list[tuple[str, Json]]:
    return said_by([turn for turn in turns if turn.role != "system"])


def without_shared(rejected: list[Turn], chosen: list[Turn]) -> list[Turn]:
    """The turns from where the two conversations part; the last one if they do not."""
    shared = 0
    for left, right in zip(said_by(rejected), said_by(chosen), strict=False):
        if left != right:
            break
        shared += 1
    return rejected[min(shared, len(rejected) - 1) :]
