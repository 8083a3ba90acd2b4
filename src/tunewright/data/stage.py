"""The data stage: files of rows to conversations, a ledger of every row, and an audit.

In: what the recipe names. Out: `data/train.jsonl`, `data/eval.jsonl`, `data/ledger.jsonl`, `data/audit.json`.
Always: every row that was read has one line in the ledger, and rows in = kept + repaired + rejected. A blank line is no
row and has no line in the ledger. Rows pass through: memory does not grow with their texts, and every core is used.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, StageResult, sha256_of_file, write_json
from tunewright.data.audit.findings import Finding
from tunewright.data.audit.run import Tally, audit, merge, validate_levels
from tunewright.data.corpus import Corpus
from tunewright.data.ledger import Totals, validate_balance, validate_rows, validate_rows_left, write_ledger
from tunewright.data.prompts import index_prompts
from tunewright.data.read import Source, plan_sources, read_all_blocks
from tunewright.data.split import check_held_out_rows, split
from tunewright.data.spool import Spool
from tunewright.data.work import account_block, open_workers
from tunewright.errors import RecipeError
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.parallel import Workers
from tunewright.recipe import DataKeys

SYSTEM_PROMPTS = ("row", "recipe", "none")


def inputs(config: DataKeys) -> dict[str, str]:
    """The SHA-256 of each file of rows.

    Raises:
        UsageError: a file is missing or cannot be opened.
    """
    return {str(source.path): sha256_of_file(source.path) for source in plan_sources(config.data, config.eval_data)}


def run(config: DataKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    """Read, account for, split and audit all rows.

    Raises:
        UsageError: a file is missing, or the recipe asks for what makes no sense.
        DataError: a file cannot be split into rows, rows are rejected and `on_bad_row` is `stop`, or none is left.
    """
    validate_config(config)
    with examined(config, out.parent, events) as examination:
        write_artifacts(out / "data", examination)
        return StageResult(examination.evidence, examination.facts)


@dataclass(frozen=True)
class Examination:
    """What is known of the rows."""

    spool: Spool
    corpus: Corpus
    findings: list[Finding]
    evidence: list[Evidence]
    facts: dict[str, Any]


@contextmanager
def examined(config: DataKeys, scratch: Path, events: Events) -> Iterator[Examination]:
    """The rows, accounted for, split and audited. They wait below `scratch`, where nothing is left afterwards."""
    sources = plan_sources(config.data, config.eval_data)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=scratch) as directory, Spool(Path(directory)) as spool:
        with open_workers(config, sources) as workers:
            totals, tally = account_for_all(sources, spool, workers, events)
            validate_balance(totals, spool)
            if config.on_bad_row == "stop":
                validate_rows(totals)
            for held_out in (False, True) if config.eval_data else (False,):
                validate_rows_left(totals, held_out)
            corpus = index_prompts(spool, workers, events)
        corpus.hold_out(split(corpus, config))
        findings = audit(tally, corpus, config)
        facts = facts_of(totals, corpus, config)
        evidence = [finding.evidence for finding in findings]
        evidence.append(check_held_out_rows(facts["eval_rows"], config, corpus.size))
        yield Examination(spool, corpus, findings, evidence, facts)


def validate_config(config: DataKeys) -> None:
    validate_levels(config.audit)
    if config.system_prompt is not None and not config.system_prompt.strip():
        raise RecipeError("system_prompt", "found no text", mend="Leave the key out, or write a prompt.")
    if config.eval_data and config.eval_rows is not None:
        raise RecipeError("eval_rows", "set beside eval_data", "one of them", "Leave out the one that you do not mean.")
    if config.system_prompt is None and config.system_prompt_for == "all":
        raise RecipeError("system_prompt_for", "found 'all' without a system_prompt", mend="Set `system_prompt`.")


def account_for_all(sources: Sequence[Source], spool: Spool, workers: Workers, events: Events) -> tuple[Totals, Tally]:
    """Account for every row of every file, in order, into the spool."""
    sizes = [source.path.stat().st_size for source in sources]
    progress = events.progress("bytes", sum(sizes))
    totals, tally = Totals(), merge(())
    for block in workers.map(account_block, read_all_blocks(sources)):
        spool.append(block.ledger, block.conversations, block.columns)
        totals.merge(block.totals)
        tally = merge((tally, block.tally))
        progress.reach(sum(sizes[: block.source]) + min(block.reached, sizes[block.source]))
    progress.reach(sum(sizes))
    spool.flush()
    return totals, tally


def facts_of(totals: Totals, corpus: Corpus, config: DataKeys) -> dict[str, Any]:
    eval_rows = int(corpus.is_eval().sum())
    return {
        "rows_in": totals.rows_in,
        "kept": totals.fates["kept"],
        "repaired": totals.fates["repaired"],
        "rejected": totals.fates["rejected"],
        "train_rows": corpus.size - eval_rows,
        "eval_rows": eval_rows,
        "formats": dict(totals.formats.most_common()),
        "formats_by_file": {file: dict(found.most_common()) for file, found in totals.formats_by_file.items()},
        "system_prompts": {name: totals.systems[name] for name in SYSTEM_PROMPTS},
        "shared_system_prompt": shared_system_prompt(corpus),
        "repairs": dict(totals.repairs.most_common()),
        "rejections": dict(totals.rejections.most_common()),
        "ignored_keys": dict(totals.ignored.most_common()),
        "uncertain": {"rows": dict(totals.uncertain.most_common()), "as_understood": totals.as_understood},
        "held_out_by": "eval_data" if config.eval_data else "split",
    }


def shared_system_prompt(corpus: Corpus) -> str | None:
    """The system prompt that every conversation has; None if they differ or one has none."""
    _, count = corpus.most_frequent("system")
    return corpus.row(0).system if count == corpus.size else None


def write_artifacts(directory: Path, examination: Examination) -> None:
    directory.mkdir(parents=True)
    spool, is_eval, facts = examination.spool, examination.corpus.is_eval(), examination.facts
    spool.copy_conversations(~is_eval, directory / "train.jsonl")
    spool.copy_conversations(is_eval, directory / "eval.jsonl")
    write_ledger(directory / "ledger.jsonl", spool, is_eval)
    counts = ("rows_in", "kept", "repaired", "rejected", "train_rows", "eval_rows")
    checks = [finding.as_json() for finding in examination.findings]
    write_json(directory / "audit.json", {"rows": {name: facts[name] for name in counts}, "checks": checks})
