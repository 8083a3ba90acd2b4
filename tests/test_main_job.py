"""The main job on the embedded base, small: every stage on real parts, then what is served and said of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tunewright.artifacts import read_json

EXAMPLE = Path(__file__).parents[1] / "examples" / "support_triage"
# Three steps do not teach the task: what is wanted here is that each stage does its work.
ACCEPTED = {"degenerate_answers", "tuned_not_worse_than_base", "leakage"}
SMALL = {
    "max_steps": 3,
    "eval_steps": 3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "sample_prompts": 1,
    "canaries": 2,
    "canary_tokens": 12,
    "evaluate_rows": 2,
    "max_new_tokens": 16,
    "accept": sorted(ACCEPTED),
    "gguf_top1_limit": 0.9,  # few positions are compared, and few steps leave many near ties
}


@pytest.fixture(scope="module")
def small_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    for name, count in (("train.jsonl", 12), ("eval.jsonl", 4)):
        lines = (EXAMPLE / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (directory / name).write_text("".join(lines[:count]), encoding="utf-8")
    recipe = yaml.safe_load((EXAMPLE / "recipe.yaml").read_text(encoding="utf-8"))
    (directory / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **SMALL}), encoding="utf-8")
    return directory / "recipe.yaml"


@pytest.fixture(scope="module")
def small_run(small_recipe: Path) -> Path:
    run = small_recipe.parent / "run"
    command = [sys.executable, "-m", "tunewright", "run", str(small_recipe), "--run-dir", str(run), "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["stages"]["report"]["evidence"]
    return run


@pytest.mark.slow
def test_the_main_job_on_the_embedded_base_passes_every_parity_gate(small_run: Path) -> None:
    certificate = read_json(small_run / "certificate.json")
    assert certificate["missing_stages"] == []
    evidence = {item["name"]: item for stage in certificate["stages"] for item in stage["evidence"]}
    failed = {name for name, item in evidence.items() if item["verdict"] == "fail"}
    assert failed <= ACCEPTED
    for name in ("adapter", "merged_in_float32", "merged", "q8_0"):
        assert evidence[f"{name}_prompt_ids_equal"]["value"] == 1.0
        assert evidence[f"{name}_mean_kl"]["verdict"] == "pass"
    assert evidence["layout_is_exact"]["value"] <= 1e-5
    assert evidence["steps_without_gradient"]["value"] == 0


@pytest.mark.slow
def test_the_report_opens_without_a_network(small_run: Path) -> None:
    page = (small_run / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "<script src" not in page
    assert "support_triage" in page or "small" in page


@pytest.mark.slow
def test_serve_puts_the_trained_system_prompt_before_a_client_that_sends_none(small_run: Path) -> None:
    command = [sys.executable, "-m", "tunewright", "serve", str(small_run), "--port", "0"]
    environment = {**os.environ, "TUNEWRIGHT_API_KEY": "secret", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        url = server.stdout.readline().split(" at ")[1].strip()
        try:
            body = {"messages": [{"role": "user", "content": "hi where is order 48213 please"}], "max_tokens": 1}
            refused = httpx.post(f"{url}/chat/completions", json=body, trust_env=False)
            assert refused.status_code == httpx.codes.UNAUTHORIZED
            headers = {"Authorization": "Bearer secret"}
            answer = httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=120, trust_env=False)
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=60) == 0, "Ctrl-C has to end it"
    prompt_tokens = answer.json()["usage"]["prompt_tokens"]
    assert prompt_tokens > read_json(small_run / "tokens/lengths.json")["shared_prefix_tokens"]
