"""An adapter that was trained over fewer bits: into which base it is merged, and that everything holds to that one."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from test_quantized import KEYS, run_on
from tunewright.artifacts import RunDirectory, read_json, write_json
from tunewright.errors import MergeError
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.merge.stage import merge
from tunewright.models.base import find_base, load_model
from tunewright.models.dequantized import QUANTIZED_BASE, base_of_merge, choose_base
from tunewright.models.merge_check import check_merged
from tunewright.models.merge_plan import OpenMerge, plan_merge
from tunewright.models.quantized import unpacked
from tunewright.recipe import Bits, ModelKeys, VerifyKeys, read_recipe
from tunewright.train.bases import choose
from tunewright.verify.parity import check_parity, compare_artifacts

Q_PROJ, UP_PROJ, NORM = "layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
SCALE = 8 / 4


@pytest.fixture(scope="module")
def original(bits: Bits, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run that is merged into the base as it is stored; some of its packed layers have no LoRA."""
    run = tmp_path_factory.mktemp("into") / "run"
    return run_on(tiny_recipe, run, "merge", merge_into="original", **keys_of(bits))


@pytest.fixture(scope="module")
def dequantized(bits: Bits, original: RunDirectory, tiny_recipe: Path, tmp_path_factory: Any) -> RunDirectory:
    """The same run, merged again into what the bits give; nothing before the merge is done again."""
    copy = tmp_path_factory.mktemp("into") / "again"
    shutil.copytree(original.path, copy)
    trained = (copy / "manifests" / "train.json").read_bytes()
    run = run_on(tiny_recipe, copy, "merge", merge_into="dequantized", **keys_of(bits))
    assert (copy / "manifests" / "train.json").read_bytes() == trained
    return run


def keys_of(bits: Bits) -> dict[str, Any]:
    return {KEYS[bits]: True, "max_steps": 4, "lora_target_modules": ["q_proj", "v_proj", "down_proj"]}


def base_of(run: RunDirectory) -> Path:
    return Path(read_recipe(run / "recipe.yaml", {}).model)


def evidence_of(run: RunDirectory, stage: str) -> dict[str, Evidence]:
    return {item.name: item for item in run.require_manifest(stage).evidence}


def test_both_bases_are_measured_and_the_choice_is_stated(original: RunDirectory) -> None:
    measured = read_json(original / "adapter" / QUANTIZED_BASE)["measured"]
    chosen = evidence_of(original, "merge")["merged_into"]
    assert abs(measured["loss_original"] - measured["loss_dequantized"] - measured["gain"][0]) < 1e-9
    assert measured["gain"][1] <= measured["gain"][0] <= measured["gain"][2]
    assert evidence_of(original, "train")["merge_base"].value == measured["better"]
    assert choose_base(original / "adapter", "auto").into == measured["better"]
    assert chosen.value == "original"
    assert f"{measured['loss_dequantized']:.4f} over the dequantized one" in chosen.detail
    kl = evidence_of(original, "train")["dequantized_base_mean_kl"].value
    assert isinstance(kl, float)
    assert kl < 1e-4


def test_merged_into_what_the_bits_give_is_that_with_the_change_rounded_once(
    dequantized: RunDirectory, bits: Bits
) -> None:
    merged, stored = (
        load_file(dequantized / "merged" / "model.safetensors"),
        load_file(base_of(dequantized) / "model.safetensors"),
    )
    adapter = load_file(dequantized / "adapter" / "adapter_model.safetensors")
    trained = dict(load_model(base_of(dequantized), torch.float32, bits=bits).named_modules())
    factors = [adapter[f"base_model.model.model.{Q_PROJ}.lora_{side}.weight"] for side in "BA"]
    expected = unpacked(trained[f"model.{Q_PROJ}"]) + (factors[0] @ factors[1]) * SCALE
    assert torch.equal(merged[f"model.{Q_PROJ}.weight"], expected.bfloat16())
    without = unpacked(trained[UP_PROJ.removesuffix(".weight")]).bfloat16()
    assert torch.equal(merged[UP_PROJ], without)
    assert not torch.equal(without, stored[UP_PROJ])
    for name in (NORM, "model.embed_tokens.weight"):
        assert torch.equal(merged[name], stored[name])


def test_everything_is_held_to_the_base_that_was_merged_into(dequantized: RunDirectory) -> None:
    evidence = evidence_of(dequantized, "merge")
    assert {item.verdict for item in evidence.values()} == {"pass"}
    assert "what dequantized base and adapter give" in evidence["merged_tensors_exact"].detail
    assert evidence["merged_into"].detail.startswith("The recipe asks for it. Held-out loss")
    config = read_recipe(dequantized / "recipe.yaml", {"merged_top1_limit": 0.9}).section(VerifyKeys)
    results = compare_artifacts(config, dequantized, find_base(config), Events(None, ()))
    assert {item.verdict for item in check_parity(results)} == {"pass"}
    engines = {entry["artifact"]: entry for entry in results["engines"]}
    assert set(engines) == {"adapter_as_trained", "merged_in_float32", "merged"}
    assert engines["merged_in_float32"]["mean_kl"] < 1e-9
    assert engines["merged"]["against"] == "what the trained model said"


def test_the_other_base_in_the_merge_is_named(original: RunDirectory, dequantized: RunDirectory) -> None:
    adapter, quantized = dequantized / "adapter", base_of_merge(dequantized)
    found = check_merged(base_of(original), adapter, original / "merged", Events(), quantized)
    (failure,) = [item for item in found if item.verdict == "fail"]
    assert failure.name == "merged_tensors_exact"
    assert "14 of 14 merged tensors are not what dequantized base and adapter give" in failure.detail
    assert "comes from the base as it is stored, not from the bits that were trained over" in failure.detail
    found = check_merged(base_of(original), adapter, dequantized / "merged", Events(), None)
    assert {item.name for item in found if item.verdict == "fail"} == {
        "merged_tensors_exact",
        "untouched_tensors_identical",
    }


def test_what_does_not_come_out_as_in_training_is_refused(dequantized: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(dequantized / "adapter", tmp_path / "adapter")
    record = read_json(tmp_path / "adapter" / QUANTIZED_BASE)
    write_json(tmp_path / "adapter" / QUANTIZED_BASE, {**record, "layers": {**record["layers"], UP_PROJ: "0" * 64}})
    quantized = choose_base(tmp_path / "adapter", "dequantized").quantized
    base = find_base(ModelKeys(model=str(base_of(dequantized))))
    with pytest.raises(MergeError, match=rf"{UP_PROJ}: packed into \d bits, it is not what was trained over"):
        merge(base, tmp_path / "adapter", tmp_path / "merged", "auto", Events(), quantized=quantized)
    other = {**record, "layers": {"model.layers.9.mlp.up_proj.weight": "0" * 64}}
    write_json(tmp_path / "adapter" / QUANTIZED_BASE, other)
    quantized = choose_base(tmp_path / "adapter", "dequantized").quantized
    with pytest.raises(MergeError, match=r"model\.layers\.9\.mlp\.up_proj\.weight', which the base has not"):
        plan_merge(base.path, tmp_path / "adapter", quantized)


def test_a_plan_gives_another_process_the_same_tensors(dequantized: RunDirectory) -> None:
    """Which is how one pass to GGUF merges."""
    plan = plan_merge(base_of(dequantized), dequantized / "adapter", base_of_merge(dequantized))
    merged = load_file(dequantized / "merged" / "model.safetensors")
    with OpenMerge(pickle.loads(pickle.dumps(plan))) as opened:  # noqa: S301
        for name in (UP_PROJ, f"model.{Q_PROJ}.weight", NORM):
            assert torch.equal(opened.rounded(name, torch.bfloat16, 3, 9), merged[name][3:9])


def test_what_was_measured_decides_unless_the_recipe_does(original: RunDirectory, tmp_path: Path) -> None:
    for better in ("original", "dequantized"):
        record = read_json(original / "adapter" / QUANTIZED_BASE)
        record["measured"] = {"better": better, "reason": "Because."}
        (tmp_path / QUANTIZED_BASE).write_text(json.dumps(record), encoding="utf-8")
        assert choose_base(tmp_path, "auto").into == better
        assert choose_base(tmp_path, "auto").reason == "Because."
        assert choose_base(tmp_path, "original").quantized is None
        assert choose_base(tmp_path, "dequantized").quantized is not None


def test_bits_that_were_not_trained_over_cannot_be_merged_into(tmp_path: Path) -> None:
    assert choose_base(tmp_path, "auto").into == "original"
    with pytest.raises(MergeError, match="merge_into: training did not keep the base in fewer bits"):
        choose_base(tmp_path, "dequantized")


TOKENS = [3, 9, 4, 7, 5, 6, 8, 2]
LOSSES = [4.0, 20.0, 5.0, 9.0, 8.0, 7.0, 11.0, 3.0]


@pytest.mark.parametrize(
    ("gains", "better", "said"),
    [
        ([0.1 * count for count in TOKENS], "dequantized", "the dequantized base does better"),
        ([-0.1 * count for count in TOKENS], "original", "the original base does better"),
        ([1.0, -1.0, 0.5, -0.5, 0.2, -0.1, 0.3, -0.4], "original", "cannot tell them apart, so the original is taken"),
        ([0.0] * len(TOKENS), "original", "cannot tell them apart"),
    ],
)
def test_the_dequantized_base_is_taken_only_where_the_rows_tell(gains: list[float], better: str, said: str) -> None:
    found = choose(LOSSES, [loss - gain for loss, gain in zip(LOSSES, gains, strict=True)], TOKENS, seed=0)
    assert found.better == better
    assert said in found.reason
    assert found.gain is not None
    assert found.gain[0] == pytest.approx(sum(gains) / sum(TOKENS), abs=1e-12)


def test_few_rows_or_none_choose_the_original() -> None:
    assert choose([], [], [], seed=0).better == "original"
    assert choose([2.0, 3.0], [1.0, 1.5], [4, 4], seed=0).better == "original"
