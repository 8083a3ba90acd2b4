"""What proving a row costs beside the plain call that other trainers make: rendering and tokenizing it once.

usage: python benchmarks/proving_rows.py TOKENIZER_DIRECTORY [ROWS] [PROCESSES]

Conversations of two kinds (one turn with a system prompt; three turns), 2,000 by default, in one process or several.
The plain call is `apply_chat_template(messages, tokenize=True)`. Where a template reads earlier turns differently once
later ones follow, three turns become three rows: then the plain side makes the three calls that give the same rows.
Both sides work through the same blocks in the same kind of processes; the best of three rounds counts.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunewright.chat.conversation import Conversation, Message, messages_for_template
from tunewright.chat.stops import end_of_turn_ids
from tunewright.chat.supervise import Supervisor
from tunewright.chat.template import chat_template_of
from tunewright.models.base import load_tokenizer
from tunewright.parallel import Workers

WORDS = ["Die", "Stadt", "meldet", "am", "Abend", "neue", "Zahlen", "zum", "Haushalt", "und", "der", "Rat", "berät"]
ROUNDS = 3
BLOCK = 100
PRELOAD = "transformers.models.auto.tokenization_auto"

_opened: list[tuple[Any, Supervisor]] = []


def text(number: int, words: int) -> str:
    return " ".join(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(words)) + f" ({number})"


def one_turn(number: int) -> tuple[Message, ...]:
    system = Message("system", "Du fasst Nachrichten zusammen. Antworte in einem Satz.")
    return system, Message("user", text(number, 120)), Message("assistant", text(number + 1, 30))


def three_turns(number: int) -> tuple[Message, ...]:
    questions = [Message("user", text(number + turn, 40)) for turn in range(3)]
    answers = [Message("assistant", text(number + turn + 9, 20)) for turn in range(3)]
    return tuple(message for pair in zip(questions, answers, strict=True) for message in pair)


def start(directory: str) -> None:
    tokenizer = load_tokenizer(Path(directory))
    template = chat_template_of(tokenizer, directory)
    plain = Supervisor(tokenizer, template, frozenset({tokenizer.eos_token_id}))
    stop_ids = plain.stop_ids | end_of_turn_ids(plain.encoder, template)
    _opened[:] = [(tokenizer, Supervisor(tokenizer, template, stop_ids))]


def call(block: list[list[dict[str, Any]]]) -> int:
    """Tokens of a block, by the plain call."""
    ((tokenizer, _),) = _opened
    return sum(len(tokenizer.apply_chat_template(each, tokenize=True)["input_ids"]) for each in block)


def prove(block: list[Conversation]) -> int:
    """Tokens of a block, proven."""
    ((_, supervisor),) = _opened
    return sum(len(row.ids) for each in block for row in supervisor.rows(each))


def calls_for(kind: Callable[[int], tuple[Message, ...]], rows_each: int, number: int) -> list[list[dict[str, Any]]]:
    """The messages of the plain calls that give a conversation's rows."""
    messages = messages_for_template(kind(number))
    return [messages[: len(messages) - 2 * later] for later in reversed(range(rows_each))]


def measure(workers: Workers, work: Callable[[Any], int], items: list[Any]) -> tuple[float, int]:
    """Seconds of the best round, and the tokens of one."""
    blocks = [items[first : first + BLOCK] for first in range(0, len(items), BLOCK)]
    best, tokens = float("inf"), 0
    for _ in range(ROUNDS):
        began = time.perf_counter()
        tokens = sum(workers.map(work, blocks))
        best = min(best, time.perf_counter() - began)
    return best, tokens


def main(directory: str, rows: int = 2000, processes: int = 1) -> None:
    start(directory)
    ((_, supervisor),) = _opened
    with Workers(processes if processes > 1 else 0, start, (directory,), PRELOAD) as workers:
        for kind in (one_turn, three_turns):
            conversations = [Conversation(str(number), kind(number)) for number in range(rows)]
            rows_each = len(supervisor.rows(conversations[0]))
            calls = [messages for number in range(rows) for messages in calls_for(kind, rows_each, number)]
            called, plain_tokens = measure(workers, call, calls)
            proven, tokens = measure(workers, prove, conversations)
            if plain_tokens != tokens:
                raise SystemExit(f"{kind.__name__}: plain calls give {plain_tokens} tokens, proven rows {tokens}")
            times = f"{called * 1e6 / rows:6.0f} µs  {proven * 1e6 / rows:6.0f} µs  {proven / called:.2f} times"
            print(f"{kind.__name__:12} {rows_each} row(s) of {tokens / rows / rows_each:4.0f} tokens  {times}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
