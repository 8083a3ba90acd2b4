"""A check for the data page, as a process: the same look at rows as `tunewright check`, with the pieces of its page.

    python -m tunewright.web.check_process RECIPE DIRECTORY

Writes `head.json`, `body.html` and `ledger.jsonl` into the directory, and its progress to `events.jsonl` there. On
stdout stands the outcome as JSON, or the error. Exit codes are those of the command line.
"""

import json
import sys
from pathlib import Path

from tunewright.artifacts import write_json, write_text
from tunewright.check.look import look, save_ledger
from tunewright.check.page import head_view, render_body
from tunewright.errors import GateError, TunewrightError, environment_error
from tunewright.events import Events
from tunewright.recipe import read_recipe


def check(recipe_path: Path, directory: Path) -> int:
    with look(read_recipe(recipe_path, {}), None, Events(directory / "events.jsonl")) as found:
        save_ledger(found, directory / "ledger.jsonl")
        write_text(directory / "body.html", render_body(found))
        write_json(directory / "head.json", head_view(found))
        sys.stdout.write(json.dumps(found.outcome.as_json(), ensure_ascii=False))
        return GateError.exit_code if found.outcome.failed else 0


def main(words: list[str]) -> int:
    recipe, directory = map(Path, words)
    try:
        return check(recipe, directory)
    except (TunewrightError, OSError) as error:
        problem = environment_error(error) if isinstance(error, OSError) else error
        sys.stdout.write(json.dumps(problem.as_json(), ensure_ascii=False))
        return problem.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
