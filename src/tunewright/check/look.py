"""Look at rows: the data stage alone, or with a base the data and render stages.

In: a recipe. Out: what was found, with the files that it was found in, which are there until the context ends. A gate
that fails stops nothing here, so that everything is said at once. Where no run directory is given, the rows wait in a
temporary directory (`TMPDIR` says where) that is removed whatever happens.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tunewright.artifacts import Manifest, RunDirectory, read_json, write_text, written_whole
from tunewright.check.ledger import Told, first_rows, read_ledger
from tunewright.check.outcome import Fates, Judged, Lengths, NamedRow, Outcome, check_rejected_rows
from tunewright.data.ledger import write_ledger
from tunewright.data.stage import Examination, examined, validate_config
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.pipeline import STAGES, finish_stage
from tunewright.recipe import DataKeys, Recipe


class LedgerWriter(Protocol):
    def __call__(self, path: Path) -> object:
        """Write the ledger to `path`."""


@dataclass(frozen=True)
class Look:
    """What was found, and where more of it stands.

    Attributes:
        recipe: what was asked for.
        conversations: files with the usable rows, one conversation a line.
        write_ledger: writes one line for each input row.
        tokens: the directory that the render stage filled; None without a base.
    """

    recipe: Recipe
    outcome: Outcome
    conversations: tuple[Path, ...]
    write_ledger: LedgerWriter
    tokens: Path | None = None


def names_model(recipe: Recipe) -> bool:
    return "model" in recipe.model_fields_set


@contextmanager
def look(recipe: Recipe, run: RunDirectory | None, events: Events) -> Iterator[Look]:
    """Everything about the rows of a recipe; `run` is a run directory to leave behind, held by the caller.

    Raises:
        TunewrightError: whatever the stages could not do: a file cannot be read, or no row can be used.
    """
    with tempfile.TemporaryDirectory(prefix="tunewright-") as scratch:
        if run is not None or names_model(recipe):
            yield look_by_stages(recipe, run or RunDirectory(Path(scratch)), events)
            return
        config = recipe.section(DataKeys)
        validate_config(config)
        events.stage = "data"
        events.emit("stage_started")
        with examined(config, Path(scratch), events) as found:
            yield look_at_rows(recipe, found)


def look_at_rows(recipe: Recipe, found: Examination) -> Look:
    """What the data stage found, nothing of which is published."""
    facts, spool = found.facts, found.spool
    told = first_rows(spool.ledger_path, facts["repairs"], facts["rejections"])
    fates = Fates(facts["rows_in"], facts["kept"] + facts["repaired"], facts["repaired"], 0, facts["rejected"])
    examples = {item.evidence.name: item.as_json()["examples"] for item in found.findings}
    outcome = outcome_of(recipe, facts, told, fates, judged(found.evidence, examples))
    writer = partial(write_ledger, spool=spool, is_eval=found.corpus.is_eval())
    return Look(recipe, outcome, (spool.conversations_path,), writer)


def look_by_stages(recipe: Recipe, run: RunDirectory, events: Events) -> Look:
    """What the stages found, in a run directory."""
    manifests = run_stages(recipe, run, events)
    examples = {item["name"]: item["examples"] for item in read_json(run / "data" / "audit.json")["checks"]}
    facts = manifests["data"].facts
    evidence = judged(manifests["data"].evidence, examples)
    conversations = tuple(run / "data" / f"{split}.jsonl" for split in ("train", "eval"))
    tokens = run / "tokens" if "render" in manifests else None
    ledger = run / ("tokens" if tokens else "data") / "ledger.jsonl"
    told = read_ledger(ledger)
    lengths = None
    if tokens:
        lengths = read_json(tokens / "lengths.json")
        evidence += judged_by_tokens(manifests["render"].evidence, told, lengths)
    outcome = outcome_of(recipe, facts, told, told.counted(), evidence, lengths)
    return Look(recipe, outcome, conversations, partial(shutil.copyfile, ledger), tokens)


def run_stages(recipe: Recipe, run: RunDirectory, events: Events) -> dict[str, Manifest]:
    """The data stage, and where a base is named the render stage, as the pipeline runs them but without its gates."""
    write_text(run / "recipe.yaml", recipe.as_yaml())
    wanted = {"data", "render"} if names_model(recipe) else {"data"}
    manifests: dict[str, Manifest] = {}
    for stage in (stage for stage in STAGES if stage.name in wanted):
        manifests[stage.name] = finish_stage(stage, recipe, run, manifests, events)
    return manifests


def judged(evidence: Iterable[Evidence], examples: dict[str, list[dict[str, str]]]) -> list[Judged]:
    """Evidence with the rows that the audit names for it."""
    return [
        Judged(item, tuple(NamedRow.of(one["row"], one["excerpt"]) for one in examples.get(item.name, ())))
        for item in evidence
    ]


def judged_by_tokens(evidence: Iterable[Evidence], told: Told, lengths: dict[str, Any]) -> list[Judged]:
    """Evidence of the render stage with the rows that it speaks of."""
    rows = {
        "rows_over_max_length": [NamedRow.of(row) for row in lengths["over"]["examples"]],
        "system_prompt_share": [NamedRow.of(row) for row in lengths["system_prompt"]["examples"]],
        "truncated_rows": told.truncated,
        "rows_without_mask_proof": told.rejections.rows.get("no proof", ()),
        "rows_cut_before_their_answer": told.rejections.rows.get("nothing left to learn", ()),
    }
    return [Judged(item, tuple(rows.get(item.name, ()))) for item in evidence]


def outcome_of(
    recipe: Recipe,
    facts: dict[str, Any],
    told: Told,
    fates: Fates,
    evidence: list[Judged],
    lengths: dict[str, Any] | None = None,
) -> Outcome:
    """The outcome; of what only tokens decide the counts are those of the ledger."""
    repairs = told.repairs.kinds(None if lengths else facts["repairs"])
    rejections = told.rejections.kinds(None if lengths else facts["rejections"])
    return Outcome(
        facts,
        fates,
        repairs,
        rejections,
        (check_rejected_rows(fates, rejections, told.rejected), *evidence),
        frozenset(recipe.accept),
        lengths_of(lengths) if lengths else None,
    )


def lengths_of(data: dict[str, Any]) -> Lengths:
    return Lengths(
        [*data["train"], *data["eval"]],
        data["longest"]["tokens"],
        data["max_length"],
        data["max_length_from"],
        data["context"],
        data["over"],
    )


def save_ledger(found: Look, path: Path) -> None:
    """Write the ledger to `path`, whole or not at all."""
    with written_whole(path) as temporary:
        found.write_ledger(temporary)
