"""Checks of how the rows stand to one another: duplicates, contradictions, leakage, and how many there are."""

from collections import defaultdict
from collections.abc import Hashable, Iterable

from tunewright.chat.conversation import Message
from tunewright.data.audit.findings import Example, Finding, count_finding, excerpt
from tunewright.data.audit.rows import AuditRow, Corpus
from tunewright.evidence import Evidence, Verdict

FEW_ROWS = 20
TOO_FEW_ROWS = 5


def check_duplicate_rows(corpus: Corpus) -> Finding:
    """Rows whose whole conversation stood before."""
    first: dict[tuple[Message, ...], str] = {}
    found = []
    for row in corpus.rows:
        earlier = first.setdefault(row.conversation.messages, row.id)
        if earlier != row.id:
            found.append(Example(row.id, f"the same as {earlier}"))
    return count_finding(
        "duplicate_rows",
        found,
        len(corpus.rows),
        "warn",
        "say exactly what an earlier row says",
        "They count more than the others: leave them out unless that is meant.",
    )


def check_near_duplicate_prompts(corpus: Corpus) -> Finding:
    """Rows whose prompt is nearly, but not exactly, that of another."""
    clusters: dict[int, dict[str, str]] = defaultdict(dict)
    for row, group in zip(corpus.rows, corpus.prompts.groups, strict=True):
        clusters[corpus.prompts.clusters[group]].setdefault(row.prompt, row.id)
    found = []
    for row, group in zip(corpus.rows, corpus.prompts.groups, strict=True):
        alike = clusters[corpus.prompts.clusters[group]]
        if len(alike) > 1:
            other = next(id_ for prompt, id_ in alike.items() if prompt != row.prompt)
            found.append(Example(row.id, f"like {other}: {excerpt(row.prompt)}"))
    return count_finding(
        "near_duplicate_prompts",
        found,
        len(corpus.rows),
        "warn",
        "have a prompt that is nearly that of another row",
        "They add little: keep the better one of each pair.",
    )


def _rows_by_group(corpus: Corpus) -> dict[int, list[AuditRow]]:
    rows: dict[int, list[AuditRow]] = defaultdict(list)
    for row, group in zip(corpus.rows, corpus.prompts.groups, strict=True):
        rows[group].append(row)
    return rows


def check_conflicting_answers(corpus: Corpus) -> Finding:
    """Rows with the same system prompt and the same turns but different targets."""
    by_context: dict[Hashable, list[AuditRow]] = defaultdict(list)
    for row in corpus.rows:
        by_context[row.context].append(row)
    groups = [rows for rows in by_context.values() if len({row.last.target for row in rows}) > 1]
    found = [Example(row.id, f"{excerpt(row.prompt)} is answered {excerpt(row.last.target)}") for row in flat(groups)]
    return count_finding(
        "conflicting_answers",
        found,
        len(corpus.rows),
        "warn",
        f"have a prompt that other rows answer differently (prompts: {len(groups)})",
        "Keep one answer for each prompt, unless variety is meant.",
    )


def flat(groups: Iterable[list[AuditRow]]) -> Iterable[AuditRow]:
    return (row for rows in groups for row in rows)


def check_leakage(corpus: Corpus) -> Finding:
    """Held-out rows whose prompt, or nearly so, is trained on."""
    rows_of = _rows_by_group(corpus)
    trained = {group: row for group, rows in rows_of.items() for row in reversed(rows) if row.split == "train"}
    clusters = corpus.prompts.clusters
    trained_clusters = {clusters[group] for group in trained}
    found = []
    exact = 0
    for row, group in zip(corpus.rows, corpus.prompts.groups, strict=True):
        if row.split != "eval" or clusters[group] not in trained_clusters:
            continue
        match = group if group in trained else next(corpus.prompts.matches(group, trained.__contains__), None)
        if match is not None:
            exact += match == group
            found.append(Example(row.id, f"like {trained[match].id}: {excerpt(row.prompt)}"))
    return count_finding(
        "leakage",
        found,
        len(corpus.rows),
        "fail",
        f"are held out but have a prompt that is trained on too ({exact} word for word)",
        "Figures on them say nothing: take them out of one side, or leave out `eval_data` to have rows held out.",
    )


def check_too_few_rows(corpus: Corpus) -> Finding:
    """Fewer than 20 rows to train on (a warning), or fewer than 5."""
    count = sum(row.split == "train" for row in corpus.rows)
    verdict: Verdict = "pass" if count >= FEW_ROWS else "warn" if count >= TOO_FEW_ROWS else "fail"
    mend = "" if verdict == "pass" else " Little but their wording can be learned from so few: add rows."
    limit = f">= {TOO_FEW_ROWS if verdict == 'fail' else FEW_ROWS}"
    return Finding(Evidence("too_few_rows", count, limit, verdict, f"{count} rows to train on.{mend}"))


def check_no_system_prompt(corpus: Corpus) -> Finding:
    """Rows without a system prompt: all of them, or some."""
    found = [Example(row.id, excerpt(row.prompt)) for row in corpus.rows if row.conversation.system is None]
    some = len(found) < len(corpus.rows)
    cause = (
        f"have no system prompt, while {len(corpus.rows) - len(found)} have one"
        if some
        else "have no system prompt, which is all of them"
    )
    return count_finding(
        "no_system_prompt",
        found,
        len(corpus.rows),
        "warn",
        cause,
        "Many chat templates and servers add one of their own when none is given: set `system_prompt` in the recipe"
        + (" for the rows that have none." if some else " to train with what will be served."),
    )
