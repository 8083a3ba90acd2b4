"""How the rows stand to one another: duplicates, contradictions, leakage, and how many there are.

In: the columns of a corpus; a row's text is read only where it is shown, or compared for near leakage.
"""

from collections import defaultdict
from itertools import islice, takewhile

import numpy as np

from tunewright.data.audit.columns import (
    Corpus,
    find_first,
    first_other,
    groups_with_differences,
    labels,
    members,
    offenders,
    where,
)
from tunewright.data.audit.findings import (
    EXAMPLES_KEPT,
    EXCERPT_CHARACTERS,
    Example,
    Finding,
    Offenders,
    excerpt,
    finding_of,
)
from tunewright.data.groups import Indices, is_first, pieces
from tunewright.evidence import Evidence, Verdict
from tunewright.recipe import DataKeys

FEW_ROWS = 20
TOO_FEW_ROWS = 5
ROWS_PER_LABEL = 8
COMPARED_AT_MOST = 32
CONTEXT_CHARACTERS = 20


def check_duplicate_rows(corpus: Corpus, config: DataKeys) -> Finding:
    """Rows whose whole conversation stood before."""
    first = corpus.first_equal("messages")
    repeated = ~is_first(first)
    return finding_of(
        "duplicate_rows",
        offenders(corpus, repeated, lambda row: f"the same as {corpus.id(int(first[row]))}"),
        corpus.size,
        0,
        "warn",
        "say exactly what an earlier row says",
        "They count more than the others: leave them out unless that is meant.",
    )


def check_near_duplicate_prompts(corpus: Corpus, config: DataKeys) -> Finding:
    """Rows whose prompt is nearly, but not word for word, that of another."""
    clusters, prompts = corpus.clusters(), corpus.column("prompt")
    alike = members(clusters, groups_with_differences(clusters, prompts))

    def described(row: int) -> str:
        other = first_other(clusters, prompts, row)
        return f"like {corpus.id(row if other is None else other)}: {excerpt(corpus.row(row).prompt)}"

    return finding_of(
        "near_duplicate_prompts",
        offenders(corpus, alike, described),
        corpus.size,
        0,
        "warn",
        "have a prompt that is nearly that of another row",
        "They add little: keep the better one of each pair.",
    )


def check_conflicting_answers(corpus: Corpus, config: DataKeys) -> Finding:
    """Rows with the same system prompt and the same turns but different targets."""
    same, targets = corpus.first_equal("context"), corpus.column("target")
    conflicts = groups_with_differences(same, targets)

    def described(row: int) -> str:
        other = first_other(same, targets, row)
        conversation, another = corpus.row(row), corpus.row(row if other is None else other)
        return f"{excerpt(conversation.prompt)} is answered {from_difference(conversation.target, another.target)}"

    return finding_of(
        "conflicting_answers",
        offenders(corpus, members(same, conflicts), described),
        corpus.size,
        0,
        "warn",
        f"have a prompt that other rows answer differently (prompts: {np.count_nonzero(conflicts)})",
        "Keep one answer for each prompt, unless variety is meant.",
    )


def from_difference(text: str, other: str) -> str:
    """The beginning of a text, or if another begins so too, what stands where they part."""
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))
    return excerpt(text) if shared < EXCERPT_CHARACTERS else f"…{excerpt(text[shared - CONTEXT_CHARACTERS :])}"


def check_leakage(corpus: Corpus, config: DataKeys) -> Finding:
    """Held-out rows whose prompt, or nearly so, is trained on.

    A held-out row is compared with at most 32 different prompts of its cluster.
    """
    is_eval = corpus.is_eval()
    held_out = np.flatnonzero(is_eval)
    whole = _trained_twins(corpus, "messages", held_out)
    twins = _trained_twins(corpus, "prompt", held_out)
    exact = int(np.count_nonzero(twins >= 0))
    near = near_twins(corpus, held_out[twins < 0])
    twins[twins < 0] = [near.get(row, -1) for row in held_out[twins < 0].tolist()]
    leaked = twins >= 0
    shown = islice(zip(held_out[leaked].tolist(), twins[leaked].tolist(), strict=True), EXAMPLES_KEPT)
    examples = [
        Example(corpus.id(row), f"like {corpus.id(twin)}: {excerpt(corpus.row(row).prompt)}") for row, twin in shown
    ]
    answers = f", {count} with the same answer" if (count := int(np.count_nonzero(whole >= 0))) else ""
    return finding_of(
        "leakage",
        Offenders(int(np.count_nonzero(leaked)), examples),
        corpus.size,
        0,
        "fail",
        f"are held out but have a prompt that is trained on too ({exact} word for word{answers})",
        "Figures on them say nothing: take them out of one side, or leave out `eval_data` to have rows held out.",
    )


def _trained_twins(corpus: Corpus, column: str, held_out: Indices) -> Indices:
    """For each held-out row the first row that is trained on and has the same value, -1 if there is none."""
    values = corpus.column(column)
    return find_first(values, values[held_out], ~corpus.is_eval())


def near_twins(corpus: Corpus, held_out: Indices) -> dict[int, int]:
    """For held-out rows the first row that is trained on and nearly the same, where there is one."""
    clusters = corpus.clusters()
    trained = _trained_members(corpus, np.unique(clusters[held_out]))
    found = {}
    for row in held_out.tolist():
        twin = next((other for other in trained.get(int(clusters[row]), ()) if corpus.alike(row, other)), None)
        if twin is not None:
            found[row] = twin
    return found


def _trained_members(corpus: Corpus, wanted: Indices) -> dict[int, list[int]]:
    """The first rows with different prompts that are trained on, for each of the wanted clusters."""
    clusters, prompts, is_wanted = corpus.clusters(), corpus.column("prompt"), np.zeros(corpus.size, np.bool_)
    is_wanted[wanted] = True
    rows: dict[int, dict[int, int]] = defaultdict(dict)
    for piece in pieces(corpus.size):
        found = np.flatnonzero(~corpus.is_eval()[piece] & is_wanted[clusters[piece]]) + piece.start
        for row, prompt in zip(found.tolist(), prompts[found].tolist(), strict=True):
            group = rows[int(clusters[row])]
            if len(group) < COMPARED_AT_MOST:
                group.setdefault(prompt, row)
    return {cluster: list(group.values()) for cluster, group in rows.items()}


def check_too_few_rows(corpus: Corpus, config: DataKeys) -> Finding:
    """Fewer than 20 rows to train on (a warning), or fewer than 5; where labels are learned, fewer than 8 for each.

    With 8 examples of each class Tunstall et al., Efficient few-shot learning without prompts (2022), come near to a
    model that was trained on all; below that the figures scatter.
    """
    count = corpus.size - int(np.count_nonzero(corpus.is_eval()))
    kinds = labels(corpus)
    wanted = max(FEW_ROWS, ROWS_PER_LABEL * kinds)
    verdict: Verdict = "pass" if count >= wanted else "warn" if count >= TOO_FEW_ROWS else "fail"
    asked = f", with {kinds} labels to tell apart" if wanted > FEW_ROWS else ""
    mend = "" if verdict == "pass" else " Little but their wording can be learned from so few: add rows."
    limit = f">= {TOO_FEW_ROWS if verdict == 'fail' else wanted}"
    return Finding(Evidence("too_few_rows", count, limit, verdict, f"{count} rows to train on{asked}.{mend}"))


def check_no_system_prompt(corpus: Corpus, config: DataKeys) -> Finding:
    """Rows without a system prompt: all of them, or some."""
    lacking = where(corpus.column("system"), lambda systems: systems == 0)
    having = corpus.size - int(np.count_nonzero(lacking))
    others = f"while {having} have one" if having else "which is all of them"
    return finding_of(
        "no_system_prompt",
        offenders(corpus, lacking, lambda row: excerpt(corpus.row(row).prompt)),
        corpus.size,
        0,
        "warn",
        f"have no system prompt, {others}",
        "Many chat templates and servers add one of their own when none is given: set `system_prompt` in the recipe "
        + ("for the rows that have none." if having else "to train with what will be served."),
    )
