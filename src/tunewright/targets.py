"""What the words of a command line mean: the recipe behind its targets, and where their run is kept."""

from pathlib import Path
from typing import Any

from tunewright.errors import UsageError
from tunewright.recipe import Recipe, build_recipe, default_name, is_hub_data_set, read_recipe


def recipe_for(targets: list[str], overrides: dict[str, Any]) -> Recipe:
    """The recipe that the targets mean: a recipe's file, a run directory, or files, directories and hub data sets.

    Raises:
        UsageError: a target does not exist, or a recipe or a run stands beside other targets.
        RecipeError: a key is unknown or a value out of range.
    """
    recipes = [path for target in targets if (path := recipe_path(target))]
    if recipes and len(targets) > 1:
        mend = "Name its rows in the recipe, or check the files without it."
        raise UsageError(str(recipes[0]), "found beside other targets", "a recipe or a run alone", mend)
    if recipes:
        return read_recipe(recipes[0], overrides)
    data = {"name": default_name(Path(targets[0])), "data": [data_name(target) for target in targets]}
    return build_recipe({**data, **overrides}, targets[0])


def run_path(target: str, recipe: Recipe) -> Path:
    """The directory that a run is kept in where none is chosen: the target itself if it is one, else `runs/NAME`."""
    return Path(target).expanduser() if is_run(target) else Path("runs") / recipe.name


def recipe_path(target: str) -> Path | None:
    """The file of a recipe or of a run's recipe; None for rows."""
    path = Path(target).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        return path
    return path / "recipe.yaml" if is_run(target) else None


def is_run(target: str) -> bool:
    path = Path(target).expanduser()
    return path.is_dir() and (path / "recipe.yaml").is_file() and (path / "manifests").is_dir()


def data_name(target: str) -> str:
    """The full path of what stands on this machine; the name of a hub data set as it is."""
    path = Path(target).expanduser()
    if path.exists() or path.is_symlink():
        return str(path.resolve())
    if is_hub_data_set(target):
        return target
    raise UsageError(target, "the file does not exist", mend="Check the path.")
