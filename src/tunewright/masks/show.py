"""Proven rows in the terminal: what is learned in colour, special tokens visible."""

import json
import sys
from collections import Counter
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from tunewright.chat.encoding import Encoder
from tunewright.masks.work import Job, proven_lines
from tunewright.models.base import load_tokenizer

LEARNED, SPECIAL, LEARNED_SPECIAL, PLAIN = "black on green", "bold magenta", "bold black on green", "dim"


def print_masks(job: Job, most: int, as_json: bool) -> None:
    """Every row as a line of JSON; or the first `most` rows, then how many were proven and how many were not."""
    if as_json:
        for lines in proven_lines(job):
            sys.stdout.buffer.write(lines)
        sys.stdout.flush()
        return
    tokenizer = load_tokenizer(job.tokenizer)
    console = Console(highlight=False, soft_wrap=True)
    counts: Counter[str] = Counter()
    for number, row in enumerate(json.loads(line) for lines in proven_lines(job) for line in lines.splitlines()):
        counts["refused" if "refused" in row else "proven"] += 1
        if number < most:
            console.print(row_text(row, tokenizer), "", sep="\n")
    legend = Text.assemble(("learned", LEARNED), " ", ("special token", SPECIAL), " ", ("not learned", PLAIN))
    console.print(Text.assemble(f"{counts['proven']} rows proven, {counts['refused']} refused.  ", legend))


def row_text(row: dict[str, Any], tokenizer: Any) -> Text:
    """One row with its name, its tokens and what there is to say about its proof."""
    if "refused" in row:
        return Text.assemble((row["row"], "bold"), "\n", ("refused: ", "red"), row["refused"])
    learned = sum(row["assistant_mask"])
    head = f"  {len(row['input_ids'])} tokens, {learned} of them learned\n"
    notes = [f"\n{note}" for note in row["proof"]["notes"]]
    return Text.assemble((row["row"], "bold"), head, *token_pieces(row, tokenizer), *notes)


def token_pieces(row: dict[str, Any], tokenizer: Any) -> list[tuple[str, str]]:
    """The text of runs of tokens of one kind, each with its style."""
    special = Encoder(tokenizer).special
    tokens = zip(row["input_ids"], row["assistant_mask"], strict=True)
    pieces = []
    for style, run in groupby(tokens, lambda token: style_of(token[0] in special, bool(token[1]))):
        ids = [token for token, _ in run]
        pieces.append((tokenizer.decode(ids, clean_up_tokenization_spaces=False), style))
    return pieces


def style_of(is_special: bool, is_learned: bool) -> str:
    if is_special:
        return LEARNED_SPECIAL if is_learned else SPECIAL
    return LEARNED if is_learned else PLAIN
