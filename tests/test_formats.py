"""The table of GGUF formats: its figures are the stages', and the use of each follows from the figures alone."""

from pathlib import Path
from typing import Any

from report_sample import write_reported_run, write_sample_run
from tunewright.artifacts import FileRecord, Manifest
from tunewright.certificate import build_certificate
from tunewright.evidence import Evidence, at_least, at_most
from tunewright.formats import formats_of

MERGED_BYTES = 16_000
SMALL_LOSS, REAL_LOSS = (-0.01, -0.03, 0.01), (-0.08, -0.12, -0.04)


def manifest(stage: str, evidence: list[Evidence], facts: dict[str, Any]) -> Manifest:
    files = {"merged/model.safetensors": FileRecord(MERGED_BYTES, "")} if stage == "merge" else {}
    return Manifest(stage, "", files, evidence, facts)


def uses(
    formats: dict[str, tuple[int, float, tuple[float, float, float] | None]], limit: float = 0.01
) -> dict[str, str]:
    """The use of each format of so many bytes, with this KL and this loss of the task score."""
    evidence = [
        item
        for name, (_, kl, _) in formats.items()
        for item in (at_most(f"{name}_mean_kl", kl, limit), at_least(f"{name}_top1_agreement", 0.99, 0.98))
    ]
    losses = {
        name: dict(zip(("value", "low", "high"), loss, strict=True))
        for name, (_, _, loss) in formats.items()
        if loss is not None
    }
    manifests = {
        "merge": manifest("merge", [], {}),
        "export": manifest("export", [], {"bytes": {name: size for name, (size, *_) in formats.items()}}),
        "verify": manifest("verify", evidence, {}),
        "evaluate": manifest("evaluate", [], {"headline_scores": {}, "headline_losses": losses}),
    }
    return {row["name"]: row["use"] for row in formats_of(manifests)}


def test_the_smallest_format_without_a_measured_loss_is_the_one_to_serve() -> None:
    found = uses(
        {"f16": (16_000, 0.0, SMALL_LOSS), "q8_0": (8_500, 0.001, SMALL_LOSS), "q4_k_m": (5_000, 0.009, REAL_LOSS)}
    )
    assert found == {
        "q4_k_m": "only where nothing larger fits: it loses 8.0 (4.0 to 12.0) points of the task score",
        "q8_0": "to serve: the smallest without a measured loss of the task score (to within 2.0 points)",
        "f16": "nearest to what was trained, at 1.9 times the size of q8_0: "
        "to quantize from, or where memory is no matter",
    }


def test_a_format_that_costs_nothing_measurable_is_served_however_small() -> None:
    found = uses(
        {"q8_0": (8_500, 0.001, SMALL_LOSS), "q6_k": (6_600, 0.002, SMALL_LOSS), "q4_k_m": (5_000, 0.009, SMALL_LOSS)}
    )
    assert found["q4_k_m"].startswith("to serve: the smallest")
    assert found["q6_k"] == "nearer to what was trained, at 1.3 times the size of q4_k_m: where the memory is there"


def test_a_format_that_another_beats_in_both_is_named_with_the_other() -> None:
    found = uses({"q6_k": (6_600, 0.001, None), "q5_k_m": (5_700, 0.0005, None)})
    assert found["q6_k"] == "no reason to take it: q5_k_m is 14% smaller and nearer to what was trained"
    assert found["q5_k_m"] == "to serve: the smallest within all limits; no task score was measured"


def test_of_two_of_one_size_the_nearer_one_is_taken() -> None:
    found = uses({"bf16": (16_000, 0.0, None), "f16": (16_000, 0.002, None)})
    assert found["f16"] == "no reason to take it: bf16 is as small and nearer to what was trained"


def test_a_format_beyond_a_limit_is_not_for_serving() -> None:
    found = uses({"q4_k_m": (5_000, 0.2, SMALL_LOSS), "q8_0": (8_500, 0.001, SMALL_LOSS)})
    assert found["q4_k_m"] == "not for serving: mean_kl beyond the limit"
    assert found["q8_0"].startswith("to serve")


def test_what_was_not_verified_is_said_to_be_unmeasured() -> None:
    rows = formats_of({"export": manifest("export", [], {"bytes": {"q8_0": 10}})})
    assert [(row["mean_kl"], row["size_ratio"], row["use"]) for row in rows] == [(None, None, "not measured yet")]
    assert formats_of({}) == []


def test_the_certificate_holds_the_table_with_the_figures_of_the_stages(tmp_path: Path) -> None:
    (row,) = build_certificate(write_sample_run(tmp_path / "run"), "triage")["formats"]
    assert (row["bytes"], row["mean_kl"], row["top1"]) == (144811904, 0.000871, 0.9883)
    assert row["score"] == {"value": 0.646, "low": 0.526, "high": 0.766}
    assert row["use"].startswith("to serve: the one that was made, without a measured loss")


def test_the_report_shows_the_table(tmp_path: Path) -> None:
    html = (write_reported_run(tmp_path / "run") / "report.html").read_text(encoding="utf-8")
    section = html.split('<section id="formats"')[1].split("</section>")[0]
    assert [cell in section for cell in ("q8_", "144.8\u202fMB", "8.7e-04", "98.8\u202f%", "64.6\u202f%")] == [True] * 5
    assert "to serve: the one that was made, without a measured loss" in section
