"""The preparation of a review, as a process: it may take long, and a file may be anything.

    python -m tunewright.web.review.process DIRECTORY

The directory is that of its look, whose recipe names the check and the file; beside it lies the check's own directory,
and one up lie the reviews. On stdout stands the id of the review as JSON, or the error.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tunewright.artifacts import read_json
from tunewright.data.read import Source, plan_sources
from tunewright.errors import TunewrightError, UsageError, environment_error
from tunewright.recipe import DataKeys, Recipe, read_recipe
from tunewright.web.review.rows import Facts, notes_of, prepare


def prepare_for(directory: Path) -> Facts:
    asked = read_json(directory / "look.json")["recipe"]
    check = directory.parent / asked["check"]
    recipe = read_recipe(check / "recipe.yaml", {})
    source = chosen(recipe, asked["file"])
    notes = notes_of(check / "ledger.jsonl", read_json(check / "result.json").get("evidence", []), source.label)
    config = DataKeys(columns=recipe.columns, roles=recipe.roles)
    return prepare(source, config, notes, directory.parents[1] / "reviews")


def chosen(recipe: Recipe, label: str) -> Source:
    """The file of a recipe that has this label; the only one if it is empty."""
    sources = plan_sources(recipe.data, recipe.eval_data)
    found = [source for source in sources if label in {"", source.label}]
    if len(found) != 1:
        names = ", ".join(source.label for source in sources[:10])
        raise UsageError("review", f"{label!r} names {len(found)} files", f"one of {names}")
    return found[0]


def main(words: list[str]) -> int:
    said: dict[str, Any]
    try:
        facts = prepare_for(Path(words[0]))
        code, said = 0, {"review": facts.id, "rows": facts.rows}
    except (TunewrightError, OSError) as error:
        problem = environment_error(error) if isinstance(error, OSError) else error
        code, said = problem.exit_code, problem.as_json()
    sys.stdout.write(json.dumps(said, ensure_ascii=False))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
