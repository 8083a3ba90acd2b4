"""The merged directory and the checker for any such directory: every reader has to take it for what it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_bases import load, write_base
from tunewright.artifacts import read_json, write_json
from tunewright.models.base import load_tokenizer
from tunewright.models.checkpoint_check import check_checkpoint, older_reader_faults
from tunewright.models.checkpoint_directory import with_older_names, write_configuration
from tunewright.paths import verify_checkpoint


@pytest.fixture
def directory(tiny_base: Path, tmp_path: Path) -> Path:
    """A whole 16-bit directory, as a merge writes it."""
    merged = tmp_path / "merged"
    merged.mkdir()
    write_configuration(tiny_base, merged, torch.bfloat16, {})
    shutil.copyfile(tiny_base / "model.safetensors", merged / "model.safetensors")
    return merged


def failures(directory: Path) -> dict[str, str]:
    return {item.name: item.detail for item in verify_checkpoint(directory) if item.verdict != "pass"}


def edit(path: Path, **changes: Any) -> None:
    settings = {**read_json(path), **changes}
    write_json(path, {key: value for key, value in settings.items() if value is not None})


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_a_directory_that_the_merge_wrote_passes(directory: Path) -> None:
    assert failures(directory) == {}
    assert load_tokenizer(directory).encode("Hello there") == load_tokenizer(directory).encode("Hello there")


def test_the_base_as_transformers_5_saved_it_names_what_older_readers_miss(tiny_base: Path) -> None:
    faults = " ".join(older_reader_faults(tiny_base))
    assert "rope_theta" in faults
    assert "torch_dtype" in faults


def test_the_template_stands_in_a_file_and_inline(directory: Path) -> None:
    inline = read_json(directory / "tokenizer_config.json")["chat_template"]
    assert inline == (directory / "chat_template.jinja").read_text() == load_tokenizer(directory).chat_template


def test_an_inline_template_gets_its_file(tiny_base: Path, tmp_path: Path) -> None:
    base, merged = tmp_path / "base", tmp_path / "merged"
    shutil.copytree(tiny_base, base)
    merged.mkdir()
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").unlink()
    edit(base / "tokenizer_config.json", chat_template=template)
    write_configuration(base, merged, torch.bfloat16, {})
    assert (merged / "chat_template.jinja").read_text() == template


def test_a_tokenizer_class_of_transformers_5_becomes_one_that_all_know(tiny_base: Path, tmp_path: Path) -> None:
    base, merged = tmp_path / "base", tmp_path / "merged"
    shutil.copytree(tiny_base, base)
    merged.mkdir()
    edit(base / "tokenizer_config.json", tokenizer_class="TokenizersBackend", extra_special_tokens=["<|im_start|>"])
    write_configuration(base, merged, torch.bfloat16, {})
    settings = read_json(merged / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in settings
    assert load_tokenizer(merged).encode("Hello there") == load_tokenizer(tiny_base).encode("Hello there")


def test_every_id_that_ends_a_turn_is_in_the_generation_config(tiny_base: Path, tmp_path: Path) -> None:
    write_configuration(tiny_base, tmp_path, torch.bfloat16, {}, frozenset({1, 3}))
    assert read_json(tmp_path / "generation_config.json")["eos_token_id"] == [1, 3]


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_theta": 5e5, "rope_type": "default"}, {"rope_theta": 5e5}),
        (
            {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
            {
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
        ),
        (
            {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}, "sliding_attention": {"rope_theta": 1e4}},
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
    ],
)
def test_rotary_settings_get_their_older_names(rope: dict[str, Any], expected: dict[str, Any]) -> None:
    config = {"rope_parameters": rope, "text_config": {"rope_parameters": rope}}
    named = with_older_names(config)
    assert named == {**config, **expected, "text_config": {"rope_parameters": rope, **expected}}
    assert with_older_names(named) == named


def test_a_renamed_setting_gets_its_older_name(tmp_path: Path) -> None:
    config = read_json(write_base(tmp_path / "qwen3_moe", "qwen3_moe") / "config.json")
    assert "num_experts" not in config
    assert with_older_names(config)["num_experts"] == config["num_local_experts"] == 4


@pytest.mark.parametrize("kind", ["gemma3", "gpt2", "qwen3", "qwen3_moe"])
def test_older_names_change_nothing_for_the_newest_reader(kind: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / kind, kind)
    before = load(base)
    write_json(base / "config.json", with_older_names(read_json(base / "config.json")))
    after = load(base)
    ids = torch.arange(12)[None]
    assert torch.equal(after(ids).logits, before(ids).logits)


def flip_to_infinity(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] = float("inf")


def without_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()


NAME = "model.layers.0.mlp.up_proj.weight"
DAMAGES: list[tuple[Callable[[Path], object], str, str]] = [
    (lambda d: rewrite(d, flip_to_infinity), "tensors_not_finite", "model.norm.weight"),
    (lambda d: rewrite(d, lambda t: t.update({NAME: t[NAME].float()})), "tensors_not_16_bit", NAME),
    (lambda d: rewrite(d, lambda t: t.update({f"{NAME}.absmax": t[NAME].clone()})), "tensors_left_over", "absmax"),
    (lambda d: rewrite(d, lambda t: t.pop(NAME)), "tensors_missing", NAME),
    (lambda d: rewrite(d, lambda t: t.update({NAME: t[NAME].T.contiguous()})), "tensors_of_another_shape", NAME),
    (lambda d: edit(d / "config.json", quantization_config={"bits": 4}), "quantization_config_absent", "quantized"),
    (lambda d: edit(d / "config.json", architectures=["GPT2LMHeadModel"]), "architecture_right", "LlamaForCausalLM"),
    (lambda d: edit(d / "config.json", rope_theta=None), "older_readers", "rope_theta"),
    (lambda d: edit(d / "config.json", torch_dtype=None), "older_readers", "32 bits"),
    (lambda d: edit(d / "tokenizer_config.json", tokenizer_class="TokenizersBackend"), "older_readers", "not known"),
    (lambda d: edit(d / "tokenizer_config.json", chat_template="{{ 1 }}"), "older_readers", "chat template"),
    (lambda d: edit(d / "generation_config.json", eos_token_id=1), "stop_tokens_present", "would not stop"),
    (lambda d: edit(d / "generation_config.json", eos_token_id=None), "stop_tokens_present", "would not stop"),
    (lambda d: edit(d / "config.json", vocab_size=100), "tensors_of_another_shape", "embed_tokens"),
    (lambda d: shutil.copyfile(d / "model.safetensors", d / "more.safetensors"), "index_complete", "without"),
    (lambda d: (d / "model.safetensors").write_bytes(b"12345678"), "checkpoint_readable", "safetensors"),
    (without_tokenizer, "checkpoint_readable", "tokenizer"),
]


@pytest.mark.parametrize(("damage", "evidence", "cause"), DAMAGES)
def test_the_check_of_a_directory_names(
    directory: Path, damage: Callable[[Path], object], evidence: str, cause: str
) -> None:
    damage(directory)
    assert cause in failures(directory)[evidence]


def test_an_architecture_that_transformers_does_not_know_is_a_warning(directory: Path) -> None:
    edit(directory / "config.json", model_type="of_tomorrow")
    assert {item.name: item.verdict for item in check_checkpoint(directory)}["architecture_known"] == "warn"


def test_a_shard_that_the_index_does_not_name_is_found(directory: Path) -> None:
    names = list(load_file(directory / "model.safetensors"))
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "index_complete" not in failures(directory)
    shutil.copyfile(directory / "model-1.safetensors", directory / "model-2.safetensors")
    assert "model-2.safetensors" in failures(directory)["index_complete"]
