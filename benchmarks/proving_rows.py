"""What proving a row costs beside the plain call that other trainers make: rendering and tokenizing it once.

usage: python benchmarks/proving_rows.py TOKENIZER_DIRECTORY [ROWS]

One process, rows of two kinds (one turn with a system prompt; three turns), 2,000 by default. The plain call is
`apply_chat_template(messages, tokenize=True)`; the best of three rounds counts on both sides.
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

WORDS = ["Die", "Stadt", "meldet", "am", "Abend", "neue", "Zahlen", "zum", "Haushalt", "und", "der", "Rat", "berät"]
ROUNDS = 3


def text(number: int, words: int) -> str:
    return " ".join(WORDS[(number * 7 + place * place) % len(WORDS)] for place in range(words)) + f" ({number})"


def one_turn(number: int) -> tuple[Message, ...]:
    system = Message("system", "Du fasst Nachrichten zusammen. Antworte in einem Satz.")
    return system, Message("user", text(number, 120)), Message("assistant", text(number + 1, 30))


def three_turns(number: int) -> tuple[Message, ...]:
    questions = [Message("user", text(number + turn, 40)) for turn in range(3)]
    answers = [Message("assistant", text(number + turn + 9, 20)) for turn in range(3)]
    return tuple(message for pair in zip(questions, answers, strict=True) for message in pair)


def seconds(work: Callable[[Any], object], items: list[Any]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for item in items:
            work(item)
        best = min(best, time.perf_counter() - start)
    return best


def main(directory: str, rows: int = 2000) -> None:
    tokenizer = load_tokenizer(Path(directory))
    template = chat_template_of(tokenizer, directory)
    plain = Supervisor(tokenizer, template, frozenset({tokenizer.eos_token_id}))
    supervisor = Supervisor(tokenizer, template, plain.stop_ids | end_of_turn_ids(plain.encoder, template))
    for kind in (one_turn, three_turns):
        conversations = [Conversation(str(number), kind(number)) for number in range(rows)]
        messages = [messages_for_template(each.messages) for each in conversations]
        called = seconds(lambda item: tokenizer.apply_chat_template(item, tokenize=True), messages)
        proven = seconds(supervisor.rows, conversations)
        tokens = sum(len(row.ids) for each in conversations for row in supervisor.rows(each)) / rows
        ratio = proven / called
        times = f"{called * 1e6 / rows:6.0f} µs  {proven * 1e6 / rows:6.0f} µs  {ratio:.2f} times"
        print(f"{kind.__name__:12} {tokens:6.0f} tokens  {times}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
