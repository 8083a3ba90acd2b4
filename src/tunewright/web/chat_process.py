"""The model behind a chat, as a process of its own: base and tuned of one run, loaded once, asked again and again.

    python -m tunewright.web.chat_process RUN_DIRECTORY

In: a line of JSON on stdin for each question, `{"base": [MESSAGE, ...], "tuned": [MESSAGE, ...]}`; any line that comes
while a question is answered ends that answer. Out: lines of JSON on stdout: `{"ready": true}` or an error first, then
for each question `{"pieces": {"base": "...", "tuned": "..."}}` and at its end `{"over": true}` or an error.
"""

import json
import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, read_json
from tunewright.chat.conversation import Message
from tunewright.chat.prompt import Prompt
from tunewright.chat.trained import trained_template
from tunewright.engines.hf import inference_dtype, open_supervisor
from tunewright.engines.side_by_side import SIDES, Side, SideBySide
from tunewright.errors import TunewrightError, environment_error
from tunewright.models.base import find_base, load_adapted, validate_same_base, whole_device
from tunewright.recipe import ModelKeys, read_recipe

ANSWER_TOKENS = 512


class Talker:
    """Answers the questions of one run."""

    def __init__(self, run: RunDirectory) -> None:
        run.require_manifest("train")
        base = find_base(read_recipe(run / "recipe.yaml", {}).section(ModelKeys))
        validate_same_base(base, read_json(run / "adapter" / "base.json")["files"])
        device = whole_device(base.path)
        model = load_adapted(base.path, run / "adapter", inference_dtype(device), device)
        self._sides = SideBySide(model, open_supervisor(base.path, base.name, trained_template(run)))
        system = read_json(run / "tokens" / "template.json")["shared_system_prompt"]
        self._system = (Message("system", system),) if system else ()

    def answer(self, question: dict[str, Any]) -> Iterator[dict[Side, str]]:
        prompts: dict[Side, Prompt] = {side: self._prompt(question[side]) for side in SIDES}
        return self._sides.answers(prompts, ANSWER_TOKENS)

    def _prompt(self, messages: list[dict[str, Any]]) -> Prompt:
        return Prompt((*self._system, *(Message(one["role"], one["content"]) for one in messages)))


def main(run: Path, say: Callable[[dict[str, Any]], None]) -> int:
    try:
        talker = Talker(RunDirectory(run))
    except (TunewrightError, OSError) as error:
        say(problem_of(error))
        return 1
    say({"ready": True})
    while line := sys.stdin.readline():
        question = json.loads(line)
        if "base" in question:
            answer(talker, question, say)
    return 0


def answer(talker: Talker, question: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    try:
        for pieces in talker.answer(question):
            say({"pieces": pieces})
            if select.select([sys.stdin], [], [], 0)[0]:
                break
    except (TunewrightError, OSError) as error:
        say(problem_of(error))
    else:
        say({"over": True})


def problem_of(error: TunewrightError | OSError) -> dict[str, Any]:
    return (environment_error(error) if isinstance(error, OSError) else error).as_json()


if __name__ == "__main__":
    # What a library prints goes to the log and not between the lines.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.exit(main(Path(sys.argv[1]), lambda words: print(json.dumps(words), file=lines, flush=True)))
