"""What became of one row.

In: a row and the recipe's keys. Out: its account: kept, repaired (with each repair) or rejected (with the reason and
the field), its conversations in the normal form, and what was uncertain or left aside. An account depends on its row
and the recipe alone, never on other rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.chat.conversation import Conversation
from tunewright.data.exact_json import Json, json_text, parse_json
from tunewright.data.faults import Repair, RowError
from tunewright.data.formats.columns import MISSING, lookup
from tunewright.data.formats.detect import read_row
from tunewright.data.formats.reading import Dialogue, Reading
from tunewright.data.normal import is_unicode, normal_messages, rejected_messages
from tunewright.data.read import Row
from tunewright.recipe import DataKeys

Fate = Literal["kept", "repaired", "rejected"]
SystemPromptFrom = Literal["row", "recipe", "none"]


@dataclass(frozen=True, slots=True)
class Account:
    """What became of one row.

    Attributes:
        format: the name of the row's format, `unknown` where none was recognised.
        repairs: what was mended; of a rejected row, up to where it was given up.
        conversations: the normal form; several of a tree, none if the row was rejected.
        system_prompt: where its system prompt is from; None if the row was rejected.
        fault: why it was rejected.
        uncertain: why it could have been read otherwise, and what was taken; without values of the row.
        ignored: its keys that nothing was read from, such as `id` and `messages[].time`.
        stratum: the value of the recipe's `stratify_by` as text; None if the row has none.
    """

    row: Row
    format: str
    repairs: tuple[Repair, ...] = ()
    conversations: tuple[Conversation, ...] = ()
    system_prompt: SystemPromptFrom | None = None
    fault: RowError | None = None
    uncertain: str | None = None
    ignored: tuple[str, ...] = ()
    stratum: str | None = None

    @property
    def fate(self) -> Fate:
        if not self.conversations:
            return "rejected"
        return "repaired" if self.repairs else "kept"

    def as_json(self) -> dict[str, Any]:
        """The ledger's line but for the split; `sha256` is that of the row's bytes without the line's end."""
        return {
            "row": self.row.id,
            "file": self.row.source.label,
            "line": self.row.record.line,
            "byte_offset": self.row.record.byte_offset,
            "sha256": self.row.sha256,
            "fate": self.fate,
            "format": self.format,
            "repairs": [repair.as_json() for repair in self.repairs],
            "reason": self.fault.reason if self.fault else None,
            "field": self.fault.field if self.fault else None,
            "system_prompt": self.system_prompt,
            "uncertain": self.uncertain,
            "conversations": len(self.conversations),
        }


def account_for(row: Row, config: DataKeys) -> Account:
    """Read one row as far as it goes."""
    columns: Mapping[Any, str] = config.columns
    reading = Reading(list(row.record.repairs), columns, config.roles)
    fault = None
    conversations: tuple[Conversation, ...] = ()
    system_prompt: SystemPromptFrom | None = None
    stratum = None
    try:
        if row.record.fault is not None:
            raise row.record.fault
        conversations = read_conversations(row, config, reading)
        conversations, system_prompt = with_system_prompts(conversations, config, reading)
        if config.stratify_by is not None:
            stratum = stratum_of(row.record.value, conversations[0].target, config.stratify_by)
    except RowError as error:
        fault, conversations = error, ()
    except RecursionError:
        fault = RowError("nested too deeply", "a value is nested deeper than can be written as text")
        conversations = ()
    uncertain = "; ".join(reading.doubts) if reading.doubts else None
    return Account(
        row,
        reading.format,
        tuple(reading.repairs),
        conversations,
        system_prompt if conversations else None,
        fault,
        uncertain,
        reading.ignored,
        stratum,
    )


def read_conversations(row: Row, config: DataKeys, reading: Reading) -> tuple[Conversation, ...]:
    """The row's conversations without the recipe's system prompt: `id`, and of a tree `id/2`, `id/3` and so on."""
    dialogues = read_row(row.record.value, reading)
    if reading.tools is not None:
        is_unicode(reading.tools, "tools")
    tree = row.id if reading.format == "tree" else None
    return tuple(
        [
            conversation_of(dialogue, row.id if number == 1 else f"{row.id}/{number}", tree, config, reading)
            for number, dialogue in enumerate(dialogues, 1)
        ]
    )


def conversation_of(
    dialogue: Dialogue, name: str, tree: str | None, config: DataKeys, reading: Reading
) -> Conversation:
    messages = normal_messages(dialogue.turns, reading, config.reasoning)
    rejected = rejected_messages(dialogue.rejected, reading, config.reasoning) if dialogue.rejected else ()
    return Conversation(name, messages, reading.tools, rejected, tree)


def with_system_prompts(
    conversations: tuple[Conversation, ...], config: DataKeys, reading: Reading
) -> tuple[tuple[Conversation, ...], SystemPromptFrom]:
    """The conversations of one row with the recipe's system prompt where the recipe wants it."""
    own, given = conversations[0].system, config.system_prompt
    if given is None or (own is not None and config.system_prompt_for == "missing"):
        return conversations, "none" if own is None else "row"
    if own not in (None, given):
        reading.repair("system prompt replaced", "messages[0].content")
    return tuple(conversation.with_system(given) for conversation in conversations), "recipe"


def stratum_of(value: Json, target: str, name: str) -> str | None:
    """The value of a field of the row, or else of the target if that is a JSON object, as text."""
    found = lookup(value, name)
    if found is MISSING and target.lstrip().startswith("{"):
        try:
            parsed = parse_json(target)
        except RowError:
            return None
        found = lookup(parsed, name) if isinstance(parsed, dict) else MISSING
    if found is MISSING or found is None:
        return None
    return found if isinstance(found, str) else json_text(found)
