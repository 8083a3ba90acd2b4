"""Render: conversations in, token ids with proven masks out.

In: `data/train.jsonl`, `data/eval.jsonl`, `data/ledger.jsonl` and the base's tokenizer and chat template.
Out, below `tokens/`: `train.safetensors` and `eval.safetensors` (see `tunewright.chat.rows`), `ledger.jsonl` (the data
stage's ledger with token counts and the fates that only tokens decide), `lengths.json`, `template.json`, and a few rows
cut into segments for people to look at.
Always: a row is in there only with its proof (see `tunewright.chat.supervise`); no row is lost without a ledger line.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.artifacts import RunDirectory, StageResult, sha256_of_json, write_json
from tunewright.chat.conversation import Conversation, Message
from tunewright.chat.files import read_conversations
from tunewright.chat.rows import shared_prefix_length, write_rows
from tunewright.chat.supervise import SupervisedRow, Supervisor
from tunewright.chat.template import ChatTemplate, chat_template_of
from tunewright.errors import RenderError
from tunewright.events import Events
from tunewright.evidence import Evidence, equal, fact, failed
from tunewright.models.base import find_base, load_tokenizer, stop_token_ids
from tunewright.recipe import RenderKeys

EXAMPLE_ROWS = 5


def inputs(config: RenderKeys) -> dict[str, str]:
    files = find_base(config).files
    return {
        "tokenizer": sha256_of_json({name: sha for name, sha in files.items() if not name.endswith(".safetensors")})
    }


@dataclass
class Rendered:
    """What became of the rows of one split.

    Attributes:
        rows: the proven rows, in order.
        refused: the reason for each conversation without a proof, by id.
        lost_tokens: how many tokens were cut off each truncated row, by conversation id.
        too_long: length of each row left out for its length, by conversation id.
    """

    rows: list[SupervisedRow] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    lost_tokens: dict[str, int] = field(default_factory=dict)
    too_long: dict[str, int] = field(default_factory=dict)


def run(config: RenderKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    base = find_base(config, events)
    tokenizer = load_tokenizer(base.path)
    template = chat_template_of(tokenizer, config.model)
    stop_ids = stop_token_ids(base.path, tokenizer)
    supervisor = Supervisor(tokenizer, template, stop_ids)
    data_facts = run.require_manifest("data").facts
    total = data_facts["train_rows"] + data_facts["eval_rows"]
    progress = events.progress("rows", total)
    context = context_of(base.path)
    limit = config.max_length or context
    splits: dict[str, Rendered] = {}
    for split in ("train", "eval"):
        splits[split] = Rendered()
        for conversation in read_conversations(run / "data" / f"{split}.jsonl"):
            render_conversation(conversation, supervisor, limit, config.on_long_row, splits[split])
            progress.advance()
    if not splits["train"].rows:
        raise RenderError("train", f"no row is left to train on; {first_refusal(splits['train'])}")
    template_facts = describe_template(tokenizer, template, stop_ids, splits, data_facts)
    write_artifacts(out / "tokens", run, splits, tokenizer, template_facts, config.max_length, context)
    supervised = sum(int(row.mask.sum()) for row in splits["train"].rows)
    return StageResult(
        [*check_proof(splits), *check_lengths(splits, config, limit)],
        {
            "rows": len(splits["train"].rows),
            "eval_rows": len(splits["eval"].rows),
            "supervised_tokens": supervised,
            "template_sha256": sha256_of_json(template.source),
            "shared_prefix_tokens": shared_prefix_length(splits["train"].rows),
        },
    )


def render_conversation(
    conversation: Conversation, supervisor: Supervisor, limit: int, on_long_row: str, result: Rendered
) -> None:
    """Add the conversation's rows to `result`, or the reason why it has none."""
    try:
        rows = supervisor.rows(conversation)
    except RenderError as error:
        result.refused[conversation.id] = str(error)
        return
    longest = max(len(row.ids) for row in rows)
    if longest <= limit:
        result.rows.extend(rows)
    elif on_long_row == "truncate" and all(row.mask[:limit].any() for row in rows):
        result.lost_tokens[conversation.id] = sum(max(len(row.ids) - limit, 0) for row in rows)
        result.rows.extend(
            SupervisedRow(row.id, row.ids[:limit], row.mask[:limit], min(row.last_prompt_length, limit)) for row in rows
        )
    else:
        result.too_long[conversation.id] = longest


def first_refusal(result: Rendered) -> str:
    reasons = [*result.refused.values(), *(f"{name}: {count} tokens" for name, count in result.too_long.items())]
    return f"the first reason was: {reasons[0]}" if reasons else "the data has none"


def check_proof(splits: dict[str, Rendered]) -> list[Evidence]:
    refused = {name: reason for result in splits.values() for name, reason in result.refused.items()}
    rows = [row for result in splits.values() for row in result.rows]
    detail = (
        "Each row's prompt ids equal the ids that inference sends, and each supervised span is the assistant's own "
        "text with its end-of-turn token."
    )
    if refused:
        shown = " ".join(list(refused.values())[:3])
        detail = f"{len(refused)} rows have no proof and were left out: {shown}"
    supervised = sum(int(row.mask.sum()) for row in rows)
    tokens = sum(len(row.ids) for row in rows)
    return [
        equal("rows_without_mask_proof", len(refused), 0, detail),
        fact("rows_with_mask_proof", len(rows)),
        fact("supervised_token_share", round(supervised / tokens, 4), f"{supervised} of {tokens} tokens are learned."),
    ]


def check_lengths(splits: dict[str, Rendered], config: RenderKeys, limit: int) -> list[Evidence]:
    long = {name: count for result in splits.values() for name, count in result.too_long.items()}
    lost = {name: count for result in splits.values() for name, count in result.lost_tokens.items()}
    evidence = []
    if long:
        name, count = max(long.items(), key=lambda item: item[1])
        detail = (
            f"{len(long)} rows are longer than max_length = {limit} and were left out; the longest, {name}, has "
            f"{count} tokens. Raise max_length, or set on_long_row to reject or truncate."
        )
        gate = failed("rows_over_max_length", len(long), "= 0", detail)
        evidence.append(gate if config.on_long_row == "stop" else gate.softened())
    else:
        evidence.append(equal("rows_over_max_length", 0, 0, f"No row is longer than {limit} tokens."))
    if lost:
        detail = f"{sum(lost.values())} tokens were cut off the ends of {len(lost)} rows, with their end of turn."
        evidence.append(failed("truncated_rows", len(lost), "= 0", detail).softened())
    return evidence


def context_of(path: Path) -> int:
    """The longest text that the base can read, in tokens."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    text_config = config.get("text_config", config)
    return int(text_config.get("max_position_embeddings") or 2048)


def describe_template(
    tokenizer: Any,
    template: ChatTemplate,
    stop_ids: frozenset[int],
    splits: dict[str, Rendered],
    data_facts: dict[str, Any],
) -> dict[str, Any]:
    """What the served model needs to know of the prompt; kept in `tokens/template.json`."""
    stops = sorted(stop_ids)
    rows = [row for result in splits.values() for row in result.rows]
    return {
        "chat_template": template.source,
        "special_tokens": template.special_tokens,
        "stop_ids": stops,
        "stop_tokens": tokenizer.convert_ids_to_tokens(stops),
        "longest_row_tokens": max(len(row.ids) for row in rows),
        "shared_system_prompt": data_facts["shared_system_prompt"],
        "default_system_prompt": default_system_prompt(template),
    }


def default_system_prompt(template: ChatTemplate) -> str | None:
    """The system prompt that the template puts in by itself where a conversation has none, or None.

    Found by comparing the rendering without a system message with the one that has a marker as its system message:
    what stands in the marker's place is the default.
    """
    user = Message("user", "\u2402user\u2402")
    marker = "\u2401system\u2401"
    try:
        with_system = template.render([Message("system", marker), user])
        without = template.render([user])
    except RenderError:
        return None
    before, separator, after = with_system.partition(marker)
    if not separator or not without.startswith(before) or not without.endswith(after):
        return None
    middle = without[len(before) : len(without) - len(after)]
    return middle or None


def write_artifacts(
    tokens: Path,
    run: RunDirectory,
    splits: dict[str, Rendered],
    tokenizer: Any,
    template_facts: dict[str, Any],
    max_length: int | None,
    context: int,
) -> None:
    tokens.mkdir(parents=True)
    for split, result in splits.items():
        write_rows(tokens / f"{split}.safetensors", result.rows)
    write_json(tokens / "index.json", {split: [row.id for row in result.rows] for split, result in splits.items()})
    write_json(tokens / "template.json", template_facts)
    lengths = {split: [len(row.ids) for row in result.rows] for split, result in splits.items()}
    write_json(
        tokens / "lengths.json",
        {
            "max_length": max_length or template_facts["longest_row_tokens"],
            "max_length_from": "recipe" if max_length else "longest row",
            "context": context,
            **lengths,
            "supervised": [int(row.mask.sum()) for row in splits["train"].rows],
            "shared_prefix_tokens": shared_prefix_length(splits["train"].rows),
        },
    )
    examples = [example_row(row, tokenizer) for row in splits["train"].rows[:EXAMPLE_ROWS]]
    write_json(tokens / "example_rows.json", examples)
    with (tokens / "ledger.jsonl").open("w", encoding="utf-8") as file:
        for line in continued_ledger(run / "data" / "ledger.jsonl", splits):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def example_row(row: SupervisedRow, tokenizer: Any) -> dict[str, Any]:
    """A row as segments of text, each supervised or not."""
    changes = np.flatnonzero(np.diff(row.mask.astype(np.int8))) + 1
    bounds = [0, *changes.tolist(), len(row.ids)]
    segments = [
        {
            "text": tokenizer.decode(row.ids[start:end].tolist(), clean_up_tokenization_spaces=False),
            "supervised": bool(row.mask[start]),
        }
        for start, end in pairwise(bounds)
    ]
    return {"id": row.id, "segments": segments}


def continued_ledger(path: Path, splits: dict[str, Rendered]) -> Iterator[dict[str, Any]]:
    """The data stage's ledger with token counts, and with the fates that were decided here."""
    counts: dict[str, list[int]] = {}
    for result in splits.values():
        for row in result.rows:
            total = counts.setdefault(row.id.partition("#")[0], [0, 0])
            total[0] += len(row.ids)
            total[1] += int(row.mask.sum())
    with path.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            tokens, supervised = counts.get(line["row"], [None, None])
            line.update(tokens=tokens, supervised_tokens=supervised)
            if line["fate"] != "rejected":
                line.update(fate_by_tokens(line["row"], splits[line["split"]]))
            yield line


def fate_by_tokens(row: str, result: Rendered) -> dict[str, Any]:
    if row in result.refused:
        return {"fate": "rejected", "reason": result.refused[row]}
    if row in result.too_long:
        return {"fate": "rejected", "reason": f"{result.too_long[row]} tokens are more than max_length"}
    if row in result.lost_tokens:
        return {"fate": "truncated", "lost_tokens": result.lost_tokens[row]}
    return {}
