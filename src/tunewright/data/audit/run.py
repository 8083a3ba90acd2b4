"""The table of checks, and the run of all that the recipe wants.

In: the kept rows and the levels that the recipe sets by name. Out: one finding for each check that is not `off`.
`warn` turns a failure into a warning; `gate` set in the recipe turns a warning into a failure. A new check is a new
line.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tunewright.data.audit.findings import Finding
from tunewright.data.audit.prompts import (
    check_conflicting_answers,
    check_duplicate_rows,
    check_leakage,
    check_near_duplicate_prompts,
    check_no_system_prompt,
    check_too_few_rows,
)
from tunewright.data.audit.rows import Corpus
from tunewright.data.audit.targets import (
    check_bare_scalar_targets,
    check_copied_prefix_targets,
    check_dominating_target,
    check_ellipsis_targets,
    check_near_copy_fields,
    check_schema_outliers,
)
from tunewright.data.audit.texts import check_mojibake, check_secrets
from tunewright.errors import RecipeError
from tunewright.recipe import Check as Level


@dataclass(frozen=True)
class Check:
    """A check by its name, which is also that of its evidence, and its level where the recipe sets none."""

    name: str
    check: Callable[[Corpus], Finding]
    level: Literal["gate", "warn"]


CHECKS = (
    Check("ellipsis_targets", check_ellipsis_targets, "gate"),
    Check("copied_prefix_targets", check_copied_prefix_targets, "gate"),
    Check("near_copy_fields", check_near_copy_fields, "gate"),
    Check("bare_scalar_targets", check_bare_scalar_targets, "gate"),
    Check("dominating_target", check_dominating_target, "gate"),
    Check("schema_outliers", check_schema_outliers, "gate"),
    Check("duplicate_rows", check_duplicate_rows, "warn"),
    Check("near_duplicate_prompts", check_near_duplicate_prompts, "warn"),
    Check("conflicting_answers", check_conflicting_answers, "warn"),
    Check("leakage", check_leakage, "gate"),
    Check("mojibake", check_mojibake, "gate"),
    Check("too_few_rows", check_too_few_rows, "gate"),
    Check("no_system_prompt", check_no_system_prompt, "warn"),
    Check("secrets", check_secrets, "warn"),
)


def validate_levels(levels: Mapping[str, Level]) -> None:
    """Raise `RecipeError` if a level is set for a check that does not exist."""
    known = [check.name for check in CHECKS]
    for name in levels:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            expected = repr(near[0]) if near else f"one of {', '.join(known)}"
            raise RecipeError("audit", f"unknown check {name!r}", expected, "Correct the name.")


def audit_rows(corpus: Corpus, levels: Mapping[str, Level]) -> list[Finding]:
    """The findings of every check that is not off, in the order of the table."""
    return [
        with_level(check.check(corpus), levels.get(check.name), check.level)
        for check in CHECKS
        if levels.get(check.name) != "off"
    ]


def with_level(finding: Finding, chosen: Level | None, default: Literal["gate", "warn"]) -> Finding:
    """The finding with its verdict at the level that the recipe chose, else at the check's own."""
    verdict = finding.evidence.verdict
    if verdict == "warn" and chosen == "gate":
        return finding.with_verdict("fail")
    if verdict == "fail" and (chosen or default) == "warn":
        return finding.with_verdict("warn")
    return finding
