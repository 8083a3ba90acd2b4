"""A prompt and its answer under two keys: prompt/completion, Alpaca, questions with answers.

Each side is a text, any other JSON value, or a list of messages. Further inputs follow the prompt on a line of their
own, as in LLaMA-Factory's Alpaca; `history` has the turns before it, all of which are learned.
"""

from tunewright.chat.conversation import Role
from tunewright.data.exact_json import Json
from tunewright.data.faults import RowError
from tunewright.data.formats.messages import is_message_list, read_messages
from tunewright.data.formats.reading import Dialogue, Reading, RowObject, Turn, holds_nothing, is_absent

PROMPT_KEYS = ("prompt", "question", "instruction", "input")
ANSWER_KEYS = ("completion", "response", "answer", "output")
EXTRA_INPUT_KEYS = ("input", "context")
BESIDE_KEYS = ("history", "reasoning_content", *EXTRA_INPUT_KEYS)


def read_pair(row: RowObject, prompt: str, answer: str, reading: Reading) -> list[Dialogue]:
    turns = [*read_prompt(row, prompt, reading), *read_side(row[answer], answer, "assistant", reading)]
    beside = "reasoning" if "reasoning" in reading.columns else "reasoning_content"
    if not holds_nothing(row.get(beside)) and turns[-1].reasoning is None:
        turns[-1].reasoning, turns[-1].reasoning_field = row[beside], reading.path(beside)
    return [Dialogue(turns)]


def read_prompt(row: RowObject, key: str, reading: Reading) -> list[Turn]:
    """Everything before the answer: earlier turns, and the prompt with its further inputs."""
    earlier = read_history(row.get("history"), reading)
    turns = read_side(row[key], key, "user", reading)
    extra = [name for name in EXTRA_INPUT_KEYS if name != key and not is_absent(row.get(name))]
    if extra and is_message_list(row[key]):
        reading.ignore(*extra)
        reading.doubt(f"{extra[0]!r} stands beside a list of messages and is left out")
    elif extra and not is_absent(row[key]):
        turns[0].value = "\n".join(reading.text_of(row[name], reading.path(name)) for name in (key, *extra))
    return [*earlier, *turns]


def read_side(value: Json, key: str, role: Role, reading: Reading) -> list[Turn]:
    where = reading.path(key)
    if is_message_list(value):
        return read_messages(value, where, reading)
    return [Turn(role, value, where, where)]


def read_history(history: Json, reading: Reading) -> list[Turn]:
    """Alpaca's earlier turns: a list of [instruction, answer]; a list of messages is understood too."""
    if holds_nothing(history):
        return []
    where = reading.path("history")
    if is_message_list(history):
        return read_messages(history, where, reading)
    pairs = reading.list_of(history, where, "[instruction, answer]")
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            found = f"{where}[{number}] is no [instruction, answer]"
            raise RowError("unknown shape", found, f"{where}[{number}]")
    roles: tuple[Role, Role] = ("user", "assistant")
    return [
        Turn(role, pair[side], f"{where}[{number}][{side}]", f"{where}[{number}][{side}]")
        for number, pair in enumerate(pairs)
        for side, role in enumerate(roles)
    ]
