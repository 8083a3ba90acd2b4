"""A model for chats that takes milliseconds: it repeats what it was asked, the base in capitals, word by word.

    python fake_chat.py RUN_DIRECTORY

What is asked can say what to do: `slow` waits between words, `die` ends the process, `refuse` is an error in words.
"""

import json
import select
import sys
import time
from typing import Any


def say(words: dict[str, Any]) -> None:
    print(json.dumps(words), flush=True)  # noqa: T201


def answer(question: dict[str, Any]) -> None:
    asked = question["tuned"][-1]["content"]
    if asked == "die":
        sys.exit("out of breath")
    if asked == "refuse":
        say({"error": "RenderError", "where": "chat", "found": "the template refuses it", "expected": "", "mend": ""})
        return
    told = f"{len(question['tuned'])}: {asked}"
    for word in told.split():
        say({"pieces": {"base": word.upper() + " ", "tuned": word + " "}})
        time.sleep(0.2 if "slow" in asked else 0)
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    say({"over": True})


if __name__ == "__main__":
    say({"ready": True})
    while line := sys.stdin.readline():
        question = json.loads(line)
        if "tuned" in question:
            answer(question)
