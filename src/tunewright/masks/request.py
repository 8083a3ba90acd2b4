"""What a look at masks was asked for, as the job that does it."""

from pathlib import Path

from tunewright.data.read import plan_sources
from tunewright.data.stage import validate_config
from tunewright.errors import UsageError
from tunewright.masks.work import Job
from tunewright.models.base import find_base
from tunewright.recipe import DataKeys, Recipe, RenderKeys


def job_for(recipe: Recipe, tokenizer: Path | None, template: str | None) -> Job:
    """The rows of a recipe with its base, or with the tokenizer of a directory.

    Raises:
        UsageError: a file or the directory is missing.
        ModelNotFoundError: the base is not to be had.
    """
    config = recipe.section(DataKeys)
    validate_config(config)
    sources = tuple(plan_sources(config.data, config.eval_data))
    template = template or recipe.chat_template
    if tokenizer is None:
        base = find_base(recipe.section(RenderKeys))
        return Job(config, sources, base.path, base.name, template)
    if not (tokenizer / "tokenizer.json").is_file():
        expected = "a directory with a tokenizer.json"
        raise UsageError(f"--tokenizer {tokenizer}", "there is no tokenizer in it", expected, "Check the path.")
    return Job(config, sources, tokenizer, str(tokenizer), template)
