"""Which shape a row has, and its dialogues.

In: a parsed row and what the recipe says of names. Out: the row's dialogues, usually one, each with its turns in order,
roles in the normal form and contents still as the row had them; and, in `Reading`, the name of the format, the repairs,
the doubts and the keys that nothing was read from.

Detection looks at the keys that hold something. Where they fit several shapes, the first of `FORMATS` is taken and the
doubt is stated; where they fit none, the error says what to do. Each row is looked at alone: a file may have several
shapes. `FORMATS` is the table: a new shape is a new entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

from tunewright.data.exact_json import Json
from tunewright.data.faults import RowError, a_kind, writable
from tunewright.data.formats.chat_text import read_text
from tunewright.data.formats.columns import mapped_row
from tunewright.data.formats.messages import CALL_KEYS, MEDIA, is_message_list, read_messages
from tunewright.data.formats.pairs import ANSWER_KEYS, BESIDE_KEYS, PROMPT_KEYS, read_pair
from tunewright.data.formats.preferences import read_preference
from tunewright.data.formats.reading import Dialogue, Reading, RowObject, Turn, holds_nothing, is_switch, listed
from tunewright.data.formats.tool_calls import read_tools
from tunewright.data.formats.trees import is_tree, read_tree

LABEL_KEYS = ("label", "kto_tag")
SYSTEM_KEYS = ("system", "system_prompt")
TOOL_KEYS = ("tools", "functions")
THOUGHT_KEYS = ("reasoning", "thinking")
WATCHED = frozenset({*MEDIA, *LABEL_KEYS, *SYSTEM_KEYS, *TOOL_KEYS, *CALL_KEYS, *THOUGHT_KEYS})


@dataclass(frozen=True)
class RowFormat:
    """A shape of rows.

    Attributes:
        name: stands in the ledger.
        keys: what a row must have to be of this shape.
        read: the row's dialogues; raises `RowError`.
        uses: further keys that it reads.
        unless: keys that make it something else.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[RowObject, Reading], list[Dialogue]]
    uses: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()

    @property
    def takes_reasoning(self) -> bool:
        return "reasoning_content" in self.uses

    def matches(self, keys: tuple[str, ...]) -> bool:
        return all(key in keys for key in self.keys) and not any(key in keys for key in self.unless)


@dataclass(frozen=True)
class Plan:
    """How rows with certain keys are read.

    Attributes:
        doubt: why another reading was possible.
        watched: keys beside those of the format that may hold something that matters.
        ignored: keys that nothing is read from.
    """

    format: RowFormat
    doubt: str | None
    watched: tuple[str, ...]
    ignored: tuple[str, ...]


def read_row(row: Json, reading: Reading) -> list[Dialogue]:
    """The dialogues of a row, a system prompt that stands beside the messages included.

    Raises:
        RowError: the row fits no format, is not what its format asks for, or holds something that is not trained.
    """
    if not isinstance(row, dict):
        raise RowError("unknown shape", f"found {a_kind(row)}; expected an object with {SHAPES}")
    if reading.columns:
        row = mapped_row(row, reading.columns, reading)
    plan = plan_of(row)
    reading.format = plan.format.name
    if plan.doubt is not None:
        reading.doubt(plan.doubt)
    if plan.ignored:
        note_ignored(plan.ignored, reading)
    beside = look_beside(row, plan, reading) if plan.watched else None
    dialogues = plan.format.read(row, reading)
    if beside is not None:
        for dialogue in dialogues:
            add_system(dialogue, beside)
    return dialogues


def plan_of(row: RowObject) -> Plan:
    """The plan for the keys that hold something; for all keys, if that alone gives a shape."""
    held = tuple([key for key, value in row.items() if value is not None and value != ""])
    plan = plan_for(held) or plan_for(tuple(row)) or plan_for(held, is_last_resort=True)
    if plan is None:
        raise unknown_shape(row)
    return plan


@lru_cache(maxsize=256)
def plan_for(keys: tuple[str, ...], is_last_resort: bool = False) -> Plan | None:
    found = [item for item in (LAST_RESORTS if is_last_resort else FORMATS) if item.matches(keys)]
    if not found:
        return None
    names = list(dict.fromkeys(item.name for item in found))
    is_certain = is_last_resort or len(found) == 1
    doubt = None if is_certain else f"the keys fit {' and '.join(names)}; read as {names[0]}"
    used = {*found[0].keys, *found[0].uses}
    watched = tuple(key for key in keys if key in WATCHED)
    return Plan(found[0], doubt, watched, tuple(writable(key) for key in keys if key not in used | WATCHED))


def note_ignored(keys: tuple[str, ...], reading: Reading) -> None:
    if reading.ignored or reading.columns:
        reading.ignore(*map(reading.path, keys))
    else:
        reading.ignored = keys


def look_beside(row: RowObject, plan: Plan, reading: Reading) -> Turn | None:
    """Read what stands beside the conversation: tools, labels, and the system prompt, which is returned."""
    system: Turn | None = None
    for key in plan.watched:
        value = row[key]
        if holds_nothing(value) and key not in LABEL_KEYS:
            continue
        if key in SYSTEM_KEYS:
            if system is not None and system.value != value:
                raise RowError("two system prompts", f"{key!r} stands beside {system.path!r}; expected one", key)
            system = Turn("system", value, reading.path(key), reading.path(key))
        elif key in TOOL_KEYS:
            reading.tools = read_tools(value, reading.path(key))
        elif key in LABEL_KEYS:
            read_label(value, key, reading)
        elif key in THOUGHT_KEYS:
            look_at_thoughts(value, key, plan.format, reading)
        else:
            raise not_trained(key, reading.path(key))
    return system


def not_trained(key: str, where: str) -> RowError:
    if key in CALL_KEYS:
        found = f"found {key!r}; expected them in an assistant's message"
        return RowError("tool calls outside a message", found, where)
    mend = f"Leave the row out with --on-bad-row=reject, or take {key!r} out of it."
    return RowError(f"{MEDIA[key]} not trained", f"found {key!r}; tunewright trains text", where, mend)


def read_label(value: Json, key: str, reading: Reading) -> None:
    """A label that is true or false says whether the answer is wanted; any other is metadata."""
    if value is False:
        found = f"{key} is false, which marks an answer not to be learned"
        raise RowError("unwanted answer", found, key, "Leave the row out with --on-bad-row=reject.")
    if value is True:
        return
    reading.ignore(key)
    if is_switch(value):
        reading.doubt(f"{key!r} is no boolean and was left out; it could mark answers not to be learned")


def look_at_thoughts(value: Json, key: str, row_format: RowFormat, reading: Reading) -> None:
    """`reasoning` beside the answer may be a text or a mere switch; only the recipe can say that it is a text."""
    if key in reading.columns and row_format.takes_reasoning:
        return
    reading.ignore(reading.path(key))
    if not row_format.takes_reasoning:
        return
    if isinstance(value, str) and len(value.split()) > 1:
        reading.doubt(f"{key!r} was left out; `columns: {{reasoning: {key}}}` would read it as the answer's reasoning")


def add_system(dialogue: Dialogue, system: Turn) -> None:
    """Put the system prompt before the turns; the same one may stand there already."""
    if dialogue.turns and dialogue.turns[0].role == "system":
        if dialogue.turns[0].value != system.value:
            found = f"{system.path!r} stands beside a system message; expected one"
            raise RowError("two system prompts", found, system.path)
        return
    dialogue.turns.insert(0, system)


def unknown_shape(row: RowObject) -> RowError:
    """The error for a row that fits no format, with what to do about it."""
    found = f"found the keys {listed(row)}"
    if "role" in row and ("content" in row or "text" in row):
        mend = "Join the messages of a conversation into one row, or use the file that has whole trees."
        return RowError("single message", f"{found}; expected a whole conversation in each row", "", mend)
    if "chosen" in row and "rejected" not in row:
        mend = "If it is the answer to learn, say so in the recipe: `columns: {completion: chosen}`."
        return RowError("unknown shape", f"{found}; expected 'rejected' beside 'chosen'", "", mend)
    lists = [key for key, value in row.items() if is_message_list(value)]
    if lists:
        mend = f"Say in the recipe where the messages are: `columns: {{messages: {lists[0]}}}`."
    else:
        mend = "Say in the recipe which keys are meant, such as `columns: {prompt: KEY, completion: KEY}`."
    return RowError("unknown shape", f"{found}; expected {SHAPES}", "", mend)


def read_list(key: str, row: RowObject, reading: Reading) -> list[Dialogue]:
    return [Dialogue(read_messages(row[key], reading.path(key), reading))]


def read_lone_prompt(row: RowObject, reading: Reading) -> list[Dialogue]:
    """A tree below `prompt`; anything else is a question that nobody answers."""
    if is_tree(row.get("prompt")):
        reading.format = "tree"
        return read_tree(row["prompt"], "prompt", reading)
    key = next(key for key in PROMPT_KEYS if key in row)
    raise RowError(
        "no answer",
        f"found {key!r} and none of {', '.join(ANSWER_KEYS)}; the keys are {listed(row)}",
        "",
        "Say in the recipe where the answer is: `columns: {completion: KEY}`; a row without one cannot be learned.",
    )


def read_root(row: RowObject, reading: Reading) -> list[Dialogue]:
    return read_tree(row, "", reading)


def preference(chosen: str, rejected: str, unless: tuple[str, ...] = ()) -> RowFormat:
    def read(row: RowObject, reading: Reading) -> list[Dialogue]:
        return read_preference(row, chosen, rejected, reading)

    uses = ("messages", "conversations", *PROMPT_KEYS, *BESIDE_KEYS[:1], *BESIDE_KEYS[2:])
    return RowFormat("preference", (chosen, rejected), read, uses, unless)


def pair(prompt: str, answer: str) -> RowFormat:
    def read(row: RowObject, reading: Reading) -> list[Dialogue]:
        return read_pair(row, prompt, answer, reading)

    name = "alpaca" if (prompt, answer) == ("instruction", "output") else f"{prompt}_{answer}"
    return RowFormat(name, (prompt, answer), read, BESIDE_KEYS, PROMPT_KEYS[:3] if prompt == "input" else ())


PREFERENCES: Mapping[str, str] = {
    "chosen": "rejected",
    "chosen_messages": "rejected_messages",
    "preferred_output": "non_preferred_output",
}
FORMATS: tuple[RowFormat, ...] = (
    *(preference(chosen, rejected) for chosen, rejected in PREFERENCES.items()),
    RowFormat("messages", ("messages",), partial(read_list, "messages"), unless=tuple(PREFERENCES)),
    RowFormat("sharegpt", ("conversations",), partial(read_list, "conversations"), unless=tuple(PREFERENCES)),
    *(pair(prompt, answer) for prompt in PROMPT_KEYS for answer in ANSWER_KEYS),
)
LAST_RESORTS: tuple[RowFormat, ...] = (
    RowFormat("tree", ("role", "replies"), read_root, ("text", "content", "deleted", "review_result")),
    RowFormat("text", ("text",), read_text, unless=("role",)),
    *(RowFormat("unknown", (key,), read_lone_prompt, unless=("chosen",)) for key in PROMPT_KEYS),
)
SHAPES = f"messages, conversations, or {'/'.join(PROMPT_KEYS)} with {'/'.join(ANSWER_KEYS)}"
