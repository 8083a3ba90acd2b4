"""Evaluate: base, tuned and exported model on the rows that training never saw.

In: `data/`, `tokens/`, `merged/`, `export/*.gguf` and the base. Out: `evaluate/results.json` (metrics with intervals,
answers side by side) and `evaluate/answers.jsonl` (everything about each row).
Always: all engines answer the same rows, greedily; the same run gives the same rows, scores and intervals.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.artifacts import RunDirectory, StageResult, read_json, write_json, write_text
from tunewright.chat.conversation import Conversation
from tunewright.chat.files import read_conversations
from tunewright.chat.rows import TokenRow, TokenRows
from tunewright.chat.trained import trained_template
from tunewright.engines.interface import Engine
from tunewright.evaluate.answers import AnswerLimits, Engines, answer_with_all
from tunewright.evaluate.checks import check_no_rows, check_results
from tunewright.evaluate.metrics import describe_task
from tunewright.evaluate.questions import Question, question_of, target_of
from tunewright.evaluate.results import BASE, TUNED, Results, empty_results, measure
from tunewright.events import Events
from tunewright.models.base import find_base
from tunewright.recipe import EvaluateKeys

SHORTEST_LIMIT = 16
CONTEXT_STEP = 256


def inputs(config: EvaluateKeys) -> dict[str, str]:
    return {"base": find_base(config).identity}


def run(config: EvaluateKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    held_out = HeldOut.read(run)
    rows = choose_rows(held_out.rows, config.evaluate_rows, config.seed)
    if not rows:
        write_json(out / "evaluate" / "results.json", empty_results())
        write_text(out / "evaluate" / "answers.jsonl", "")
        return StageResult([check_no_rows(held_out.left_out, config.evaluate_rows)], {"rows": 0})
    limits = answer_limits(config, run, rows, held_out)
    context = context_tokens(rows, held_out, limits.max_new_tokens)
    questions = ask(config, run, rows, held_out)
    return evaluate(config, run, questions, limits, held_out.left_out, open_engines(config, run, context), out, events)


def evaluate(
    config: EvaluateKeys,
    run: RunDirectory,
    questions: Sequence[Question],
    limits: AnswerLimits,
    left_out: int,
    engines: Engines,
    out: Path,
    events: Events,
) -> StageResult:
    """Let every engine answer `questions`, score the answers, and write both files below `out`."""
    answers = answer_with_all(engines, questions, limits, events)
    held_out_targets = [question.target for question in questions]
    task = describe_task([*targets_of(run / "data" / "train.jsonl"), *held_out_targets], held_out_targets)
    results = measure(questions, answers, task, limits.max_new_tokens, config.seed)
    write_results(out / "evaluate", results)
    return StageResult(check_results(results, left_out), facts_of(results))


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows that can be asked.

    Attributes:
        rows: those whose last turn is an answer with proven tokens.
        tokens: their tokens, by conversation id.
        left_out: how many other held-out rows there are.
        context: the longest text that the base can read, in tokens.
    """

    rows: list[Conversation]
    tokens: dict[str, TokenRow]
    left_out: int
    context: int

    @classmethod
    def read(cls, run: RunDirectory) -> "HeldOut":
        rows = list(read_conversations(run / "data" / "eval.jsonl"))
        index = read_json(run / "tokens" / "index.json")["eval"]
        by_row = dict(zip(index, TokenRows(run / "tokens" / "eval.safetensors"), strict=True))
        tokens = {row.id: found for row in rows if (found := answer_tokens(row, by_row)) is not None}
        asked = [row for row in rows if row.id in tokens]
        context = int(read_json(run / "tokens" / "lengths.json")["context"])
        return cls(asked, tokens, len(rows) - len(asked), context)


def answer_tokens(row: Conversation, by_row: dict[str, TokenRow]) -> TokenRow | None:
    """The token row that ends with the conversation's last turn; None if that turn was not learnable or was cut off.

    A conversation whose turns cannot share one rendering has a token row for each turn, `ID#MESSAGE`.
    """
    last = row.messages[-1]
    found = by_row.get(row.id) or by_row.get(f"{row.id}#{len(row.messages) - 1}")
    if found is None or last.role != "assistant" or not last.train:
        return None
    return found if target_length(found) else None


def target_length(row: TokenRow) -> int:
    """Supervised tokens of the row's last turn, with its end-of-turn token."""
    return int(row.mask[row.prompt_length :].sum())


def choose_rows(rows: Sequence[Conversation], limit: int, seed: int) -> list[Conversation]:
    """All rows, or `limit` of them drawn with `seed`, in their order."""
    if len(rows) <= limit:
        return list(rows)
    chosen = np.random.default_rng(seed).choice(len(rows), size=limit, replace=False)
    return [rows[index] for index in sorted(chosen.tolist())]


def answer_limits(
    config: EvaluateKeys, run: RunDirectory, rows: Sequence[Conversation], held_out: HeldOut
) -> AnswerLimits:
    """The recipe's `max_new_tokens`, or 1.5 times the longest target; never more than the base's context leaves."""
    wanted = config.max_new_tokens or default_max_new_tokens(
        [*held_out.tokens.values(), *TokenRows(run / "tokens" / "train.safetensors")]
    )
    room = held_out.context - longest_prompt(rows, held_out)
    stop_ids = frozenset(read_json(run / "tokens" / "template.json")["stop_ids"])
    return AnswerLimits(max(1, min(wanted, room)), stop_ids, config.evaluate_batch_size)


def default_max_new_tokens(rows: Iterable[TokenRow]) -> int:
    longest = max(map(target_length, rows))
    return max(SHORTEST_LIMIT, (3 * longest + 1) // 2)


def longest_prompt(rows: Sequence[Conversation], held_out: HeldOut) -> int:
    return max(held_out.tokens[row.id].prompt_length for row in rows)


def context_tokens(rows: Sequence[Conversation], held_out: HeldOut, max_new_tokens: int) -> int:
    """The context that llama.cpp needs for the longest prompt and answer, rounded up."""
    needed = longest_prompt(rows, held_out) + max_new_tokens + 1
    return -(-needed // CONTEXT_STEP) * CONTEXT_STEP


def ask(config: EvaluateKeys, run: RunDirectory, rows: Sequence[Conversation], held_out: HeldOut) -> list[Question]:
    """The questions of `rows`, in the setting in which each is proven."""
    from tunewright.engines.hf import open_supervisor

    base = find_base(config)
    supervisor = open_supervisor(base.path, base.name, trained_template(run))
    return [question_of(row, held_out.tokens[row.id], supervisor) for row in rows]


def open_engines(config: EvaluateKeys, run: RunDirectory, context: int) -> Engines:
    """How to open each engine: base and merged through Hugging Face, each GGUF file through llama.cpp."""
    from tunewright.engines.hf import open_hf_engine

    base, batch_size = find_base(config).path, config.evaluate_batch_size

    def open_gguf(path: Path, label: str) -> Engine:
        from tunewright.engines.llama_cpp import LlamaCppEngine

        return LlamaCppEngine(path, f"{label}, llama.cpp", context)

    return {
        BASE: lambda: open_hf_engine(base, "base, Hugging Face", batch_size, template=trained_template(run)),
        TUNED: lambda: open_hf_engine(run / "merged", "merged, Hugging Face", batch_size),
        **{label: partial(open_gguf, path, label) for label, path in run.gguf_files.items()},
    }


def targets_of(path: Path) -> list[str]:
    """The last turn of each conversation that ends with the assistant's."""
    return [target_of(row) for row in read_conversations(path) if row.messages[-1].role == "assistant"]


def write_results(directory: Path, results: Results) -> None:
    write_json(directory / "results.json", results.as_json())
    lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in results.answers_as_json()]
    write_text(directory / "answers.jsonl", "".join(lines))


def facts_of(results: Results) -> dict[str, Any]:
    headline = results.task.headline
    return {
        "rows": len(results.rows),
        "kind": results.task.kind,
        "headline": headline,
        "headline_scores": {label: results.interval(headline, label).as_json() for label in results.labels},
        "headline_losses": {
            label: results.difference(headline, label, TUNED).as_json()
            for label in results.labels
            if label not in (BASE, TUNED)
        },
        "max_new_tokens": results.max_new_tokens,
    }
