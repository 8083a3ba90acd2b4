"""What the tests of the data stage share: files of rows, and the stage run on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, StageResult
from tunewright.data import stage
from tunewright.data.account import Account, account_for
from tunewright.data.read import plan_sources, read_rows
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.recipe import DataKeys


@dataclass
class Outcome:
    """What the stage left behind."""

    result: StageResult
    directory: Path

    @property
    def facts(self) -> dict[str, Any]:
        return self.result.facts

    def lines(self, name: str) -> list[dict[str, Any]]:
        with (self.directory / "data" / name).open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def evidence(self, name: str) -> Evidence:
        (item,) = [item for item in self.result.evidence if item.name == name]
        return item

    def rows_found_by(self, name: str) -> list[str]:
        audit = json.loads((self.directory / "data" / "audit.json").read_text(encoding="utf-8"))
        (check,) = [check for check in audit["checks"] if check["name"] == name]
        return [example["row"] for example in check["examples"]]


def run_data(directory: Path, paths: Sequence[Path], **keys: Any) -> Outcome:
    config = DataKeys(data=[str(path) for path in paths], **{"on_bad_row": "reject", **keys})
    out = directory / "out"
    return Outcome(stage.run(config, RunDirectory(directory), out, Events()), out)


def accounts_of(path: Path, **keys: Any) -> list[Account]:
    config = DataKeys(data=[str(path)], **keys)
    (source,) = plan_sources(config.data, [])
    return [account_for(row, config) for row in read_rows(source)]


def account_of(path: Path, row: Any, **keys: Any) -> Account:
    """The account of a single row, given as an object or as the text of its line."""
    path.write_text(row if isinstance(row, str) else json.dumps(row), encoding="utf-8")
    (account,) = accounts_of(path, **keys)
    return account


def pair(prompt: Any, completion: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


NOUNS = ("ferry", "bakery", "bridge", "tern", "library", "hall", "bell", "school", "bus", "band", "barn", "pool")
PLACES = ("Norby", "Elling", "Vester", "Lerey", "Skarup", "Oster")


def good_pairs(count: int) -> list[dict[str, Any]]:
    """Pairs, at most 72, in which no check finds anything but the lack of a system prompt."""
    places = [(noun, place) for noun in NOUNS for place in PLACES][:count]
    return [pair(f"{noun} {place}: what is new?", f"The {noun} of {place} has a new owner.") for noun, place in places]
