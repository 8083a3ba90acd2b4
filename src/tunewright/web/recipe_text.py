"""A recipe in its forms: keys of a form, YAML of a file, a command line. All three say the same."""

import json
import shlex
from typing import Any

import yaml

from tunewright.errors import RecipeError
from tunewright.recipe import Recipe

MOST_DEPTH = 10


def described(recipe: Recipe) -> dict[str, Any]:
    """The keys that were given, the same as YAML, and the command that runs it."""
    keys = recipe.model_dump(mode="json", include=recipe.model_fields_set)
    return {"recipe": keys, "yaml": as_yaml(keys), "command": command_line(keys)}


def as_yaml(keys: dict[str, Any]) -> str:
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=110)


def command_line(keys: dict[str, Any]) -> str:
    """`tunewright run ...`; with more than one file the recipe has to be one, too."""
    data = keys.get("data", [])
    if len(data) != 1:
        return "tunewright run recipe.yaml"
    words = ["tunewright", "run", data[0]]
    if "model" in keys:
        words += ["--model", keys["model"]]
    for key, value in keys.items():
        if key not in {"data", "model"}:
            words += ["-o", f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"]
    return shlex.join(words)


def keys_of_yaml(text: str) -> dict[str, Any]:
    """The mapping in a YAML text. References are refused: a short text can make endless data of them.

    Raises:
        RecipeError: it cannot be read, or is no mapping.
    """
    try:
        validate_plain(text)
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError("recipe", f"not valid YAML ({' '.join(str(error).split())[:300]})") from None
    if not isinstance(found, dict):
        raise RecipeError("recipe", f"found {type(found).__name__}", expected="a mapping of recipe keys to values")
    return {str(key): value for key, value in found.items()}


def validate_plain(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError("recipe", "found a YAML reference (`*name`)", "values written out")
        if depth > MOST_DEPTH:
            raise RecipeError("recipe", f"nested more than {MOST_DEPTH} deep", "a flat mapping")
