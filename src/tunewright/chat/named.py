"""Chat templates for bases that have none: a few well-documented ones by name, or a file.

Always: a template that asks for tokens of its own is given only to a tokenizer that has each of them as one token;
else the model would have to learn them from pieces.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from tunewright.errors import RecipeError, RenderError

FOLDER = files("tunewright.chat") / "templates"
# What stands in the first comment of a named template: tokens, or the tokenizer's names for them.
NEEDS = re.compile(r"needs: (.+?) -#\}")


def template_names() -> list[str]:
    return sorted(Path(file.name).stem for file in FOLDER.iterdir() if file.name.endswith(".jinja"))


def named_source(named: str) -> str:
    """The source of the template that the recipe names.

    Raises:
        RecipeError: it is neither one of the names nor a readable file.
    """
    if named in template_names():
        return (FOLDER / f"{named}.jinja").read_text(encoding="utf-8")
    try:
        return Path(named).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        found = f"found {named!r}, a file that cannot be read ({error.__class__.__name__})"
        raise RecipeError("chat_template", found, expected=f"{', '.join(template_names())}, or a file") from None


def validate_tokens(source: str, tokenizer: Any, where: str) -> None:
    """Raise `RenderError` where the tokenizer lacks a token that a named template says it needs."""
    needs = NEEDS.search(source)
    for name in needs[1].split() if needs else ():
        token = tokenizer.special_tokens_map.get(name) if name.endswith("_token") else name
        if token is None:
            found = f"the chat template needs {name}, which the tokenizer does not define"
        elif not is_one_token(tokenizer, str(token)):
            found = f"the chat template needs {token}, which is not one token of the tokenizer"
        else:
            continue
        raise RenderError(where, found, mend="Choose another chat_template, or a base whose tokenizer has the token.")


def is_one_token(tokenizer: Any, text: str) -> bool:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return bool(ids == [tokenizer.convert_tokens_to_ids(text)])
