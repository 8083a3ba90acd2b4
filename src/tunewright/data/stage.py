"""The data stage: files of rows to conversations, a ledger of every row, and an audit.

In: the files that the recipe names. Out: `data/train.jsonl`, `data/eval.jsonl`, `data/ledger.jsonl`, `data/audit.json`.
Always: every row that was read has one line in the ledger, and rows in = kept + repaired + rejected. A blank line is no
row and has no line in the ledger.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, StageResult, sha256_of_file, write_json
from tunewright.chat.conversation import Conversation
from tunewright.chat.files import write_conversations
from tunewright.data.audit.findings import Finding
from tunewright.data.audit.rows import AuditRow, Corpus
from tunewright.data.audit.run import audit_rows, validate_levels
from tunewright.data.ledger import (
    Account,
    account_for,
    count_rejections,
    count_repairs,
    validate_balance,
    validate_rows,
    validate_rows_left,
    write_ledger,
)
from tunewright.data.near import PromptIndex
from tunewright.data.read import plan_sources, read_rows
from tunewright.data.split import check_held_out_rows, plan_split, wanted_eval_rows
from tunewright.errors import RecipeError
from tunewright.events import Events
from tunewright.recipe import DataKeys


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
    accounts = read_accounts(config, events)
    if config.on_bad_row == "stop":
        validate_rows(accounts)
    for held_out in (False, True) if config.eval_data else (False,):
        validate_rows_left(accounts, held_out)
    corpus = plan_corpus(accounts, config)
    splits = {row.id: row.split for row in corpus.rows}
    findings = audit_rows(corpus, config.audit)
    facts = facts_of(accounts, corpus.rows, config)
    write_artifacts(out / "data", accounts, corpus.rows, splits, findings, facts)
    split_evidence = check_held_out_rows(facts["eval_rows"], config, len(corpus.rows))
    return StageResult([*(finding.evidence for finding in findings), split_evidence], facts)


def validate_config(config: DataKeys) -> None:
    validate_levels(config.audit)
    if config.system_prompt is not None and not config.system_prompt.strip():
        raise RecipeError("system_prompt", "found no text", mend="Leave the key out, or write a prompt.")
    if config.eval_data and config.eval_rows is not None:
        raise RecipeError("eval_rows", "set beside eval_data", "one of them", "Leave out the one that you do not mean.")
    if config.system_prompt is None and config.system_prompt_for == "all":
        raise RecipeError("system_prompt_for", "found 'all' without a system_prompt", mend="Set `system_prompt`.")


def read_accounts(config: DataKeys, events: Events) -> list[Account]:
    """The account of every row of every file, in order."""
    sources = plan_sources(config.data, config.eval_data)
    rows = [row for source in sources for row in read_rows(source)]
    progress = events.progress("rows", len(rows))
    accounts = []
    for row in rows:
        accounts.append(account_for(row, config))
        progress.advance()
    validate_balance(len(rows), accounts)
    return accounts


def plan_corpus(accounts: Sequence[Account], config: DataKeys) -> Corpus:
    """The rows that were not rejected, each on its side of the split."""
    usable = [account for account in accounts if account.conversation]
    conversations = [account.conversation for account in usable if account.conversation]
    prompts = PromptIndex([AuditRow(conversation, "").prompt for conversation in conversations])
    splits = plan_split(usable, prompts, wanted_eval_rows(config, len(usable)), config.seed)
    return Corpus([AuditRow(conversation, splits[conversation.id]) for conversation in conversations], prompts)


def facts_of(accounts: Sequence[Account], rows: Sequence[AuditRow], config: DataKeys) -> dict[str, Any]:
    fates = Counter(account.fate for account in accounts)
    systems = Counter(account.system_prompt for account in accounts if account.system_prompt)
    splits = Counter(row.split for row in rows)
    return {
        "rows_in": len(accounts),
        "kept": fates["kept"],
        "repaired": fates["repaired"],
        "rejected": fates["rejected"],
        "train_rows": splits["train"],
        "eval_rows": splits["eval"],
        "formats": dict(Counter(account.format for account in accounts).most_common()),
        "system_prompts": {name: systems[name] for name in ("row", "recipe", "none")},
        "shared_system_prompt": shared_system_prompt([row.conversation for row in rows]),
        "repairs": count_repairs(accounts),
        "rejections": count_rejections(accounts),
        "held_out_by": "eval_data" if config.eval_data else "split",
    }


def shared_system_prompt(conversations: Sequence[Conversation]) -> str | None:
    """The system prompt that every conversation has; None if they differ or one has none."""
    systems = {conversation.system for conversation in conversations}
    return systems.pop() if len(systems) == 1 else None


def write_artifacts(
    directory: Path,
    accounts: Sequence[Account],
    rows: Sequence[AuditRow],
    splits: dict[str, str],
    findings: Sequence[Finding],
    facts: dict[str, Any],
) -> None:
    directory.mkdir(parents=True)
    for split in ("train", "eval"):
        write_conversations(directory / f"{split}.jsonl", (row.conversation for row in rows if row.split == split))
    write_ledger(directory / "ledger.jsonl", accounts, splits)
    counts = ("rows_in", "kept", "repaired", "rejected", "train_rows", "eval_rows")
    audit = {"rows": {name: facts[name] for name in counts}, "checks": [finding.as_json() for finding in findings]}
    write_json(directory / "audit.json", audit)
