"""From a recipe to a queued job."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.errors import UsageError
from tunewright.jobs.inbox import safe_name
from tunewright.jobs.job import Job
from tunewright.jobs.store import Store
from tunewright.recipe import Recipe, build_recipe, is_hub_data_set


def add_job(store: Store, recipe: Recipe, name: str | None = None, priority: int = 0, needs: Sequence[int] = ()) -> Job:
    """Queue a run of the recipe, in a directory of the store.

    Args:
        name: the name of the run; one that exists goes on from where it was. Default: the recipe's name, with a number
            behind it where there is such a run.
    """
    chosen = name or free_name(store, safe_name(recipe.name or "run"))
    return store.add(chosen, recipe.as_yaml(), store.root / chosen, priority=priority, needs=needs)


def add_export(store: Store, name: str, recipe: Recipe, gguf_format: str) -> Job:
    """Queue a run again with one more GGUF format; only what that changes is done.

    Args:
        recipe: the run's own.

    Raises:
        UsageError: the run has the format already.
        JobError: a job is at work on the run.
    """
    if gguf_format in recipe.export_formats:
        raise UsageError(f"run {name}", f"it has {gguf_format} already", "another format")
    wanted = recipe.model_copy(update={"export_formats": [*recipe.export_formats, gguf_format]})
    return store.add(name, wanted.as_yaml(), store.root / name, source=f"export of {gguf_format}")


def free_name(store: Store, name: str) -> str:
    """The name, or the first of `name-2`, `name-3`, ... that neither a run nor a job has."""
    taken = {job.run_dir.name for job in store.jobs()}
    number, free = 1, name
    while free in taken or (store.root / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free


def recipe_of_keys(keys: dict[str, Any]) -> Recipe:
    """A recipe from keys that came over the network; its data is named by absolute paths or is on the hub.

    Raises:
        RecipeError: a key is unknown or a value out of range.
        UsageError: a path is relative, or leads nowhere.
    """
    recipe = build_recipe(keys, "recipe")
    for path in [*recipe.data, *recipe.eval_data]:
        validate_data(path)
    return recipe


def validate_data(name: str) -> None:
    if "\0" in name:
        raise UsageError("data", "found a name with a zero byte in it", "a path")
    if Path(name).is_absolute():
        if not Path(name).exists():
            raise UsageError(name, "there is no such file on the machine of the service")
        if not Path(name).is_file() and not Path(name).is_dir():
            raise UsageError(name, "it is no regular file, but a pipe, a socket or a device", "a file or a directory")
    elif not is_hub_data_set(name):
        raise UsageError(name, "found a relative path", "an absolute one, or a data set of the hub")
