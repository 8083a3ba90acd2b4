"""Rows whose only content is one text.

A text has no roles, and tunewright trains chat: it is rejected, with what to do. The exception is a text that is wholly
a conversation written by a chat template (ChatML, Llama 3, Gemma, Zephyr), each turn between the template's own marks:
it is read as the messages that it shows, which is a repair.
"""

import re

from tunewright.data.faults import RowError
from tunewright.data.formats.reading import Dialogue, Reading, RowObject, Turn, listed
from tunewright.data.formats.roles import SHAREGPT, read_role

TEMPLATES = {
    "ChatML": re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\s*", re.DOTALL),
    "Llama 3": re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>\s*", re.DOTALL),
    "Gemma": re.compile(r"<start_of_turn>(\w+)\n(.*?)<end_of_turn>\s*", re.DOTALL),
    "Zephyr": re.compile(r"<\|(system|user|assistant)\|>\n(.*?)(?:</s>|<\|end\|>|<\|endoftext\|>)\s*", re.DOTALL),
}
BEGIN = re.compile(r"(?:<s>|<bos>|<\|begin_of_text\|>)?\s*")
END = re.compile(r"(?:</s>|<eos>|<\|end_of_text\|>|<\|endoftext\|>)?\s*\Z")


def read_text(row: RowObject, reading: Reading) -> list[Dialogue]:
    text = row["text"]
    for name, template in TEMPLATES.items():
        turns = read_marked(text, template, reading) if isinstance(text, str) else []
        if turns:
            reading.format = "chat_text"
            reading.repair(f"text in the form of {name} read as messages", "text")
            return [Dialogue(turns)]
    others = [key for key in row if key != "text"]
    raise RowError("text without roles", f"found the keys {listed(row)}; expected who says what", "text", mend(others))


def read_marked(text: str, template: re.Pattern[str], reading: Reading) -> list[Turn]:
    """The turns of a text that is nothing but marked turns; none if it is anything else."""
    begin = BEGIN.match(text)
    position = begin.end() if begin else 0
    found: list[tuple[str, str]] = []
    while turn := template.match(text, position):
        found.append((turn[1], turn[2]))
        position = turn.end()
    if not found or not END.match(text, position):
        return []
    paths = [f"text, turn {number}" for number in range(1, len(found) + 1)]
    return [
        Turn(read_role(name, path, SHAREGPT, reading), said, path, path)
        for (name, said), path in zip(found, paths, strict=True)
    ]


def mend(others: list[str]) -> str:
    if not others:
        return "Write each text as a prompt and a completion, or as messages."
    answer = others[0] if len(others) == 1 else "KEY"
    which = "" if len(others) == 1 else f", KEY being one of {', '.join(others[:8])}"
    return f"Say in the recipe which is which, such as `columns: {{prompt: text, completion: {answer}}}`{which}."
