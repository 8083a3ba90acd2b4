"""Render: conversations in, token ids with proven masks out.

In: `data/train.jsonl`, `data/eval.jsonl`, `data/ledger.jsonl` and the base's tokenizer and chat template.
Out, below `tokens/`: `train.safetensors` and `eval.safetensors` (see `tunewright.chat.rows`), `index.json` with the
name of each of their rows, `ledger.jsonl` (the data stage's ledger with token counts and the fates that only tokens
decide), `lengths.json`, `template.json`, and a few rows cut into segments for people to look at.
Always: a row is in there only with its proof (see `tunewright.chat.supervise`); every input row has one ledger line and
the fates add up; what is written does not depend on how many processes worked. Rows pass through: memory does not grow
with their number.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, StageResult, sha256_of_json, write_json
from tunewright.chat.named import named_source
from tunewright.chat.rows import TokenRows
from tunewright.chat.supervise import Supervisor
from tunewright.chat.trained import pinned
from tunewright.errors import RenderError
from tunewright.events import Events
from tunewright.evidence import Evidence, equal
from tunewright.models.base import find_base
from tunewright.recipe import RenderKeys
from tunewright.render.artifacts import example_rows, write_lists
from tunewright.render.checks import (
    Limit,
    check_lengths,
    check_proof,
    check_system_prompts,
    check_template,
    describe_lengths,
)
from tunewright.render.ledger import continue_ledger
from tunewright.render.spool import SplitSpool
from tunewright.render.tally import Tally
from tunewright.render.template_facts import check_pinned, describe_template
from tunewright.render.work import Job, open_supervisor, open_workers, render_lines

SPLITS = ("train", "eval")
BLOCK_BYTES = 1 << 18


def inputs(config: RenderKeys) -> dict[str, str]:
    files = find_base(config).files
    named = named_source(config.chat_template) if config.chat_template else None
    return {
        "tokenizer": sha256_of_json({name: sha for name, sha in files.items() if not name.endswith(".safetensors")}),
        "chat_template": sha256_of_json(named),
    }


def run(config: RenderKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    """Render, prove and fit all conversations.

    Raises:
        RenderError: no row is left to train on, or the ledger does not balance.
    """
    base = find_base(config, events)
    limit = Limit(config.max_length, context_of(base.path))
    job = Job(base.path, config.model, limit.tokens, config.on_long_row, config.chat_template)
    data_facts = run.require_manifest("data").facts
    supervisor = open_supervisor(job)
    directory = out / "tokens"
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        splits = {split: SplitSpool(directory / f"{split}.safetensors", Path(scratch)) for split in SPLITS}
        render_all(run, splits, job, events.progress("rows", data_facts["train_rows"] + data_facts["eval_rows"]))
        validate_rows_left(splits["train"].tally, limit)
        tally = total(splits)
        template = pinned(supervisor.template, tally.settings.keys())
        same = check_pinned(supervisor, template, run / "data" / "train.jsonl")
        facts = describe_template(supervisor, template, tally.rows_longest, data_facts["shared_system_prompt"])
        write_json(directory / "template.json", facts)
        write_artifacts(directory, splits, supervisor, tally, limit)
        outcomes = {split: spool.outcomes() for split, spool in splits.items()}
        rows_in = data_facts["rows_in"]
        fates = continue_ledger(run / "data" / "ledger.jsonl", outcomes, directory / "ledger.jsonl", rows_in)
    balance = ", ".join(f"{count} {fate}" for fate, count in fates.items())
    return StageResult(
        [
            equal("rows_accounted_for", sum(fates.values()), rows_in, f"Of {rows_in} rows: {balance}."),
            tokenizer_evidence(base.path),
            *check_proof(tally),
            *check_template(supervisor.template, tally),
            *same,
            *check_lengths(tally, limit, config.on_long_row),
            *check_system_prompts(tally, limit),
        ],
        {**facts_of(splits), "fates": fates, "template_sha256": sha256_of_json(template.source)},
    )


def tokenizer_evidence(base: Path) -> Evidence:
    from tunewright.models.checkpoint_directory import check_merged_tokenizer

    return check_merged_tokenizer(base)


def render_all(run: RunDirectory, splits: dict[str, SplitSpool], job: Job, progress: Any) -> None:
    """Render the conversations of every split into its spool."""
    paths = {split: run / "data" / f"{split}.jsonl" for split in splits}
    with ExitStack() as stack:
        workers = stack.enter_context(open_workers(job, sum(path.stat().st_size for path in paths.values())))
        for split, spool in splits.items():
            with spool:
                for block in workers.map(render_lines, blocks_of(paths[split])):
                    spool.append(block)
                    progress.advance(len(block.outcomes))


def blocks_of(path: Path) -> Iterator[list[bytes]]:
    """The lines of a file in blocks."""
    with path.open("rb") as file:
        while lines := file.readlines(BLOCK_BYTES):
            yield lines


def total(splits: dict[str, SplitSpool]) -> Tally:
    tally = Tally()
    for spool in splits.values():
        tally.merge(spool.tally)
    return tally


def validate_rows_left(tally: Tally, limit: Limit) -> None:
    if tally.rows:
        return
    first = next((reasons[0] for reasons in tally.reasons.values()), "the data has none")
    longest, name = tally.longest
    mend = f"The longest row, {name}, has {longest} tokens; {limit.name}." if longest > limit.tokens else ""
    raise RenderError("train", f"no row is left to train on; the first reason was: {first}", mend=mend)


def context_of(path: Path) -> int:
    """The longest text that the base can read, in tokens."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    text_config = config.get("text_config", config)
    return int(text_config.get("max_position_embeddings") or 2048)


def write_artifacts(
    directory: Path, splits: dict[str, SplitSpool], supervisor: Supervisor, tally: Tally, limit: Limit
) -> None:
    train = splits["train"]
    write_lists(directory / "index.json", {split: spool.entries("names") for split, spool in splits.items()})
    lists = {split: spool.entries("lengths") for split, spool in splits.items()}
    write_lists(
        directory / "lengths.json",
        {**lists, "supervised": train.entries("supervised")},
        {
            "max_length": limit.max_length or tally.rows_longest,
            "max_length_from": "recipe" if limit.max_length else "longest row",
            "context": limit.context,
            "shared_prefix_tokens": train.shared_prefix_tokens,
            **describe_lengths(tally, limit),
        },
    )
    examples = example_rows(TokenRows(train.rows_path), train.entries("names"), supervisor.tokenizer)
    write_json(directory / "example_rows.json", examples)


def facts_of(splits: dict[str, SplitSpool]) -> dict[str, Any]:
    train = splits["train"]
    return {
        "rows": train.tally.rows,
        "eval_rows": splits["eval"].tally.rows,
        "supervised_tokens": train.tally.rows_supervised,
        "shared_prefix_tokens": train.shared_prefix_tokens,
    }
