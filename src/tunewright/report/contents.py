"""What a run holds, as far as it has got.

In goes a run directory, out come its JSON files. It always holds that only artifacts of finished stages are read, and
that one which is missing or damaged is an `ArtifactError` for the section that needs it, and for no other.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from tunewright.artifacts import Manifest, RunDirectory, read_json
from tunewright.certificate import Certificate
from tunewright.errors import ArtifactError


@dataclass(frozen=True)
class Contents:
    """A run and its certificate.

    Attributes:
        run: the run directory.
        certificate: as built, so that its hash can stand in the report.
        manifests: of the stages that have finished.
    """

    run: RunDirectory
    certificate: Certificate
    manifests: dict[str, Manifest]

    def manifest(self, stage: str) -> Manifest:
        if stage not in self.manifests:
            raise ArtifactError(str(self.run.path), f"the stage {stage!r} has not finished")
        return self.manifests[stage]

    def facts(self, stage: str) -> dict[str, Any]:
        """The facts of a stage, or nothing if it has not finished."""
        return self.manifests[stage].facts if stage in self.manifests else {}

    def json(self, stage: str, name: str) -> Any:
        """The JSON file `name` that `stage` wrote."""
        self.manifest(stage)
        return read_json(self.run / name)

    def lines(self, stage: str, name: str) -> Iterator[dict[str, Any]]:
        """The objects of a JSON Lines file that `stage` wrote."""
        self.manifest(stage)
        try:
            with (self.run / name).open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)
        except (OSError, ValueError) as error:
            raise ArtifactError(str(self.run / name), f"cannot be read ({error})") from None

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The run's recipe as it stands in the file; empty if there is none."""
        try:
            data = yaml.safe_load((self.run / "recipe.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return data if isinstance(data, dict) else {}
