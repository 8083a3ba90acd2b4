"""A base in 4 or 8 bits: what is packed is counted, planned, trained on, and told apart from what is merged."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunewright.artifacts import RunDirectory, read_json, write_json
from tunewright.errors import ModelError, RecipeError
from tunewright.events import Event, Events
from tunewright.models.base import find_base, load_model
from tunewright.models.quantized import BLOCK, QuantizedWeights, count_quantized, quantized_layers, unpacked
from tunewright.pipeline import run_pipeline
from tunewright.recipe import Bits, ModelKeys, VerifyKeys, build_recipe, read_recipe
from tunewright.verify.parity import check_parity, compare_artifacts

SHAPES = 2 * [(64, 64), (64, 64), (32, 64), (32, 64), (160, 64), (160, 64), (64, 160)]
WEIGHTS = sum(rows * columns for rows, columns in SHAPES)
SCALES = {4: WEIGHTS // BLOCK + 4 * len(SHAPES), 8: 4 * sum(rows for rows, _ in SHAPES)}
KEYS: dict[int, str] = {4: "load_in_4bit", 8: "load_in_8bit"}
ADAPTER = "adapter/adapter_model.safetensors"


def run_on(recipe: Path, run: Path, until: str, watch: Any = None, **overrides: Any) -> RunDirectory:
    directory = RunDirectory(run)
    run_pipeline(read_recipe(recipe, overrides), directory, Events(None, (watch,) if watch else ()), until=until)
    return directory


@pytest.fixture(scope="module")
def run(bits: Bits, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run on a packed base, from the rows to what was merged into the base as it is stored."""
    keys: dict[str, Any] = {KEYS[bits]: True, "max_steps": 4, "merge_into": "original"}
    return run_on(tiny_recipe, tmp_path_factory.mktemp("quantized") / "run", "merge", **keys)


def test_what_is_packed_is_what_was_planned(run: RunDirectory, bits: Bits) -> None:
    planned = read_json(run / "plan.json")["quantized"]
    stored = WEIGHTS * bits // 8 + SCALES[bits]
    assert planned == {"layers": len(SHAPES), "weights": WEIGHTS, "stored_bytes": stored}
    found = {item.name: item.value for item in run.require_manifest("train").evidence}
    assert (found["quantized_layers"], found["quantized_bytes"]) == (len(SHAPES), stored)


def test_the_adapter_is_proven_over_its_bits_and_the_merge_over_the_stored_base(run: RunDirectory) -> None:
    config = read_recipe(run / "recipe.yaml", {"merged_top1_limit": 0.9}).section(VerifyKeys)
    results = compare_artifacts(config, run, find_base(config), Events(None, ()))
    assert {item.verdict for item in check_parity(results)} == {"pass"}
    engines = {entry["artifact"]: entry for entry in results["engines"]}
    assert set(engines) == {"adapter_as_trained", "adapter", "merged_in_float32", "merged"}
    assert engines["adapter_as_trained"]["mean_kl"] < 1e-9
    assert engines["adapter_as_trained"]["against"] == "what the trained model said"
    assert engines["adapter"]["mean_kl"] < 1e-9
    assert "over the base as it is stored" in engines["merged"]["against"]


def test_the_two_recordings_differ_and_the_difference_is_stated(run: RunDirectory) -> None:
    evidence = {item.name: item for item in run.require_manifest("train").evidence}
    found = [evidence[f"original_base_{name}"].value for name in ("mean_kl", "loss_ratio")]
    assert isinstance(found[0], float)
    assert found[0] > 1e-7
    assert isinstance(found[1], float)
    assert 0.5 < found[1] < 2
    assert "does better" in evidence["original_base_loss_ratio"].detail
    packed, stored = (
        read_json(run / "adapter" / name)["canaries"] for name in ("canaries_quantized.json", "canaries.json")
    )
    assert [canary["prompt_ids"] for canary in packed] == [canary["prompt_ids"] for canary in stored]
    assert packed[0]["top_logprobs"] != stored[0]["top_logprobs"]


def test_a_packed_layer_computes_with_its_unpacked_weight(tiny_base: Path, bits: Bits) -> None:
    layer = next(iter(quantized_layers(load_model(tiny_base, torch.float32, bits=bits))))
    original = load_model(tiny_base, torch.float32).model.layers[0].self_attn.q_proj.weight
    error = (unpacked(layer) - original).abs().max() / original.abs().max()
    assert 0 < float(error.detach()) < {4: 0.2, 8: 0.01}[bits]
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    layer(x).sum().backward()
    torch.testing.assert_close(layer(x), x @ unpacked(layer).T)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, unpacked(layer).sum(dim=0).expand(3, 64))


def test_a_load_that_came_out_whole_though_bits_were_asked_for_is_an_error(
    tiny_base: Path, bits: Bits, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = AutoModelForCausalLM.from_pretrained

    def without_packing(*args: Any, quantization_config: Any = None, **options: Any) -> Any:
        return whole(*args, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", without_packing)
    with pytest.raises(ModelError, match=rf"{bits} bits were asked for, but its weights came out in torch.float32"):
        load_model(tiny_base, torch.float32, bits=bits)


def test_a_plan_that_counted_on_other_bytes_stops_training(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_less(model: Any) -> QuantizedWeights:
        found = count_quantized(model)
        return QuantizedWeights(found.layers - 1, found.weights, found.stored_bytes)

    monkeypatch.setattr("tunewright.train.stage.count_quantized", one_less)
    with pytest.raises(ModelError, match=r"13 layers came out packed.*expected 14 layers"):
        run_on(tiny_recipe, tmp_path / "run", "train", load_in_4bit=True, max_steps=1)


def test_training_resumed_on_a_packed_base_gives_the_same_adapter_bit_by_bit(tiny_recipe: Path, tmp_path: Path) -> None:
    class PulledPlug(BaseException):
        pass

    def pull(event: Event) -> None:
        if event["kind"] == "metric" and event["step"] == 3 and "loss" in event:
            raise PulledPlug

    settings: dict[str, Any] = {"load_in_4bit": True, "max_steps": 4, "save_steps": 2}
    undisturbed = run_on(tiny_recipe, tmp_path / "undisturbed", "train", **settings)
    with pytest.raises(PulledPlug):
        run_on(tiny_recipe, tmp_path / "stopped", "train", pull, **settings)
    resumed = run_on(tiny_recipe, tmp_path / "stopped", "train", **settings)
    assert (resumed / ADAPTER).read_bytes() == (undisturbed / ADAPTER).read_bytes()


def test_both_at_once_and_dora_on_packed_bases_are_refused() -> None:
    for keys in ({"load_in_4bit": True, "load_in_8bit": True}, {"load_in_4bit": True, "use_dora": True}):
        with pytest.raises(RecipeError, match=r"load_in_8bit is set too|use_dora: it needs a base"):
            build_recipe({"data": "rows.jsonl", **keys}, "recipe.yaml")


@pytest.mark.parametrize(
    ("scaling", "found"),
    [
        ({"factor": 2.0}, "none"),
        ({"type": "linear", "rope_type": "dynamic", "factor": 2.0}, "dynamic and linear"),
        ("linear", "none"),
    ],
)
def test_a_rope_scaling_without_one_kind_is_refused_before_weights_are_read(
    tiny_base: Path, tmp_path: Path, scaling: Any, found: str
) -> None:
    base = with_rope(tiny_base, tmp_path / "base", scaling)
    with pytest.raises(ModelError, match=f"rope_scaling names not one kind but {found}"):
        find_base(ModelKeys(model=str(base)))


def test_a_rope_scaling_of_an_older_file_means_what_it_meant(tiny_base: Path, tmp_path: Path) -> None:
    base = with_rope(tiny_base, tmp_path / "base", {"type": "linear", "factor": 2.0})
    found = find_base(ModelKeys(model=str(base)))
    config = AutoConfig.from_pretrained(str(found.path), local_files_only=True)
    assert config.rope_parameters["rope_type"] == "linear"
    assert config.rope_parameters["factor"] == 2.0


def with_rope(base: Path, copy: Path, scaling: Any) -> Path:
    shutil.copytree(base, copy)
    config = json.loads((copy / "config.json").read_text())
    config = {key: value for key, value in config.items() if key != "rope_parameters"}
    write_json(copy / "config.json", {**config, "rope_scaling": scaling})
    return copy
