"""The table of checks, and the run of all that the recipe wants.

In: the rows one by one, in whatever process, and then the columns of all of them. Out: one finding for each check that
is not `off`, in the order of the table. `warn` turns a failure into a warning; `gate` set in the recipe turns a warning
into a failure. A new check is a new entry.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tunewright.data.audit.answers import (
    check_dominating_target,
    check_empty_fields,
    check_language_outliers,
    check_schema_outliers,
    check_target_diversity,
)
from tunewright.data.audit.columns import Corpus, labels
from tunewright.data.audit.findings import Finding, Hit, finding_of
from tunewright.data.audit.refusals import refusal_in
from tunewright.data.audit.relations import (
    check_conflicting_answers,
    check_duplicate_rows,
    check_leakage,
    check_near_duplicate_prompts,
    check_no_system_prompt,
    check_too_few_rows,
)
from tunewright.data.audit.rows import AuditRow
from tunewright.data.audit.secrets import secret_in
from tunewright.data.audit.tally import Found, Tally, merge
from tunewright.data.audit.targets import (
    bare_scalar_in,
    copied_prefix_in,
    ellipsis_in,
    near_copies_in,
    one_token_in,
)
from tunewright.data.audit.texts import control_token_in, mojibake_in
from tunewright.errors import RecipeError
from tunewright.evidence import Verdict
from tunewright.recipe import Check as Level
from tunewright.recipe import DataKeys

__all__ = ["CHECKS", "RowChecks", "Tally", "audit", "merge", "validate_levels"]

DefaultLevel = Literal["gate", "warn"]
MOST = 0.5


Excuse = Callable[[float, Corpus], Verdict | None]


def labels_warn(share: float, corpus: Corpus) -> Verdict | None:
    """Where all targets are labels, short and recurring, it is only a warning."""
    return "warn" if labels(corpus) else None


def labels_or_most_pass(share: float, corpus: Corpus) -> Verdict | None:
    """Where most targets are so, or all are labels, to name or to sort is the task."""
    return "pass" if share >= MOST or labels(corpus) else None


def no_excuse(share: float, corpus: Corpus) -> Verdict | None:
    return None


@dataclass(frozen=True)
class RowCheck:
    """A check that looks at one row at a time.

    Attributes:
        name: also that of its evidence.
        level: where the recipe sets none.
        look: what it finds in a row.
        limit: the share of rows that may have it; 0 where one is too many.
        what: what is said of these rows.
        mend: what to do about them.
        excuse: a milder verdict than failure for a share over the limit, by what the other rows are like.
    """

    name: str
    level: DefaultLevel
    look: Callable[[AuditRow], Hit | None]
    limit: float
    what: str
    mend: str
    excuse: Excuse = no_excuse

    def finding(self, found: Found, rows: int, corpus: Corpus) -> Finding:
        share = found.count / max(rows, 1)
        excused = self.excuse(share, corpus) if share > self.limit else None
        mend = "That is the task here." if excused == "pass" else self.mend
        return finding_of(self.name, found.offenders, rows, self.limit, excused or "fail", self.what, mend)


@dataclass(frozen=True)
class CorpusCheck:
    """A check that looks at all rows together."""

    name: str
    level: DefaultLevel
    check: Callable[[Corpus, DataKeys], Finding]


CHECKS: tuple[RowCheck | CorpusCheck, ...] = (
    RowCheck(
        "ellipsis_targets",
        "gate",
        ellipsis_in,
        0.01,
        'have a target that ends in "..."',
        "The model would learn to break off: write these targets in full, or leave the rows out.",
    ),
    RowCheck(
        "copied_prefix_targets",
        "gate",
        copied_prefix_in,
        0.01,
        "have a target that is only the beginning of the user's text",
        "Nothing but copying can be learned from them: have these targets written, not cut from the input.",
    ),
    RowCheck(
        "near_copy_fields",
        "gate",
        near_copies_in,
        0.05,
        "have a JSON target with two fields that nearly copy one another",
        "Have the fields written anew so that each says what it is for.",
    ),
    RowCheck(
        "bare_scalar_targets",
        "gate",
        bare_scalar_in,
        0.01,
        "have a target that is only a number, true, false or null",
        "Say in the target what the figure is, in the form that the other rows have.",
        labels_warn,
    ),
    RowCheck(
        "one_token_targets",
        "warn",
        one_token_in,
        0.1,
        "have a target of a single word or character",
        "The model would learn to answer so in some cases: give these rows whole answers like the others.",
        labels_or_most_pass,
    ),
    RowCheck(
        "refusals",
        "warn",
        refusal_in,
        0.01,
        "begin their answer with a boilerplate refusal",
        "The model would learn to refuse: answer these, or leave the rows out unless refusing is meant.",
    ),
    CorpusCheck("dominating_target", "gate", check_dominating_target),
    CorpusCheck("schema_outliers", "gate", check_schema_outliers),
    CorpusCheck("empty_fields", "warn", check_empty_fields),
    CorpusCheck("language_outliers", "warn", check_language_outliers),
    CorpusCheck("duplicate_rows", "warn", check_duplicate_rows),
    CorpusCheck("near_duplicate_prompts", "warn", check_near_duplicate_prompts),
    CorpusCheck("conflicting_answers", "warn", check_conflicting_answers),
    CorpusCheck("leakage", "gate", check_leakage),
    RowCheck(
        "mojibake",
        "gate",
        mojibake_in,
        0,
        "have characters broken by a wrong encoding",
        "Mend them where they came from, or each broken piece with `ftfy.fix_encoding(text)`.",
    ),
    RowCheck(
        "control_tokens",
        "warn",
        control_token_in,
        0,
        "have what a tokenizer takes for the control tokens of a chat",
        "They open and end turns where none is meant: give the turns as messages, and keep such tokens out of the text "
        "unless the base model is to write them.",
    ),
    RowCheck(
        "secrets",
        "warn",
        secret_in,
        0,
        "hold what looks like a key, a password, an e-mail address, a card number or an IBAN",
        "A model can repeat what it was trained on: take them out, or put made-up ones in their place.",
    ),
    CorpusCheck("too_few_rows", "gate", check_too_few_rows),
    CorpusCheck("target_diversity", "warn", check_target_diversity),
    CorpusCheck("no_system_prompt", "warn", check_no_system_prompt),
)


def validate_levels(levels: Mapping[str, Level]) -> None:
    """Raise `RecipeError` if a level is set for a check that does not exist."""
    known = [check.name for check in CHECKS]
    for name in levels:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            expected = repr(near[0]) if near else f"one of {', '.join(known)}"
            raise RecipeError("audit", f"unknown check {name!r}", expected, "Correct the name.")


class RowChecks:
    """The checks of single rows that are not off, and what they have found so far.

    Attributes:
        tally: of the rows that were looked at.
    """

    def __init__(self, levels: Mapping[str, Level]) -> None:
        chosen = [check for check in CHECKS if isinstance(check, RowCheck) and levels.get(check.name) != "off"]
        self.tally = Tally(found={check.name: Found() for check in chosen})
        self._looks = [(check.look, self.tally.found[check.name]) for check in chosen]

    def look(self, row: AuditRow) -> None:
        self.tally.rows += 1
        for look, found in self._looks:
            hit = look(row)
            if hit is not None:
                found.add(row.id, hit)


def audit(tally: Tally, corpus: Corpus, config: DataKeys) -> list[Finding]:
    """The findings of every check that is not off, in the order of the table."""
    wanted = [check for check in CHECKS if config.audit.get(check.name) != "off"]
    return [
        with_level(_found_by(check, tally, corpus, config), config.audit.get(check.name), check.level)
        for check in wanted
    ]


def _found_by(check: RowCheck | CorpusCheck, tally: Tally, corpus: Corpus, config: DataKeys) -> Finding:
    if isinstance(check, CorpusCheck):
        return check.check(corpus, config)
    return check.finding(tally.found.get(check.name, Found()), tally.rows, corpus)


def with_level(finding: Finding, chosen: Level | None, default: DefaultLevel) -> Finding:
    """The finding with its verdict at the level that the recipe chose, else at the check's own."""
    verdict = finding.evidence.verdict
    if verdict == "warn" and chosen == "gate":
        return finding.with_verdict("fail")
    if verdict == "fail" and (chosen or default) == "warn":
        return finding.with_verdict("warn")
    return finding
