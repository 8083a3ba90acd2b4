"""What the commands share: the run directory that they hold, the events that they show, the stages that they do.

What takes time to import is imported where it is needed.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tunewright.errors import GateError

if TYPE_CHECKING:
    from tunewright.artifacts import RunDirectory
    from tunewright.evidence import Evidence


class State:
    """What the error handler has to know of the command that ran."""

    as_json = False


def run_until(
    stage: str,
    target: str,
    model: str | None = None,
    override: list[str] | None = None,
    run_dir: Path | None = None,
    accept: list[str] | None = None,
    on_bad_row: str | None = None,
    as_json: bool = False,
    again: bool = False,
    looks_only: bool = False,
) -> None:
    """Run the pipeline up to `stage` and print what came of it; `looks_only` leaves no run behind where none was."""
    from tunewright.artifacts import RunDirectory
    from tunewright.parallel import launched_first
    from tunewright.pipeline import follow_pipeline, run_pipeline
    from tunewright.targets import recipe_for, run_path
    from tunewright.terminal import print_outcome

    State.as_json = as_json
    recipe = recipe_for([target], overrides_of(override, model=model, accept=accept, on_bad_row=on_bad_row))
    if not launched_first():
        follow_pipeline(recipe, RunDirectory(run_dir or run_path(target, recipe)))
        return
    with run_directory(run_dir, run_path(target, recipe), looks_only) as run:
        if again:
            run.manifest_path(stage).unlink(missing_ok=True)
        with listening(as_json, run) as listener:
            manifests = run_pipeline(recipe, run, listener, until=stage)
        print_outcome(run, stage, manifests, as_json)


def plan_run(
    target: str,
    model: str | None,
    override: list[str] | None,
    run_dir: Path | None,
    gpu: str | None,
    accept: list[str] | None,
    on_bad_row: str | None,
    as_json: bool,
    again: bool,
) -> "tuple[dict[str, Any], list[Evidence]]":
    """The plan of a run on this machine, which is kept if there is a run, or on a card of `gpu`, which is not."""
    from tunewright.artifacts import read_json
    from tunewright.pipeline import GATE_AFTER, run_pipeline
    from tunewright.plan.stage import bytes_of, plan_for
    from tunewright.recipe import PlanKeys
    from tunewright.targets import recipe_for, run_path

    State.as_json = as_json
    recipe = recipe_for([target], overrides_of(override, model=model, accept=accept, on_bad_row=on_bad_row))
    card_bytes = bytes_of(gpu, "--gpu") if gpu else None
    with run_directory(run_dir, run_path(target, recipe), looks_only=True) as run:
        if again:
            run.manifest_path("plan").unlink(missing_ok=True)
        with listening(as_json, run, quiet_evidence=True) as listener:
            if card_bytes is not None:
                run_pipeline(recipe, run, listener, until="render")
                result = plan_for(recipe.section(PlanKeys), run, listener, "cuda", card_bytes)
                return result.facts, result.evidence
            try:
                run_pipeline(recipe, run, listener, until="plan")
            except GateError as error:
                if error.where != GATE_AFTER.format("plan"):
                    raise
        return read_json(run / "plan.json"), run.require_manifest("plan").evidence


def overrides_of(override: list[str] | None, **given: Any) -> dict[str, Any]:
    """Recipe keys from the command line: those of `-o`, and over them the options that were given."""
    from tunewright.recipe import parse_override

    return dict(parse_override(text) for text in override or []) | {key: value for key, value in given.items() if value}


@contextmanager
def run_directory(chosen: Path | None, default: Path, looks_only: bool) -> "Iterator[RunDirectory]":
    """The run directory, held for this process; a scratch one for a look at data that has no run yet."""
    from tunewright.artifacts import RunDirectory

    path = chosen or default
    if looks_only and chosen is None and not path.exists():
        with tempfile.TemporaryDirectory(prefix="tunewright-") as scratch:
            yield RunDirectory(Path(scratch))
        return
    run = RunDirectory(path)
    with run.locked():
        yield run


@contextmanager
def kept_run(path: Path | None) -> "Iterator[RunDirectory | None]":
    """The run directory to leave behind, held for this process, if one was named."""
    from tunewright.artifacts import RunDirectory

    if path is None:
        yield None
        return
    run = RunDirectory(path)
    with run.locked():
        yield run


@contextmanager
def listening(as_json: bool, run: "RunDirectory | None" = None, quiet_evidence: bool = False) -> Iterator[Any]:
    """Events that are shown in the terminal, and kept in the run if there is one."""
    from tunewright.events import Events
    from tunewright.terminal import Terminal

    State.as_json = as_json
    terminal = Terminal(quiet_evidence)
    try:
        yield Events(run.events_path if run else None, (terminal,))
    finally:
        terminal.close()


def report_verdict(evidence: "list[Evidence]", as_json: bool) -> None:
    """Print what a verification found, with its verdict and cause; leave with 3 if anything failed."""
    from tunewright.evidence import as_verdict
    from tunewright.terminal import print_json

    if not as_json:
        report_evidence({"verify": evidence}, as_json)
        return
    found = as_verdict(evidence)
    print_json(found)
    if found["verdict"] == "fail":
        raise typer.Exit(3)


def report_evidence(evidence: dict[str, Any], as_json: bool, failure_code: int = 3) -> None:
    """Print evidence by stage; leave with `failure_code` if any failed."""
    from tunewright.terminal import print_evidence, print_json

    if as_json:
        print_json({stage: [item.as_json() for item in items] for stage, items in evidence.items()})
    else:
        print_evidence(evidence)
    if any(item.verdict == "fail" for items in evidence.values() for item in items):
        raise typer.Exit(failure_code)
