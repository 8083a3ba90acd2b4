"""Each damage to a finished run makes `verify` fail and name its cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tunewright.artifacts import write_json
from tunewright.events import Events
from tunewright.merge.stage import merge
from tunewright.models.base import Base
from tunewright.models.merge_diagnosis import through_nf4
from tunewright.paths import verify_run

Damage = Callable[[Path], object]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    return copy


def failures(run: Path) -> dict[str, str]:
    return {item.name: item.detail for item in verify_run(run, Events()) if item.verdict == "fail"}


def rewrite_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def base_of(run: Path) -> Path:
    return Path(yaml.safe_load((run / "recipe.yaml").read_text())["model"])


def merge_again(run: Path, base: Path) -> None:
    shutil.move(run / "merged", run.parent / "merged")
    merge(
        Base("other", base if base != run / "merged" else run.parent / "merged", {}),
        run / "adapter",
        run / "merged",
        "auto",
        Events(),
    )


def adapter_of_another_run(run: Path) -> None:
    rewrite_tensors(run / "adapter/adapter_model.safetensors", lambda t: [value.mul_(-0.5) for value in t.values()])


def one_flipped_bit(run: Path) -> None:
    def flip(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"].view(torch.int16)[2, 7] ^= 1 << 10

    rewrite_tensors(run / "merged/model.safetensors", flip)


def one_adapter_key_removed(run: Path) -> None:
    key = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"
    rewrite_tensors(run / "adapter/adapter_model.safetensors", lambda tensors: tensors.pop(key))


def use_base(run: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Point the run to a copy of its base with changed tensors."""
    copy = run.parent / "base"
    shutil.copytree(base_of(run), copy)
    rewrite_tensors(copy / "model.safetensors", change)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "model": str(copy)}))
    return copy


def base_with_one_layer_changed(run: Path) -> None:
    use_base(run, lambda tensors: tensors["model.layers.1.mlp.gate_proj.weight"].mul_(1.01))


def merged_twice(run: Path) -> None:
    merge_again(run, run / "merged")


def merged_from_four_bits(run: Path) -> None:
    copy = run.parent / "quantized"
    shutil.copytree(base_of(run), copy)

    def round_trip(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if "_proj" in name:
                tensors[name] = through_nf4(tensor.float()).to(tensor.dtype)

    rewrite_tensors(copy / "model.safetensors", round_trip)
    merge_again(run, copy)


def quantization_config_put_back(run: Path) -> None:
    config = json.loads((run / "merged/config.json").read_text())
    write_json(run / "merged/config.json", {**config, "quantization_config": {"quant_method": "bitsandbytes"}})


def template_replaced_in_gguf(run: Path) -> None:
    path = run / "export/model-q8_0.gguf"
    content = path.read_bytes()
    assert b"You are a helpful test model." in content
    path.write_bytes(content.replace(b"You are a helpful test model.", b"You are a harmless test model"))


def stop_token_missing(run: Path) -> None:
    path = run / "merged/generation_config.json"
    settings = json.loads(path.read_text())
    del settings["eos_token_id"]
    write_json(path, settings)


def gguf_truncated(run: Path) -> None:
    path = run / "export/model-q8_0.gguf"
    path.write_bytes(path.read_bytes()[:-1024])


def tokenizer_of_another_model(run: Path) -> None:
    path = run / "merged/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    path.write_text(json.dumps(tokenizer))


def report_edited(run: Path) -> None:
    path = run / "report.html"
    path.write_text(path.read_text().replace("passed", "passed with honours", 1))


def certificate_edited(run: Path) -> None:
    certificate = json.loads((run / "certificate.json").read_text())
    certificate["stages"][0]["evidence"][0]["value"] = 12345
    write_json(run / "certificate.json", certificate)


CASES: list[tuple[Damage, str, str]] = [
    (adapter_of_another_run, "adapter_unchanged", "not the adapter that this run trained"),
    (one_flipped_bit, "merged_tensors_exact", "model.layers.1.mlp.up_proj.weight differs in 1 element: (2, 7)"),
    (one_adapter_key_removed, "merge_exact", "layers.0.self_attn.v_proj.lora_A.weight' is missing"),
    (base_with_one_layer_changed, "base_unchanged", "model.layers.1.mlp.gate_proj.weight changed"),
    (merged_twice, "merged_tensors_exact", "has the adapter merged twice"),
    (merged_from_four_bits, "merged_tensors_exact", "comes from a base that went through 4 bits"),
    (quantization_config_put_back, "quantization_config_absent", "config.json has quantization_config"),
    (template_replaced_in_gguf, "gguf_chat_template_q8_0", "armless test model"),
    (stop_token_missing, "merged_stop_tokens_missing", "lacks the stop token <|im_end|>"),
    (gguf_truncated, "gguf_complete_q8_0", "the file ends at byte"),
    (tokenizer_of_another_model, "merged_tokenizer_same", "tokenizer of another model"),
    (report_edited, "report_files_unchanged", "report.html"),
    (certificate_edited, "certificate_unedited", ""),
]


@pytest.mark.parametrize(("damage", "evidence", "cause"), CASES, ids=[case[0].__name__ for case in CASES])
def test_verify_names_the_cause_of(run: Path, damage: Damage, evidence: str, cause: str) -> None:
    damage(run)
    found = failures(run)
    assert evidence in found, found
    assert cause in found[evidence]


def test_verify_passes_on_an_undamaged_run(run: Path) -> None:
    assert failures(run) == {}
