"""Every template of the battery with every kind of conversation, as a Markdown table: proven, or refused and why.

usage: python benchmarks/templates.py > docs/templates.md

The battery is at TUNEWRIGHT_BATTERY, or beside the project. The conversations and the tokenizers that the templates are
paired with are those of the tests (tests/battery_chats.py).
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.errors import RenderError

HEAD = """# Templates and masks

Made by `benchmarks/templates.py`. {templates} real chat templates with {kinds} kinds of conversation, each cell
*proven* or *refused with a reason*: {proven} proven, {refused} refused, {raised} raised.

A template that comes without its tokenizer is paired with the tokenizer of the battery that knows most of its tokens;
token texts among its literals that this one lacks were added to a copy. So the masks are proven on real templates; the
ids are those of the pair. Stop tokens are the pair's EOS and what the template writes behind an answer and a call.

| sign | meaning |
|---|---|
| ✓ | proven: prompt ids, span, roles, end of turn, BOS and messages, as `chat/proof.py` says |
| ✓N | proven as N rows, one for each learned turn: earlier turns read differently once later ones follow |
| v | proven with a variable that the row names, such as `enable_thinking=False`; serving has to use it too |
| f | proven in another form of the messages, which the row names: parts, "" for no content, arguments as text |
| n | proven with a note: whitespace stripped, JSON escapes, a name not shown, thinking cut from earlier turns |
| T | refused: the template itself refuses such messages |
| A | refused: inference would send other ids than those before the answer |
| B | refused: the supervised ids do not decode to the answer |
| C | refused: a message has the text of a control token |
| D | refused: no stop token follows the answer |
| E | refused: two BOS tokens |
| F | refused: the template loses or changes a message, its reasoning, a call or a tool |
"""
FORM_NOTES = ("arguments of tool calls are given", "a turn without content is given", "contents are given")


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from battery_chats import CHATS, templates

    battery = Path(os.environ.get("TUNEWRIGHT_BATTERY") or Path(__file__).parents[2] / "shared" / "battery")
    found = {path.stem: dict(cells(battery, path)) for path in templates(battery)}
    counts = Counter(verdict for row in found.values() for verdict, _ in row.values())
    head = {"proven": counts["proven"], "refused": counts["refused"], "raised": counts["raised"]}
    print(HEAD.format(templates=len(found), kinds=len(CHATS), **head))
    print("| template | " + " | ".join(CHATS) + " |\n|---|" + "---|" * len(CHATS))
    for name, row in found.items():
        print(f"| {name.replace('_', chr(92) + '_')} | " + " | ".join(sign for _, sign in row.values()) + " |")


def cells(battery: Path, path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """For each kind of conversation, the verdict and its sign."""
    from battery_chats import CHATS, chat, paired

    supervisor = paired(battery, path)
    for kind in CHATS:
        try:
            rows = supervisor.rows(chat(kind, supervisor))
        except RenderError as error:
            yield kind, ("refused", error.claim[:1].upper())
        except Exception as error:  # what the table is there to show
            yield kind, ("raised", type(error).__name__)
        else:
            yield kind, ("proven", sign(rows))


def sign(rows: list[Any]) -> str:
    proofs = [row.proof for row in rows]
    notes = [note for proof in proofs for note in proof.notes]
    formed = any(note.startswith(FORM_NOTES) for note in notes)
    noted = any("learned with it" not in note and not note.startswith(("earlier", *FORM_NOTES)) for note in notes)
    signs = ["v" if any(proof.variables for proof in proofs) else "", "f" if formed else "", "n" if noted else ""]
    return "✓" + (str(len(rows)) if len(rows) > 1 else "") + "".join(signs)


if __name__ == "__main__":
    main()
