"""Merging: equal to peft's own merge, refused where base and adapter do not fit, and every damage named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunewright.artifacts import RunDirectory, write_json
from tunewright.errors import ArtifactError, MergeError
from tunewright.events import Events
from tunewright.evidence import Evidence
from tunewright.merge.apply import write_shard
from tunewright.merge.provenance import validate_sixteen_bits
from tunewright.merge.stage import merge, run
from tunewright.models.base import (
    Base,
    identity_files,
    load_model,
    load_tokenizer,
    peft_warnings_silenced,
    validate_same_base,
)
from tunewright.models.merge_check import check_merged
from tunewright.models.merge_diagnosis import through_nf4
from tunewright.models.merge_in_memory import merged_in_float32
from tunewright.models.merge_layout import Shard, lay_out
from tunewright.models.merge_plan import MergePlan, plan_merge
from tunewright.models.safetensors_file import file_tensors
from tunewright.models.tensors import CheckpointTensors
from tunewright.recipe import MergeKeys, TrainKeys
from tunewright.train.lora import attach_adapter, write_adapter

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return Base("tiny", tiny_base, identity_files(tiny_base))


@pytest.fixture(scope="module")
def adapter_path(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = attach_adapter(load_model(tiny_base, torch.float32), TrainKeys(lora_r=4, lora_alpha=8))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    path = tmp_path_factory.mktemp("adapter")
    write_adapter(path, model, "tiny")
    return path


@pytest.fixture
def merged_path(base: Base, adapter_path: Path, tmp_path: Path) -> Path:
    merge(base, adapter_path, tmp_path / "merged", "auto", Events())
    return tmp_path / "merged"


def failures(base: Path, adapter: Path, merged: Path) -> dict[str, Evidence]:
    return {item.name: item for item in check_merged(base, adapter, merged, Events()) if item.verdict == "fail"}


def check_passes(base: Path, adapter: Path, merged: Path) -> bool:
    return failures(base, adapter, merged) == {}


def rewrite(directory: Path, change: Callable[[Tensors], object], name: str = "model.safetensors") -> None:
    tensors = load_file(directory / name)
    change(tensors)
    save_file(tensors, directory / name, metadata={"format": "pt"})


def changed_adapter(adapter_path: Path, tmp_path: Path, change: Callable[[Tensors], object]) -> Path:
    copy = tmp_path / "adapter"
    shutil.copytree(adapter_path, copy)
    rewrite(copy, change, "adapter_model.safetensors")
    return copy


def test_merge_equals_pefts_own_merge_tensor_by_tensor(base: Base, adapter_path: Path, merged_path: Path) -> None:
    from peft import PeftModel

    with peft_warnings_silenced():
        model = PeftModel.from_pretrained(load_model(base.path, torch.float32), str(adapter_path))
    oracle = model.merge_and_unload().state_dict()
    with CheckpointTensors(merged_path) as merged:
        for name in merged:
            assert torch.equal(merged[name], oracle[name].to(merged[name].dtype)), name


def test_merge_passes_its_own_check(base: Base, adapter_path: Path, merged_path: Path) -> None:
    evidence = {item.name: item for item in check_merged(base.path, adapter_path, merged_path, Events())}
    assert {item.verdict for item in evidence.values()} == {"pass"}
    assert evidence["adapter_keys_used"].value == 28


def test_tensors_without_an_adapter_are_the_bases_bytes(base: Base, adapter_path: Path, merged_path: Path) -> None:
    touched = set(plan_merge(base.path, adapter_path).touched)
    with CheckpointTensors(base.path) as before, CheckpointTensors(merged_path) as after:
        untouched = [name for name in before if name not in touched]
        assert untouched
        assert all(torch.equal(before[name], after[name]) for name in untouched)


def test_merged_checkpoint_keeps_the_bases_tokenizer_files(base: Base, merged_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja"):
        assert (merged_path / name).read_bytes() == (base.path / name).read_bytes()


def test_merge_refuses_adapter_key_missing_a_partner(base: Base, adapter_path: Path, tmp_path: Path) -> None:
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    damaged = changed_adapter(adapter_path, tmp_path, lambda tensors: tensors.pop(key))
    with pytest.raises(MergeError, match=r"up_proj\.lora_B\.weight' is missing"):
        merge(base, damaged, tmp_path / "merged", "auto", Events())


def test_merge_refuses_adapter_key_missing_from_base(base: Base, adapter_path: Path, tmp_path: Path) -> None:
    def move(tensors: Tensors) -> None:
        for side in "AB":
            name = f"base_model.model.model.layers.{{}}.mlp.up_proj.lora_{side}.weight"
            tensors[name.format(7)] = tensors.pop(name.format(1))

    damaged = changed_adapter(adapter_path, tmp_path, move)
    with pytest.raises(MergeError, match=r"'model\.layers\.7\.mlp\.up_proj\.weight', which the base has not"):
        merge(base, damaged, tmp_path / "merged", "auto", Events())


def test_merge_refuses_shapes_that_do_not_fit(base: Base, adapter_path: Path, tmp_path: Path) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    damaged = changed_adapter(adapter_path, tmp_path, lambda t: t.update({key: t[key][:, :-1].contiguous()}))
    with pytest.raises(MergeError, match="does not fit"):
        merge(base, damaged, tmp_path / "merged", "auto", Events())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("layer_replication", [[0, 2]]),
        ("alora_invocation_tokens", [1]),
        ("arrow_config", {"top_k": 1}),
        ("kasa_config", {"beta": 1}),
        ("init_lora_weights", "pissa_niter_4"),
    ],
)
def test_merge_refuses_adapters_of_other_kinds_by_name(
    base: Base, adapter_path: Path, tmp_path: Path, key: str, value: Any
) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(adapter_path, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    write_json(copy / "adapter_config.json", {**config, key: value})
    with pytest.raises(MergeError, match=key):
        merge(base, copy, tmp_path / "merged", "auto", Events())


def test_merge_refuses_a_base_that_is_not_the_trained_one(base: Base) -> None:
    with pytest.raises(ArtifactError, match=r"model\.safetensors.*not the one that was trained on"):
        validate_same_base(base, {**base.files, "model.safetensors": "0" * 64})


def test_check_names_the_element_of_a_flipped_bit(base: Base, adapter_path: Path, merged_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"

    def flip(tensors: Tensors) -> None:
        tensors[name].view(torch.int16)[3, 5] ^= 1 << 9

    rewrite(merged_path, flip)
    found = failures(base.path, adapter_path, merged_path)
    assert set(found) == {"merged_tensors_exact"}
    assert f"{name} differs in 1 element: (3, 5) is" in found["merged_tensors_exact"].detail


def test_check_names_an_untouched_tensor_that_changed(base: Base, adapter_path: Path, merged_path: Path) -> None:
    rewrite(merged_path, lambda tensors: tensors["model.norm.weight"].mul_(1.5))
    found = failures(base.path, adapter_path, merged_path)
    assert set(found) == {"untouched_tensors_identical"}
    assert "model.norm.weight" in found["untouched_tensors_identical"].detail


def test_check_sees_that_the_adapter_was_merged_twice(
    base: Base, adapter_path: Path, merged_path: Path, tmp_path: Path
) -> None:
    merge(Base("merged", merged_path, {}), adapter_path, tmp_path / "twice", "auto", Events())
    found = failures(base.path, adapter_path, tmp_path / "twice")
    assert "each has the adapter merged twice" in found["merged_tensors_exact"].detail


def test_check_sees_that_nothing_was_merged(base: Base, adapter_path: Path) -> None:
    found = failures(base.path, adapter_path, base.path)
    assert "each does not have this adapter in it" in found["merged_tensors_exact"].detail
    assert found["adapter_changes_the_base"].value is False


def test_check_sees_a_base_that_went_through_four_bits(base: Base, adapter_path: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "quantized"
    shutil.copytree(base.path, quantized)

    def round_trip(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if "_proj" in name:
                tensors[name] = through_nf4(tensor.float()).to(tensor.dtype)

    rewrite(quantized, round_trip)
    merge(Base("quantized", quantized, {}), adapter_path, tmp_path / "merged", "auto", Events())
    found = failures(base.path, adapter_path, tmp_path / "merged")
    assert "comes from a base that went through 4 bits" in found["merged_tensors_exact"].detail


def test_check_sees_quantization_config_put_back(base: Base, adapter_path: Path, merged_path: Path) -> None:
    config = json.loads((merged_path / "config.json").read_text())
    write_json(merged_path / "config.json", {**config, "quantization_config": {"quant_method": "bitsandbytes"}})
    assert set(failures(base.path, adapter_path, merged_path)) == {"quantization_config_absent"}


def test_check_names_tensors_that_are_not_finite(base: Base, adapter_path: Path, merged_path: Path) -> None:
    rewrite(merged_path, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    assert failures(base.path, adapter_path, merged_path)["tensors_not_finite"].detail == "model.norm.weight"


def small_shards(monkeypatch: pytest.MonkeyPatch, shard_bytes: int = 100_000) -> None:
    def lay_out_small(plan: MergePlan, dtype: torch.dtype) -> list[Shard]:
        return lay_out(plan, dtype, shard_bytes)

    monkeypatch.setattr("tunewright.merge.stage.lay_out", lay_out_small)


def test_checkpoint_is_written_in_shards_with_an_index(
    base: Base, adapter_path: Path, merged_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    facts = merge(base, adapter_path, tmp_path / "shards", "auto", Events())
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) == facts["shards"] > 2
    assert check_passes(base.path, adapter_path, tmp_path / "shards")
    with CheckpointTensors(merged_path) as one, CheckpointTensors(tmp_path / "shards") as several:
        assert set(one) == set(several)
        assert all(torch.equal(one[name], several[name]) for name in one)


def test_shards_are_read_by_the_safetensors_library_and_lie_aligned(merged_path: Path) -> None:
    tensors = load_file(merged_path / "model.safetensors")
    stored = file_tensors(merged_path / "model.safetensors")
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in stored.items()
    }
    assert all(tensor.offset % tensor.dtype.itemsize == 0 for tensor in stored.values())


def test_a_merge_that_was_stopped_goes_on_with_the_next_shard(
    base: Base, adapter_path: Path, merged_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    written: list[str] = []

    def stops_at_the_third(path: Path, *arguments: Any) -> None:
        if len(written) == 2 and path.name not in written:
            written.append("stopped")
            raise KeyboardInterrupt
        written.append(path.name)
        write_shard(path, *arguments)

    monkeypatch.setattr("tunewright.merge.apply.write_shard", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        merge(base, adapter_path, tmp_path / "shards", "auto", Events())
    before = list(written)
    merge(base, adapter_path, tmp_path / "shards", "auto", Events())
    assert before[2] == "stopped"
    assert not set(before[:2]) & set(written[3:])
    assert check_passes(base.path, adapter_path, tmp_path / "shards")
    assert not list((tmp_path / "shards").glob("merging*"))


def test_an_unfinished_merge_of_something_else_is_not_taken_up(
    base: Base, adapter_path: Path, merged_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "merging.json", {"key": "another", "done": ["model.safetensors"]})
    (tmp_path / "out" / "model.safetensors").write_bytes(b"stale")
    (tmp_path / "out" / "stale.jinja").write_text("stale")
    merge(base, adapter_path, tmp_path / "out", "auto", Events())
    assert check_passes(base.path, adapter_path, tmp_path / "out")
    assert not (tmp_path / "out" / "stale.jinja").exists()


def test_blocks_give_what_whole_tensors_give(
    base: Base, adapter_path: Path, merged_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.models.merge_plan.BLOCK_ELEMENTS", 700)
    merge(base, adapter_path, tmp_path / "blocks", "auto", Events())
    assert (tmp_path / "blocks/model.safetensors").read_bytes() == (merged_path / "model.safetensors").read_bytes()


def test_merge_refuses_an_adapter_that_changes_nothing(base: Base, adapter_path: Path, tmp_path: Path) -> None:
    idle = changed_adapter(adapter_path, tmp_path, lambda t: [value.zero_() for key, value in t.items() if "_B" in key])
    with pytest.raises(MergeError, match=r"changes nothing: B·A is zero in all of its 14 modules.*train again"):
        merge(base, idle, tmp_path / "merged", "auto", Events())


def test_merge_refuses_an_adapter_that_is_not_finite(base: Base, adapter_path: Path, tmp_path: Path) -> None:
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    broken = changed_adapter(adapter_path, tmp_path, lambda t: t[key][3].fill_(float("nan")))
    with pytest.raises(MergeError, match=r"up_proj\.lora_B\.weight has numbers that are not finite"):
        merge(base, broken, tmp_path / "merged", "auto", Events())


def test_merge_refuses_a_result_that_overflows_and_leaves_nothing_that_looks_finished(
    base: Base, adapter_path: Path, tmp_path: Path
) -> None:
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    large = changed_adapter(adapter_path, tmp_path, lambda t: t[key].mul_(1e7))
    with pytest.raises(MergeError, match=r"up_proj\.weight: merged, it has numbers that are not finite in float16"):
        merge(base, large, tmp_path / "merged", "float16", Events())
    assert not (tmp_path / "merged" / "config.json").exists()


def test_merge_refuses_keys_that_the_base_has_no_place_for(base: Base, adapter_path: Path, tmp_path: Path) -> None:
    extra = changed_adapter(adapter_path, tmp_path, lambda t: t.update({"base_model.model.extra": torch.ones(2)}))
    with pytest.raises(MergeError, match="'extra', which the base has not"):
        merge(base, extra, tmp_path / "merged", "auto", Events())


def test_merge_refuses_a_base_with_quantized_tensors(base: Base, adapter_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(base.path, copy)
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(copy, lambda t: t.update({name: torch.zeros(t[name].shape, dtype=torch.uint8)}))
    with pytest.raises(MergeError, match=r"the base is quantized: model\.layers\.0\.mlp\.up_proj\.weight is uint8"):
        merge(Base("copy", copy, {}), adapter_path, tmp_path / "merged", "auto", Events())


def test_a_base_that_went_through_four_bits_is_refused_by_name(base: Base, tmp_path: Path) -> None:
    validate_sixteen_bits(base)
    copy = tmp_path / "base"
    shutil.copytree(base.path, copy)
    rewrite(copy, lambda t: t.update({name: through_nf4(w.float()).to(w.dtype) for name, w in t.items()}))
    with pytest.raises(MergeError, match=r"quantized to 4 bits and back.*16-bit original"):
        validate_sixteen_bits(Base("copy", copy, {}))
    validate_sixteen_bits(Base("embedded:by-definition", copy, {}))


def test_damaged_safetensors_file_is_named(tmp_path: Path, base: Base) -> None:
    shutil.copytree(base.path, tmp_path / "copy")
    path = tmp_path / "copy" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        CheckpointTensors(tmp_path / "copy")


def test_the_template_that_was_trained_is_the_merged_checkpoints(
    base: Base, adapter_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapter_path, tmp_path / "adapter")
    write_json(tmp_path / "adapter" / "base.json", {"files": base.files})
    (tmp_path / "tokens").mkdir()
    write_json(tmp_path / "tokens" / "template.json", {"chat_template": "{{ 'as trained' }}", "stop_ids": [1, 3]})
    run(MergeKeys(model=str(base.path)), RunDirectory(tmp_path), tmp_path, Events())
    assert load_tokenizer(tmp_path / "merged").chat_template == "{{ 'as trained' }}"
    assert [path.name for path in (tmp_path / "merged").glob("*.jinja")] == ["chat_template.jinja"]


def test_the_model_merged_in_memory_is_the_merged_checkpoint(base: Base, adapter_path: Path, merged_path: Path) -> None:
    model = merged_in_float32(base.path, adapter_path, "cpu")
    written = load_file(merged_path / "model.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name].bfloat16()) for name, tensor in written.items())
