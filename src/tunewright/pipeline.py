"""The main job: data → render → plan → train → merge → export → verify → evaluate → report.

Each stage is a function from its section of the recipe and the artifacts of earlier stages to new artifacts and
evidence. A stage whose manifest was made from the same inputs is not run again; evidence that failed stops the run
after its stage has been published, so that the same command with `--accept NAME` goes on from there.
"""

import importlib
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tunewright.artifacts import Manifest, RunDirectory, StageResult, sha256_of_json, write_text
from tunewright.errors import UsageError
from tunewright.events import Events
from tunewright.evidence import Evidence, validate_gates
from tunewright.parallel import launched_processes
from tunewright.recipe import (
    DataKeys,
    EvaluateKeys,
    ExportKeys,
    MergeKeys,
    PlanKeys,
    Recipe,
    RenderKeys,
    ReportKeys,
    Section,
    TrainKeys,
    VerifyKeys,
)


class StageModule(Protocol):
    """What `tunewright.STAGE.stage` offers."""

    def inputs(self, config: Any) -> dict[str, str]:
        """The hash of everything outside the run directory that the stage reads."""

    def run(self, config: Any, run: RunDirectory, out: Any, events: Events) -> StageResult:
        """Read finished artifacts from `run`, write new ones into `out`, and say what was measured."""


@dataclass(frozen=True)
class Stage:
    """One step of the run.

    Attributes:
        name: also the name of its package.
        keys: the section of the recipe that it sees.
        needs: the stages whose artifacts it reads.
        reads_manifests: whether it reads their evidence and durations too, not their files alone.
        version: raised when the stage would write something else from the same inputs.
    """

    name: str
    keys: type[Section]
    needs: tuple[str, ...] = ()
    reads_manifests: bool = False
    version: int = 1

    @property
    def module(self) -> StageModule:
        return importlib.import_module(f"tunewright.{self.name}.stage")


BEFORE_REPORT = ("data", "render", "plan", "train", "merge", "export", "verify", "evaluate")
STAGES = (
    Stage("data", DataKeys, version=2),
    Stage("render", RenderKeys, needs=("data",), version=3),
    Stage("plan", PlanKeys, needs=("render",)),
    Stage("train", TrainKeys, needs=("data", "render", "plan"), version=2),
    Stage("merge", MergeKeys, needs=("render", "train"), version=2),
    Stage("export", ExportKeys, needs=("render", "merge"), version=3),
    Stage("verify", VerifyKeys, needs=("render", "train", "merge", "export"), version=3),
    Stage("evaluate", EvaluateKeys, needs=("data", "render", "merge", "export"), version=2),
    Stage("report", ReportKeys, needs=BEFORE_REPORT, reads_manifests=True, version=2),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)
GATE_AFTER = "gate after {}"


def run_pipeline(recipe: Recipe, run: RunDirectory, events: Events, until: str = "report") -> dict[str, Manifest]:
    """Run every stage up to `until` that is not done yet, in the run directory that the caller has locked.

    Returns:
        The manifest of each stage, by name.

    Raises:
        GateError: evidence failed and is not in `recipe.accept`.
        TunewrightError: whatever a stage could not do.
    """
    if until not in STAGE_NAMES:
        raise UsageError("--until", f"unknown stage {until!r}", expected=" | ".join(STAGE_NAMES))
    write_text(run / "recipe.yaml", recipe.as_yaml())
    manifests: dict[str, Manifest] = {}
    for stage in STAGES:
        manifests[stage.name] = finish_stage(stage, recipe, run, manifests, events)
        validate_gates(manifests[stage.name].evidence, frozenset(recipe.accept), GATE_AFTER.format(stage.name))
        if stage.name == until:
            break
    if launched_processes() > 1:
        from tunewright.train.ranks import END, open_ranks

        open_ranks().tell(END)
    return manifests


def follow_pipeline(recipe: Recipe, run: RunDirectory) -> None:
    """What every process but the first of several does: train beside it, whenever it trains."""
    from tunewright.train.ranks import END, open_ranks
    from tunewright.train.stage import train_beside

    ranks = open_ranks()
    while ranks.tell() != END:
        train_beside(recipe.section(TrainKeys), run, ranks)


def finish_stage(
    stage: Stage, recipe: Recipe, run: RunDirectory, done: dict[str, Manifest], events: Events
) -> Manifest:
    """The stage's manifest, running the stage if it is not done yet."""
    events.stage = stage.name
    config = recipe.section(stage.keys)
    fingerprint = fingerprint_of(stage, config, done)
    if run.is_done(stage.name, fingerprint):
        events.emit("stage_skipped")
        return run.require_manifest(stage.name)
    events.emit("stage_started")
    started = time.monotonic()
    with run.staging(stage.name) as out:
        result = stage.module.run(config, run, out, events)
        seconds = round(time.monotonic() - started, 1)
        facts = {**result.facts, "seconds": seconds}
        manifest = run.publish(stage.name, out, fingerprint, result.evidence, facts)
    report_evidence(result.evidence, events)
    events.emit("stage_finished", seconds=seconds)
    return manifest


def fingerprint_of(stage: Stage, config: Section, done: dict[str, Manifest]) -> str:
    """SHA-256 of everything that the stage's artifacts depend on."""
    return sha256_of_json(
        {
            "stage": stage.name,
            "version": stage.version,
            "config": config.determining(),
            "inputs": stage.module.inputs(config),
            "needs": {
                name: sha256_of_json(asdict(done[name])) if stage.reads_manifests else done[name].digest
                for name in stage.needs
            },
        }
    )


def report_evidence(evidence: list[Evidence], events: Events) -> None:
    for item in evidence:
        events.evidence(item)


def all_evidence(manifests: dict[str, Manifest]) -> list[dict[str, Any]]:
    """Every piece of evidence with the stage that measured it, in the order of the stages."""
    return [{"stage": name, **asdict(item)} for name, manifest in manifests.items() for item in manifest.evidence]
