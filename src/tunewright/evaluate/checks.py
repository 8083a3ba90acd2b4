"""Checks: what the results say, as evidence.

In: `Results`. Out: evidence. How good a model has to be is for its user to say, so a low figure is a warning; worse
than the base, and broken text, are failures.
"""

from typing import Any

from tunewright.evaluate.intervals import Interval
from tunewright.evaluate.results import BASE, TUNED, Results
from tunewright.evidence import Evidence, Verdict, at_least, at_most, fact

VALID_JSON_LIMIT = 0.95
GGUF_DIFFERENCE_LIMIT = 0.05
DEGENERATE_SHARE_LIMIT = 0.02


def check_results(results: Results, left_out: int) -> list[Evidence]:
    """All evidence of an evaluation; `left_out` held-out rows could not be asked."""
    return [
        *check_rows(results, left_out),
        *check_valid_json(results),
        check_tuned_against_base(results),
        *check_gguf(results),
        check_degenerate_answers(results),
    ]


def check_no_rows(left_out: int, evaluate_rows: int) -> Evidence:
    if evaluate_rows == 0:
        detail = "Nothing was evaluated, because evaluate_rows is 0."
    elif left_out:
        detail = f"None of the {left_out} held-out rows has a proven answer; tokens/ledger.jsonl says why."
    else:
        detail = "No row was held out, so nothing says how good the model is. Set eval_rows or eval_data."
    return Evidence("evaluation_rows", 0, ">= 1", "warn", detail)


def check_rows(results: Results, left_out: int) -> list[Evidence]:
    details = []
    if left_out:
        details.append(f"{left_out} held-out rows are not among them: they have no proven answer.")
    others = len(results.rows) - len(results.measured)
    if others:
        details.append(f"{others} have a target that is no JSON object and enter no metric.")
    unfinished = {
        label: count for label, given in results.answers.items() if (count := sum(not item.finished for item in given))
    }
    if unfinished:
        counts = ", ".join(f"{count} of {label}" for label, count in unfinished.items())
        details.append(f"Answers cut off at {results.max_new_tokens} tokens: {counts}.")
    return [fact("evaluation_rows", len(results.rows), " ".join(details))]


def check_valid_json(results: Results) -> list[Evidence]:
    if results.task.kind != "json":
        return []
    rows = len(results.measured)
    values = {label: results.interval("valid_json", label).value for label in results.labels}
    counts = ", ".join(f"{label} {round(value * rows)} of {rows}" for label, value in values.items())
    detail = f"Answers that are one JSON object and nothing else: {counts}."
    return [at_least("tuned_valid_json", round(values[TUNED], 4), VALID_JSON_LIMIT, detail).softened()]


def check_tuned_against_base(results: Results) -> Evidence:
    """On the headline metric, by the 95 % interval of the paired difference."""
    name = results.task.headline
    difference = results.difference(name)
    shown = ", ".join(f"{label} {_percent(results.interval(name, label).value)}" for label in (BASE, TUNED))
    detail = f"{name}: {shown}; difference {_points(difference)} points, 95 % interval over rows."
    return Evidence("tuned_not_worse_than_base", round(difference.value, 4), ">= 0", _verdict(difference), detail)


def _verdict(difference: Interval) -> Verdict:
    if difference.high < 0:
        return "fail"
    return "pass" if difference.low > 0 else "warn"


def check_gguf(results: Results) -> list[Evidence]:
    """How far the exported model differs from the merged one; of several formats, the one that differs most."""
    found = [_compare_gguf(results, label) for label in results.labels if label not in (BASE, TUNED)]
    if not found:
        return []
    worst = max(found, key=lambda item: (item["off"], -item["equal"]))
    detail = " ".join(str(item["detail"]) for item in found)
    limit = f"{results.task.headline} within {100 * GGUF_DIFFERENCE_LIMIT:g} points"
    verdict: Verdict = "warn" if worst["off"] > GGUF_DIFFERENCE_LIMIT else "pass"
    return [Evidence("gguf_agrees_with_merged", worst["equal"], limit, verdict, detail)]


def _compare_gguf(results: Results, label: str) -> dict[str, Any]:
    pairs = list(zip(results.answers[label], results.answers[TUNED], strict=True))
    equal = sum(one.text == other.text for one, other in pairs)
    difference = results.difference(results.task.headline, label, TUNED)
    text = (
        f"{label}: {equal} of {len(pairs)} answers are the same text as merged; {results.task.headline} differs by "
        f"{_points(difference)} points."
    )
    return {"equal": round(equal / len(pairs), 4), "off": round(abs(difference.value), 9), "detail": text}


def check_degenerate_answers(results: Results) -> Evidence:
    """Loops, repeated words and broken characters in the answers of the tuned model, merged and exported."""
    found = [
        (label, row.id, answer.degenerate)
        for label, given in results.answers.items()
        if label != BASE
        for row, answer in zip(results.rows, given, strict=True)
    ]
    broken = [item for item in found if item[2]]
    detail = f"{len(broken)} of {len(found)} answers loop, repeat themselves or have broken characters."
    if broken:
        shown = "; ".join(f"{label}, {row}: {reason}" for label, row, reason in broken[:3])
        detail += f" {shown}."
    return at_most("degenerate_answers", round(len(broken) / len(found), 4), DEGENERATE_SHARE_LIMIT, detail)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(interval: Interval) -> str:
    value, low, high = (f"{100 * number:+.1f}" for number in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"
