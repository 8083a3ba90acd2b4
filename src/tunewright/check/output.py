"""Places to write to that cost nobody anything."""

from pathlib import Path

from tunewright.data.read import plan_sources
from tunewright.errors import UsageError
from tunewright.recipe import Recipe


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
