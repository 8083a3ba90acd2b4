import json
from pathlib import Path
from typing import Any

import pytest

from report_sample import republish, write_reported_run, write_sample_run
from report_sample_data import SYSTEM
from tunewright.artifacts import RunDirectory, read_json, sha256_of_file, sha256_of_json, write_json
from tunewright.certificate import CERTIFIED_STAGES, build_certificate, check_certificate
from tunewright.evidence import Evidence
from tunewright.pipeline import STAGE_NAMES


def edit_certificate(run: RunDirectory, edit: Any, seal: bool = True) -> None:
    """Change the certificate, and by default give it the hash that fits the change."""
    certificate = read_json(run / "certificate.json")
    edit(certificate)
    if seal:
        content = {key: value for key, value in certificate.items() if key != "certificate_sha256"}
        certificate["certificate_sha256"] = sha256_of_json(content)
    write_json(run / "certificate.json", certificate)


def failures(run: RunDirectory) -> dict[str, str]:
    return {item.name: item.detail for item in check_certificate(run) if item.verdict == "fail"}


def test_certified_stages_are_the_pipeline_without_the_report() -> None:
    assert (*CERTIFIED_STAGES, "report") == STAGE_NAMES


def test_certificate_of_a_finished_run_passes_and_hashes_its_own_content(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    certificate = build_certificate(run, "triage")
    content = {key: value for key, value in certificate.items() if key != "certificate_sha256"}
    assert certificate["verdict"] == "pass"
    assert certificate["certificate_sha256"] == sha256_of_json(content)
    assert certificate["recipe_sha256"] == sha256_of_file(run / "recipe.yaml")
    assert [entry["name"] for entry in certificate["stages"]] == list(CERTIFIED_STAGES)
    assert certificate["stages"][3]["seconds"] == 312.4
    assert certificate["facts"]["train"]["final_loss"] == 0.62


def test_certificate_lists_size_and_hash_of_every_file_of_the_stages(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    artifacts = build_certificate(run, "triage")["artifacts"]
    files = [path for path in run.path.rglob("*") if path.is_file() and path.parent.name != "manifests"]
    assert set(artifacts) == {path.relative_to(run.path).as_posix() for path in files} - {"recipe.yaml"}
    assert artifacts["merged/model.safetensors"] == {
        "bytes": 18,
        "sha256": sha256_of_file(run / "merged/model.safetensors"),
    }


def test_certificate_of_a_run_without_a_stage_fails_and_names_the_stage(tmp_path: Path) -> None:
    certificate = build_certificate(write_sample_run(tmp_path / "run", without=("evaluate",)), "triage")
    assert (certificate["verdict"], certificate["missing_stages"]) == ("fail", ["evaluate"])


def test_certificate_fails_on_evidence_that_failed(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run", failing=("q8_0_mean_kl",))
    assert build_certificate(run, "triage", accept=("some_other_name",))["verdict"] == "fail"


def test_certificate_passes_and_records_the_name_when_a_failure_was_accepted(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run", failing=("q8_0_mean_kl",))
    certificate = build_certificate(run, "triage", accept=("q8_0_mean_kl", "empty_targets"))
    assert (certificate["verdict"], certificate["accepted"]) == ("pass", ["q8_0_mean_kl"])


def test_certificate_fails_when_an_artifact_changed_after_its_stage(tmp_path: Path) -> None:
    certificate = build_certificate(write_sample_run(tmp_path / "run"), "triage", changed=("plan.json is missing",))
    assert (certificate["verdict"], certificate["changed_artifacts"]) == ("fail", ["plan.json is missing"])


def test_certificate_is_strict_json_although_a_figure_is_not_finite(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    broken = Evidence("mean_kl", float("nan"), "<= 0.01", "fail").as_json()
    republish(run, "verify", evidence=[broken], facts={"seconds": float("inf")})
    certificate = build_certificate(run, "triage")
    text = json.dumps(certificate, allow_nan=False)
    assert json.loads(text)["stages"][6]["evidence"][0]["value"] == "nan"


def test_certificate_holds_no_text_of_the_rows(tmp_path: Path) -> None:
    certificate = build_certificate(write_sample_run(tmp_path / "run"), "triage")
    assert SYSTEM[:40] not in json.dumps(certificate)


def test_check_passes_on_an_unedited_certificate(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    checked = check_certificate(run)
    assert [item.name for item in checked] == [
        "certificate_unedited",
        "certificate_artifacts",
        "certificate_evidence",
        "certificate_facts",
        "report_unedited",
    ]
    assert {item.verdict for item in checked} == {"pass"}


def test_check_finds_an_edit_by_the_certificates_own_hash(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    edit_certificate(run, lambda certificate: certificate.update(name="another"), seal=False)
    assert "certificate.json was edited" in failures(run)["certificate_unedited"]


def test_check_names_stage_and_evidence_of_an_edit_that_was_sealed_again(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    edit_certificate(run, lambda certificate: certificate["stages"][6]["evidence"][7].update(value=1e-9))
    found = failures(run)
    assert "certificate_unedited" not in found
    assert found["certificate_evidence"] == "verify: evidence q8_0_mean_kl was edited (value 1e-09 for 0.000871)."
    assert "certificate.json has" in found["report_unedited"]


def test_check_names_evidence_that_was_taken_out_of_the_certificate(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    edit_certificate(run, lambda certificate: certificate["stages"][4]["evidence"].pop(0))
    detail = failures(run)["certificate_evidence"]
    assert detail == "merge: evidence adapter_keys_used_once stands only in its manifest."


def test_check_names_a_stage_that_was_taken_out_of_the_certificate(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    edit_certificate(run, lambda certificate: certificate["stages"].pop(0))
    assert failures(run)["certificate_evidence"] == "stage data stands only in its manifest."


def test_check_names_the_artifact_whose_hash_was_edited(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    edit_certificate(run, lambda certificate: certificate["artifacts"]["plan.json"].update(sha256="0" * 64))
    detail = failures(run)["certificate_artifacts"]
    assert detail.startswith("plan.json: the certificate says ")
    assert "SHA-256 0000000000000000, its manifest" in detail


@pytest.mark.parametrize(("key", "value"), [("verdict", "fail"), ("recipe_sha256", "0" * 64), ("accepted", ["x"])])
def test_check_names_the_fact_that_was_edited(tmp_path: Path, key: str, value: object) -> None:
    run = write_reported_run(tmp_path / "run")
    edit_certificate(run, lambda certificate: certificate.update({key: value}))
    assert failures(run)["certificate_facts"].startswith(f"{key}: the certificate says {value!r}")


def test_check_names_the_stage_whose_facts_were_edited(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    edit_certificate(run, lambda certificate: certificate["facts"]["train"].update(final_loss=0.1))
    assert failures(run)["certificate_facts"] == "train: its facts are not those of its manifest."


def test_check_finds_a_stage_that_ran_again_after_the_certificate(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    republish(run, "evaluate", fingerprint="e" * 64)
    assert failures(run)["certificate_evidence"].startswith("evaluate: its fingerprint in the certificate is ")


def test_check_names_the_report_that_was_edited(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    page = run / "report.html"
    page.write_text(page.read_text(encoding="utf-8").replace("66.7", "96.7"), encoding="utf-8")
    assert list(failures(run)) == ["report_unedited"]
    assert failures(run)["report_unedited"].startswith("report.html has SHA-256 ")


@pytest.mark.parametrize(
    ("content", "cause"), [(None, "the file is missing"), ("{", "not valid JSON"), ("[]", "no JSON object")]
)
def test_check_says_why_a_certificate_cannot_be_read(tmp_path: Path, content: str | None, cause: str) -> None:
    run = write_reported_run(tmp_path / "run")
    (run / "certificate.json").unlink()
    if content is not None:
        (run / "certificate.json").write_text(content, encoding="utf-8")
    assert cause in failures(run)["certificate_readable"]


def test_check_does_not_break_on_a_certificate_of_another_form(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    (run / "certificate.json").write_text('{"stages": 3, "artifacts": [], "facts": null}', encoding="utf-8")
    assert set(failures(run)) == {
        "certificate_unedited",
        "certificate_artifacts",
        "certificate_evidence",
        "certificate_facts",
        "report_unedited",
    }
