"""What a check was asked for: the recipe behind its targets, and places to write to that cost nobody anything."""

from pathlib import Path
from typing import Any

from tunewright.data.read import plan_sources
from tunewright.errors import UsageError
from tunewright.recipe import Recipe, build_recipe, default_name, read_recipe


def recipe_for(targets: list[str], overrides: dict[str, Any]) -> Recipe:
    """The recipe that the targets mean: a recipe's file, a run directory, or files, directories and hub data sets.

    Raises:
        UsageError: a recipe or a run stands beside other targets.
        RecipeError: a key is unknown or a value out of range.
    """
    recipes = [path for target in targets if (path := recipe_path(target))]
    if recipes and len(targets) > 1:
        mend = "Name its rows in the recipe, or check the files without it."
        raise UsageError(str(recipes[0]), "found beside other targets", "a recipe or a run alone", mend)
    if recipes:
        return read_recipe(recipes[0], overrides)
    data = {"name": default_name(Path(targets[0])), "data": [absolute(target) for target in targets]}
    return build_recipe({**data, **overrides}, targets[0])


def recipe_path(target: str) -> Path | None:
    """The file of a recipe or of a run's recipe; None for rows."""
    path = Path(target).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        return path
    is_run = path.is_dir() and (path / "recipe.yaml").is_file() and (path / "manifests").is_dir()
    return path / "recipe.yaml" if is_run else None


def absolute(target: str) -> str:
    """The full path of what stands on this machine; any other name as it is, which may be that of a data set."""
    path = Path(target).expanduser()
    return str(path.resolve()) if path.exists() or path.is_symlink() else target


def validate_output(path: Path, option: str, recipe: Recipe) -> None:
    """Raise `UsageError` where a file at `path` would cover what is no file, or rows that are read."""
    if path.exists() and not path.is_file():
        found = "it is a directory" if path.is_dir() else "it is no plain file"
        raise UsageError(f"{option} {path}", found, "a file to write", "Name a file.")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise UsageError(f"{option} {path}", f"{parent} is no directory", "a file to write", "Name another place.")
    names = [name for name in (*recipe.data, *recipe.eval_data) if Path(name).exists()]
    if path.exists() and any(path.samefile(source.path) for source in plan_sources(names, [])):
        raise UsageError(f"{option} {path}", "these are the rows to be read", "another file", "Name another file.")
