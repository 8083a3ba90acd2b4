"""The head of the report: the verdict in one sentence and the figures that one asks for first.

In goes what the run holds, out come plain dictionaries and text for the page. It always holds that the sentence says
`what you serve is what you trained` only if the certificate's verdict is `pass` and nothing had to be accepted.
"""

from typing import Any

from tunewright.certificate import Certificate
from tunewright.errors import ArtifactError
from tunewright.report import numbers
from tunewright.report.contents import Contents

GLYPHS = {"pass": "✓", "warn": "!", "fail": "✕", "accepted": "✕", "unfinished": "…"}
Item = dict[str, Any]


def evidence_of(certificate: Certificate) -> list[Item]:
    """Every piece of evidence with its stage."""
    return [{"stage": stage["name"], **item} for stage in certificate["stages"] for item in stage["evidence"]]


def is_check(item: Item) -> bool:
    """Whether something was asked of the figure; the others are facts."""
    return bool(item["limit"]) or item["verdict"] != "pass"


def refused(certificate: Certificate) -> list[str]:
    """Names of evidence that failed and was not accepted."""
    failed = [item["name"] for item in evidence_of(certificate) if item["verdict"] == "fail"]
    return [name for name in failed if name not in certificate["accepted"]]


def verdict_sentence(certificate: Certificate) -> str:
    """What stands against the run, the worst first; else what was accepted or warned of; else that all is well."""
    checks = [item for item in evidence_of(certificate) if is_check(item)]
    passed = sum(item["verdict"] == "pass" for item in checks)
    warned = [item["name"] for item in checks if item["verdict"] == "warn"]
    so_far = f"{passed} of {numbers.plural(len(checks), 'check')} passed"
    if objections := _objections(certificate, len(checks)):
        return " ".join(objections)
    if accepted := certificate["accepted"]:
        return f"{so_far}; {numbers.listed(accepted)} failed and {'was' if len(accepted) == 1 else 'were'} accepted."
    if warned:
        warning = f"{numbers.plural(len(warned), 'warning')} ({numbers.listed(warned)})"
        return f"{so_far}, with {warning}: what you serve is what you trained."
    return f"Every one of {numbers.plural(len(checks), 'check')} passed: what you serve is what you trained."


def _objections(certificate: Certificate, checks: int) -> list[str]:
    objections = []
    if changed := certificate["changed_artifacts"]:
        objections.append(f"Files changed after their stage wrote them: {'; '.join(changed)}.")
    if failed := refused(certificate):
        objections.append(f"{len(failed)} of {numbers.plural(checks, 'check')} failed: {numbers.listed(failed)}.")
    if missing := certificate["missing_stages"]:
        verb = "has" if len(missing) == 1 else "have"
        objections.append(f"{numbers.listed(missing).capitalize()} {verb} not finished.")
    return objections


def verdict_word(certificate: Certificate) -> tuple[str, str]:
    """(class, word) of the badge: `pass`, `accepted`, `unfinished` or `fail`."""
    if certificate["verdict"] == "pass":
        return ("accepted", "passed, with failures accepted") if certificate["accepted"] else ("pass", "passed")
    if refused(certificate) or certificate["changed_artifacts"]:
        return "fail", "failed"
    return "unfinished", "not finished"


def view(contents: Contents) -> Item:
    certificate = contents.certificate
    verdict, word = verdict_word(certificate)
    return {
        "kicker": "report of a run",
        "name": certificate["name"],
        "verdict": verdict,
        "word": word,
        "glyph": GLYPHS[verdict],
        "sentence": verdict_sentence(certificate),
        "figures": [figure for figure in _figures(contents) if figure["value"] != numbers.NONE],
        "hash": certificate["certificate_sha256"],
    }


def _figures(contents: Contents) -> list[Item]:
    data, train = contents.facts("data"), contents.facts("train")
    return [
        {"label": "Base", "value": base_name(contents), "note": _parameters(contents)},
        {
            "label": "Rows trained on",
            "value": numbers.count(data.get("train_rows")),
            "note": f"{numbers.count(data.get('eval_rows'))} held out",
        },
        {
            "label": "Training",
            "value": numbers.duration(train.get("seconds")),
            "note": f"{numbers.count(train.get('optimizer_steps'))} steps",
        },
        _headline(contents),
        {"label": "GGUF", "value": numbers.size(_gguf_bytes(contents)), "note": _gguf_names(contents)},
    ]


def base_name(contents: Contents) -> str:
    name = str(contents.recipe.get("model") or contents.facts("train").get("base") or numbers.NONE)
    return name.removeprefix("embedded:").rstrip("/").rsplit("/", 1)[-1]


def _parameters(contents: Contents) -> str:
    trainable = contents.facts("train").get("trainable_parameters")
    return f"{numbers.count(trainable)} parameters trained" if trainable else ""


def _headline(contents: Contents) -> Item:
    """Base and tuned side by side for the metric that the evaluation calls its headline."""
    empty = {"label": "", "value": numbers.NONE, "note": ""}
    try:
        results = contents.json("evaluate", "evaluate/results.json")
        metric = next(one for one in results["metrics"] if one["name"] == results["headline"])
        base, tuned = (metric["scores"][name]["value"] for name in ("base", "merged"))
    except (ArtifactError, KeyError, TypeError, StopIteration):
        return empty
    return {
        "label": metric_label(metric["name"])[0].upper() + metric_label(metric["name"])[1:],
        "value": f"{numbers.percent(base)} → {numbers.percent(tuned)}",
        "note": f"base → tuned, {numbers.plural(results['rows'], 'held-out row')}",
    }


def metric_label(name: str) -> str:
    """`intent, exact` of `exact:intent`; `valid JSON` of `valid_json`."""
    kind, separator, field = name.partition(":")
    kind = kind.replace("f1", "F1")
    return f"{field}, {kind}" if separator else kind.replace("_", " ").replace("json", "JSON")


def _gguf_files(contents: Contents) -> dict[str, int]:
    manifest = contents.manifests.get("export")
    files = manifest.files.items() if manifest else ()
    return {path: record.bytes for path, record in files if path.endswith(".gguf")}


def _gguf_bytes(contents: Contents) -> int | None:
    return next(iter(_gguf_files(contents).values()), None)


def _gguf_names(contents: Contents) -> str:
    return ", ".join(path.rsplit("/", 1)[-1] for path in _gguf_files(contents))
