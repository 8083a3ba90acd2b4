"""Evidence: a measured fact with its limit and its verdict.

The same object stands in the certificate, in `--json` and in the report. A `fail` stops the run unless it is
accepted by name; a `warn` is shown and stops nothing.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tunewright.errors import GateError

Verdict = Literal["pass", "warn", "fail"]
Value = bool | int | float | str | None


@dataclass(frozen=True)
class Evidence:
    """One measured fact.

    Attributes:
        name: lower-case words joined by underscores, unique within a stage; what `--accept` takes.
        value: the figure that was measured.
        limit: what the figure was held against, such as `>= 0.98`; empty where nothing was asked of it.
        verdict: `pass`, `warn` or `fail`.
        detail: one or more sentences for a person: what was compared, and for a failure where and how to mend it.
    """

    name: str
    value: Value
    limit: str
    verdict: Verdict
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_check(self) -> bool:
        """Whether something was asked of the figure; the others are facts."""
        return bool(self.limit) or self.verdict != "pass"

    def softened(self) -> "Evidence":
        """The same fact as a warning, for a check that the recipe does not want as a gate."""
        return replace(self, verdict="warn") if self.verdict == "fail" else self


def at_least(name: str, value: float, limit: float, detail: str = "") -> Evidence:
    """Evidence that passes if `value >= limit`; a value that is not a number fails."""
    return Evidence(name, value, f">= {limit:g}", "pass" if value >= limit else "fail", detail)


def at_most(name: str, value: float, limit: float, detail: str = "") -> Evidence:
    """Evidence that passes if `value <= limit`; a value that is not a number fails."""
    return Evidence(name, value, f"<= {limit:g}", "pass" if value <= limit else "fail", detail)


def equal(name: str, value: Value, expected: Value, detail: str = "") -> Evidence:
    """Evidence that passes if `value` is `expected`."""
    return Evidence(name, value, f"= {expected}", "pass" if value == expected else "fail", detail)


def fact(name: str, value: Value, detail: str = "") -> Evidence:
    """A figure that nothing is asked of."""
    return Evidence(name, value, "", "pass", detail)


def failed(name: str, value: Value, limit: str, detail: str) -> Evidence:
    """A failure whose cause `detail` names."""
    return Evidence(name, value, limit, "fail", detail)


def validate_gates(evidence: list[Evidence], accepted: frozenset[str], where: str) -> None:
    """Raise `GateError` if any evidence failed whose name is not in `accepted`."""
    failures = [item for item in evidence if item.verdict == "fail" and item.name not in accepted]
    if failures:
        found = "; ".join(f"{item.name} = {item.value} (limit {item.limit}): {item.detail}" for item in failures)
        names = " ".join(f"--accept {item.name}" for item in failures)
        raise GateError(where, found, mend=f"Mend the cause, or go on knowingly with {names}.")


def as_verdict(evidence: list[Evidence]) -> dict[str, Any]:
    """`verdict`, `cause` and `evidence`; the cause is the first failure's, as checks stand in the order of causes."""
    failures = [item for item in evidence if item.verdict == "fail"]
    cause = (failures[0].detail or failures[0].name) if failures else ""
    items = [item.as_json() for item in evidence]
    return {"verdict": "fail" if failures else "pass", "cause": cause, "evidence": items}


def evidence_from_json(data: list[dict[str, Any]]) -> list[Evidence]:
    return [Evidence(**item) for item in data]
