"""The model card: what stands in it was measured, what the hub reads is valid, and nothing of this machine is told."""

from pathlib import Path
from typing import Any

import yaml

from report_sample import republish, write_reported_run, write_sample_run
from report_sample_data import ANSWERS, SYSTEM
from tunewright.artifacts import FileRecord, RunDirectory, read_json, sha256_of_file
from tunewright.certificate import build_certificate, read_manifests
from tunewright.report.card import Place, card_text, fenced, place_in_run
from tunewright.report.contents import Contents


def contents_of(run: RunDirectory) -> Contents:
    return Contents(run, build_certificate(run, "triage"), read_manifests(run))


def card_of(run: RunDirectory) -> str:
    contents = contents_of(run)
    return card_text(contents, place_in_run(contents))


def matter_of(card: str) -> Any:
    return yaml.safe_load(card.split("---\n", 2)[1])


def with_recipe(run: RunDirectory, **changes: Any) -> RunDirectory:
    path = run / "recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
    return run


def test_the_report_stage_writes_the_card_and_its_manifest_has_the_hash(tmp_path: Path) -> None:
    run = write_reported_run(tmp_path / "run")
    assert run.require_manifest("report").files["README.md"].sha256 == sha256_of_file(run / "README.md")
    assert (run / "README.md").read_text() == card_of(run)


def test_the_card_has_base_data_hash_recipe_template_scores_and_parity(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    text = card_of(run)
    data = run.require_manifest("data").files["data/train.jsonl"].sha256
    assert "| base | `HuggingFaceTB/SmolLM2-135M-Instruct` |\n| licence of the base | apache-2.0 |" in text
    assert f"| recipe, SHA-256 | `{sha256_of_file(run / 'recipe.yaml')}` |" in text
    assert f"| chat template, SHA-256 | `{'5f' * 32}` |" in text
    assert f"| rows trained on, SHA-256 | `{data}` |" in text
    assert "| intent, exact | 12.5 (0.5 to 24.5) | 66.7 (54.7 to 78.7) | 64.6 (52.6 to 76.6) |" in text
    assert "| q8_0, llama.cpp | 100.0\u202f% | 98.8\u202f% (≥ 0.98) | 8.7e-04 (≤ 0.01) |" in text
    assert (
        "| `q8_0` | 144.8\u202fMB | 8.7e-04 | 98.8\u202f% | 64.6 (52.6 to 76.6) | to serve: the one that was made"
        in text
    )
    assert f"Serve it with the system prompt that it was trained with:\n\n```\n{SYSTEM}\n```" in text


def test_no_row_of_the_data_stands_in_the_card(tmp_path: Path) -> None:
    text = card_of(write_sample_run(tmp_path / "run"))
    assert [prompt for prompt, *_ in ANSWERS if prompt[:30] in text] == []


def test_a_base_without_a_licence_is_said_to_be_unknown_and_none_is_claimed(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    republish(run, "export", facts={**read_json(run.manifest_path("export"))["facts"], "license": {}})
    text = card_of(run)
    assert "| licence of the base | unknown: look it up |" in text
    assert "license" not in matter_of(text)


def test_another_licence_keeps_its_name_and_link(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    stated = {"license": "other", "license_name": "house", "license_link": "LICENSE"}
    republish(run, "export", facts={**read_json(run.manifest_path("export"))["facts"], "license": stated})
    text = card_of(run)
    assert stated.items() <= matter_of(text).items()
    assert "| licence of the base | house |" in text


def test_only_bases_and_data_sets_of_the_hub_are_named_in_the_front_matter(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    found = matter_of(card_of(with_recipe(run, model="Qwen/Qwen3-1.7B", data=["rows.jsonl", "openai/gsm8k@v1:main"])))
    assert (found["base_model"], found["datasets"]) == ("Qwen/Qwen3-1.7B", ["openai/gsm8k"])
    text = card_of(with_recipe(run, model="/home/me/models/tiny", data=["/home/me/rows.jsonl"]))
    assert {"base_model", "datasets"}.isdisjoint(matter_of(text))
    assert "/home/me" not in text
    assert "A fine-tune of `tiny`" in text


def test_a_failed_run_says_so_on_its_card(tmp_path: Path) -> None:
    text = card_of(write_sample_run(tmp_path / "run", failing=("q8_0_mean_kl",)))
    assert "checks failed: q8_0_mean_kl.**" in text
    assert "what you serve is what you trained" not in text


def test_a_run_that_was_not_evaluated_has_no_scores(tmp_path: Path) -> None:
    text = card_of(write_sample_run(tmp_path / "run", without=("evaluate",)))
    assert "## Scores" not in text
    assert "## Parity" in text


def test_a_damaged_file_of_a_stage_leaves_the_rest_of_the_card(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "run")
    (run / "verify.json").write_text("{")
    text = card_of(run)
    assert "*Parity: what the run wrote of it could not be read.*" in text
    assert "## Scores" in text


def test_a_pushed_card_says_how_to_get_the_model(tmp_path: Path) -> None:
    contents = contents_of(write_sample_run(tmp_path / "run"))
    files = {"config.json": FileRecord(7, "ab12"), "model-q8_0.gguf": FileRecord(8, "cd34")}
    text = card_text(contents, Place(files, "me/triage"))
    assert matter_of(text)["library_name"] == "transformers"
    assert "hf download me/triage --local-dir model && cd model" in text
    assert 'from_pretrained("me/triage", dtype="auto")' in text
    assert "llama-server -m model-q8_0.gguf --jinja --ctx-size 2048" in text
    assert "ollama create" not in text
    adapter = card_text(contents, Place({"adapter_config.json": FileRecord(1, "")}, "me/triage"))
    assert matter_of(adapter)["library_name"] == "peft"
    assert 'AutoPeftModelForCausalLM.from_pretrained("me/triage")' in adapter


def test_a_fence_is_longer_than_those_in_the_text() -> None:
    assert fenced("a ``` b") == "````\na ``` b\n````"
    assert fenced("x\n") == "```\nx\n```"
