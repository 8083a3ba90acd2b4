"""The certificate of a run: all evidence and the SHA-256 of every artifact in one JSON object with a hash of its own.

In go the manifests of a run and its recipe; out comes `certificate.json`, and later the proof that nobody edited it.
It always holds that `certificate_sha256` is the SHA-256 of the canonical JSON of everything else in the certificate,
that a figure which is not finite stands as text, and that the verdict is `pass` only if every stage has finished, no
artifact has changed since, and each piece of evidence that failed was accepted by name.
"""

import math
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from tunewright import __version__
from tunewright.artifacts import (
    Json,
    Manifest,
    RunDirectory,
    canonical_json,
    read_json,
    sha256_of_file,
    sha256_of_json,
)
from tunewright.errors import ArtifactError
from tunewright.evidence import Evidence, equal, failed
from tunewright.formats import formats_of

Certificate = dict[str, Any]

CERTIFICATE_NAME = "certificate.json"
CERTIFIED_STAGES = ("data", "render", "plan", "train", "merge", "export", "verify", "evaluate")

# Texts of the rows, such as a system prompt, stay out: a certificate is made to be handed on.
CERTIFIED_FACTS = {
    "data": ("rows_in", "kept", "repaired", "rejected", "train_rows", "eval_rows", "formats", "held_out_by"),
    "render": ("rows", "supervised_tokens", "template_sha256", "shared_prefix_tokens"),
    "train": (
        "base",
        "finetuning_type",
        "optimizer_steps",
        "first_loss",
        "final_loss",
        "best_eval_loss",
        "tokens_per_second",
        "supervised_tokens_per_second",
        "equivalent_tokens_per_second",
        "peak_memory_bytes",
        "trainable_parameters",
        "layout",
        "versions",
    ),
    "merge": ("dtype", "dtype_reason", "tensors", "merged_tensors", "largest_error", "adapter_keys", "merged_into"),
    "export": ("formats", "bytes"),
}


def read_manifests(run: RunDirectory) -> dict[str, Manifest]:
    """The manifest of each certified stage that has finished, in the order of the stages."""
    found = {stage: run.manifest(stage) for stage in CERTIFIED_STAGES}
    return {stage: manifest for stage, manifest in found.items() if manifest is not None}


def build_certificate(
    run: RunDirectory, name: str, accept: Collection[str] = (), changed: Collection[str] = ()
) -> Certificate:
    """The certificate of what stands in the run's manifests.

    Args:
        run: the run; stages that have not finished are listed as missing.
        name: what the run is called.
        accept: names of evidence that may fail.
        changed: a sentence for each artifact that is no longer what its stage wrote (`RunDirectory.differences`).

    Raises:
        ArtifactError: a manifest is damaged.
    """
    manifests = read_manifests(run)
    failures = {item.name for manifest in manifests.values() for item in manifest.evidence if item.verdict == "fail"}
    missing = [stage for stage in CERTIFIED_STAGES if stage not in manifests]
    recipe = run / "recipe.yaml"
    sound = not missing and not changed and failures <= set(accept)
    content = {
        "tunewright": __version__,
        "name": name,
        "verdict": "pass" if sound else "fail",
        "accepted": sorted(failures & set(accept)),
        "missing_stages": missing,
        "changed_artifacts": list(changed),
        "stages": [_stage_entry(manifest) for manifest in manifests.values()],
        "facts": {stage: _selected_facts(manifest) for stage, manifest in manifests.items()},
        "formats": formats_of(manifests),
        "artifacts": {
            path: asdict(record) for manifest in manifests.values() for path, record in manifest.files.items()
        },
        "recipe_sha256": sha256_of_file(recipe) if recipe.is_file() else None,
    }
    content = _with_finite_figures(content)
    return {**content, "certificate_sha256": sha256_of_json(content)}


def _stage_entry(manifest: Manifest) -> dict[str, Json]:
    return {
        "name": manifest.stage,
        "fingerprint": manifest.fingerprint,
        "seconds": manifest.facts.get("seconds"),
        "evidence": [item.as_json() for item in manifest.evidence],
    }


def _selected_facts(manifest: Manifest) -> dict[str, Json]:
    names = CERTIFIED_FACTS.get(manifest.stage, ())
    return {name: manifest.facts[name] for name in names if name in manifest.facts}


def _with_finite_figures(data: Json) -> Json:
    """The same data with NaN and the infinities as text, which JSON has no numbers for."""
    if isinstance(data, dict):
        return {key: _with_finite_figures(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_with_finite_figures(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def check_certificate(run: RunDirectory) -> list[Evidence]:
    """Evidence that the run's certificate and report are what the report stage wrote, and agree with the manifests.

    Each failure names what was edited: the stage and its evidence, the artifact's hash, or the file.

    Raises:
        ArtifactError: a manifest is damaged.
    """
    try:
        certificate = read_json(run / CERTIFICATE_NAME)
    except ArtifactError as error:
        return [failed("certificate_readable", False, "= True", str(error))]
    if not isinstance(certificate, dict):
        return [failed("certificate_readable", False, "= True", f"{CERTIFICATE_NAME} holds no JSON object.")]
    expected = build_certificate(
        run,
        str(certificate.get("name")),
        _names(certificate.get("accepted")),
        _names(certificate.get("changed_artifacts")),
    )
    return [
        _check_own_hash(certificate),
        _no_differences(
            "certificate_artifacts",
            _artifact_differences(certificate.get("artifacts"), expected["artifacts"]),
            "every artifact's size and SHA-256 in the certificate are those of its manifest",
        ),
        _no_differences(
            "certificate_evidence",
            _stage_differences(certificate.get("stages"), expected["stages"]),
            "every stage's evidence in the certificate is that of its manifest",
        ),
        _no_differences(
            "certificate_facts",
            _fact_differences(certificate, expected),
            "verdict, facts and recipe in the certificate are those of the run",
        ),
        _check_as_published(run),
    ]


def _names(data: Json) -> list[str]:
    return [str(name) for name in data] if isinstance(data, list) else []


def _check_own_hash(certificate: Certificate) -> Evidence:
    content = {key: value for key, value in certificate.items() if key != "certificate_sha256"}
    found, stated = sha256_of_json(content), str(certificate.get("certificate_sha256"))
    if found == stated:
        return equal("certificate_unedited", True, True, f"The certificate's content hashes to {found}, as it says.")
    detail = (
        f"{CERTIFICATE_NAME} was edited: its content has SHA-256 {found[:16]}, it says {stated[:16]}. "
        "Write it again with `tunewright report`."
    )
    return failed("certificate_unedited", False, "= True", detail)


def _no_differences(name: str, differences: list[str], holds: str) -> Evidence:
    detail = "; ".join(differences) + "." if differences else f"{holds[0].upper()}{holds[1:]}."
    return equal(name, len(differences), 0, detail)


def _artifact_differences(found: Json, expected: dict[str, Any]) -> list[str]:
    found = found if isinstance(found, dict) else {}
    return [
        f"{path}: the certificate says {_record(found.get(path))}, its manifest {_record(expected.get(path))}"
        for path in sorted({*found, *expected})
        if found.get(path) != expected.get(path)
    ]


def _record(data: Json) -> str:
    if not isinstance(data, dict):
        return "nothing"
    return f"{data.get('bytes')} bytes with SHA-256 {str(data.get('sha256'))[:16]}"


def _stage_differences(found: Json, expected: list[dict[str, Any]]) -> list[str]:
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    by_name = {str(entry.get("name")): entry for entry in entries}
    wanted = {str(entry["name"]): entry for entry in expected}
    return [
        difference
        for name in dict.fromkeys([*wanted, *by_name])
        for difference in _entry_differences(name, by_name.get(name), wanted.get(name))
    ]


def _entry_differences(stage: str, found: Json, expected: Json) -> list[str]:
    if canonical_json(found) == canonical_json(expected):
        return []
    if found is None or expected is None:
        return [f"stage {stage} stands only in {'its manifest' if found is None else 'the certificate'}"]
    simple = [
        f"{stage}: its {key} in the certificate is {found.get(key)}, {expected[key]} in its manifest"
        for key in ("fingerprint", "seconds")
        if found.get(key) != expected[key]
    ]
    evidence = _evidence_differences(stage, found.get("evidence"), expected["evidence"])
    return [*simple, *evidence] or [f"{stage}: its entry has other keys, or evidence in another order"]


def _evidence_differences(stage: str, found: Json, expected: list[dict[str, Any]]) -> list[str]:
    items = [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
    by_name = {str(item.get("name")): item for item in items}
    wanted = {str(item["name"]): item for item in expected}
    differences = []
    for name in dict.fromkeys([*wanted, *by_name]):
        one, other = by_name.get(name), wanted.get(name)
        if one is None or other is None:
            where = "its manifest" if one is None else "the certificate"
            differences.append(f"{stage}: evidence {name} stands only in {where}")
        elif one != other:
            keys = [key for key in other if one.get(key) != other[key]]
            edits = ", ".join(f"{key} {one.get(key)!r} for {other[key]!r}" for key in keys) or "more keys"
            differences.append(f"{stage}: evidence {name} was edited ({edits})")
    return differences


def _fact_differences(found: Certificate, expected: Certificate) -> list[str]:
    keys = ("verdict", "accepted", "missing_stages", "formats", "recipe_sha256")
    differences = [
        f"{key}: the certificate says {found.get(key)!r}, the run {expected[key]!r}"
        for key in keys
        if found.get(key) != expected[key]
    ]
    stated = found.get("facts")
    facts = stated if isinstance(stated, dict) else {}
    for stage, wanted in expected["facts"].items():
        if canonical_json(facts.get(stage)) != canonical_json(wanted):
            differences.append(f"{stage}: its facts are not those of its manifest")
    return differences


def _check_as_published(run: RunDirectory) -> Evidence:
    """The certificate and the report, byte for byte, against the hashes in the report stage's own manifest."""
    manifest = run.manifest("report")
    differences = ["manifests/report.json is missing"] if manifest is None else run.differences(manifest)
    return _no_differences("report_unedited", differences, "certificate and report are, byte for byte, as written")
