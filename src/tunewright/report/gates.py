"""The sections that list: every gate with its figure, and every artifact with its hash.

In goes the certificate, out come plain dictionaries for the page; within a stage what failed stands first.
"""

import json
from collections.abc import Collection
from typing import Any

from tunewright.certificate import Certificate
from tunewright.report import numbers
from tunewright.report.contents import Contents
from tunewright.report.head import GLYPHS, evidence_of, is_check

View = dict[str, Any]
RANKS = {"fail": 0, "accepted": 0, "warn": 1, "pass": 2, "fact": 3}
WORDS = {"pass": "pass", "warn": "warn", "fail": "fail", "accepted": "fail, accepted", "fact": "fact"}


def gates_view(contents: Contents) -> View:
    """Each stage with its evidence; `passed` and `checks` count what something was asked of."""
    certificate = contents.certificate
    stages = [_stage(entry, certificate) for entry in certificate["stages"]]
    everything = [item for stage in stages for item in stage["rows"]]
    return {
        "stages": stages,
        "missing": certificate["missing_stages"],
        "failing": [item for item in everything if item["verdict"] in ("fail", "accepted")],
        "warnings": sum(item["verdict"] == "warn" for item in everything),
        "checks": sum(is_check(item) for item in evidence_of(certificate)),
    }


def _stage(entry: View, certificate: Certificate) -> View:
    rows = [evidence_row(item, certificate["accepted"], entry["name"]) for item in entry["evidence"]]
    return {
        "name": entry["name"],
        "seconds": numbers.duration(entry["seconds"]),
        "rows": failing_first(rows),
        "passed": sum(row["verdict"] == "pass" for row in rows),
        "checks": sum(row["verdict"] != "fact" for row in rows),
    }


def failing_first(rows: list[View]) -> list[View]:
    return sorted(rows, key=lambda row: RANKS[row["verdict"]])


def evidence_row(item: View, accepted: Collection[str] = (), stage: str = "") -> View:
    """A piece of evidence as a row of a table; `examples` where the evidence has some."""
    verdict = item["verdict"] if is_check(item) else "fact"
    if verdict == "fail" and item["name"] in accepted:
        verdict = "accepted"
    return {
        "stage": stage,
        "name": item["name"],
        "value": numbers.figure(item["value"]),
        "limit": numbers.limit(item["limit"]),
        "verdict": verdict,
        "word": WORDS[verdict],
        "glyph": GLYPHS.get(verdict, "·"),
        "detail": item["detail"],
        "examples": [_example_text(one) for one in item.get("examples") or []],
    }


def _example_text(example: Any) -> str:
    if isinstance(example, dict) and "row" in example:
        return f"{example['row']}: {example.get('excerpt', '')}"
    return example if isinstance(example, str) else json.dumps(example, ensure_ascii=False)


def hashes_view(contents: Contents) -> View:
    """Every artifact by stage, and what it takes to check them."""
    certificate = contents.certificate
    return {
        "stages": [
            {
                "name": stage,
                "files": [
                    {"path": path, "size": numbers.size(record.bytes), "sha256": record.sha256}
                    for path, record in manifest.files.items()
                ],
            }
            for stage, manifest in contents.manifests.items()
            if manifest.files
        ],
        "total": numbers.size(sum(record["bytes"] for record in certificate["artifacts"].values())),
        "count": len(certificate["artifacts"]),
        "recipe_sha256": certificate["recipe_sha256"],
        "certificate_sha256": certificate["certificate_sha256"],
    }
