"""Each damage to a finished run's base, adapter, merged checkpoint or report makes `verify` fail and name its cause."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from damage_scene import (
    EMBEDDING,
    FIRST_UP_PROJ,
    GATE_PROJ,
    MERGED,
    NORM,
    Q_PROJ,
    UP_PROJ,
    V_PROJ,
    Case,
    Tensors,
    assert_cause_is_named,
    base_of,
    change_merged,
    edit_json,
    merge_again,
    merge_with,
    replace_text,
    rewrite_tensors,
    use_base,
)
from tunewright.artifacts import write_json
from tunewright.events import Events
from tunewright.models.merge_diagnosis import through_nf4
from tunewright.paths import verify_run

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    return copy


def adapter_of_another_run(run: Path) -> None:
    rewrite_tensors(run / ADAPTER, lambda tensors: [value.mul_(-0.5) for value in tensors.values()])


def alpha_and_rank_swapped_in_the_adapter(run: Path) -> None:
    edit_json(run / "adapter/adapter_config.json", r=8, lora_alpha=4)


def one_adapter_key_removed(run: Path) -> None:
    key = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"
    rewrite_tensors(run / ADAPTER, lambda tensors: tensors.pop(key))


def base_with_one_layer_changed(run: Path) -> None:
    use_base(run, lambda base: rewrite_tensors(base / "model.safetensors", lambda t: t[GATE_PROJ].mul_(1.01)))


def another_revision_of_the_base(run: Path) -> None:
    def revise(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name] * 1.02

    use_base(run, lambda base: rewrite_tensors(base / "model.safetensors", revise))


def template_of_the_base_changed(run: Path) -> None:
    use_base(run, lambda base: replace_text(base / "chat_template.jinja", "helpful", "helpless"))


def one_flipped_bit(run: Path) -> None:
    def flip(tensors: Tensors) -> None:
        tensors[UP_PROJ].view(torch.int16)[2, 7] ^= 1 << 10

    rewrite_tensors(run / MERGED, flip)


def merged_twice(run: Path) -> None:
    shutil.copytree(run / "merged", run.parent / "once")
    merge_again(run, run.parent / "once", run / "adapter")


def merged_from_four_bits(run: Path) -> None:
    copy = run.parent / "quantized"
    shutil.copytree(base_of(run), copy)

    def round_trip(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if "_proj" in name:
                tensors[name] = through_nf4(tensor.float()).to(tensor.dtype)

    rewrite_tensors(copy / "model.safetensors", round_trip)
    merge_again(run, copy, run / "adapter")


def wrong_scale(run: Path) -> None:
    merge_with(run, lora_alpha=24)


def merged_with_alpha_and_rank_swapped(run: Path) -> None:
    merge_with(run, lora_alpha=2)


def scale_left_out(run: Path) -> None:
    merge_with(run, lora_alpha=4)


def plain_scale_taken_for_rank_stabilized(run: Path) -> None:
    merge_with(run, use_rslora=True)


def adapter_subtracted(run: Path) -> None:
    merge_with(run, lora_alpha=-8)


def change_transposed(run: Path) -> None:
    def transpose(merged: Tensors, base: Tensors) -> None:
        move = merged[Q_PROJ].float() - base[Q_PROJ].float()
        merged[Q_PROJ] = (base[Q_PROJ].float() + move.T).to(torch.bfloat16).contiguous()

    change_merged(run, transpose)


def base_saved_as_merged(run: Path) -> None:
    shutil.copyfile(base_of(run) / "model.safetensors", run / MERGED)


def one_tensor_without_the_adapter(run: Path) -> None:
    change_merged(run, lambda merged, base: merged.update({V_PROJ: base[V_PROJ]}))


def exchange(run: Path, one: str, other: str) -> None:
    change_merged(run, lambda merged, _: merged.update({one: merged[other], other: merged[one]}))


def two_layers_exchanged(run: Path) -> None:
    exchange(run, UP_PROJ, FIRST_UP_PROJ)


def gate_and_up_exchanged(run: Path) -> None:
    exchange(run, UP_PROJ, GATE_PROJ)


def vocabulary_shifted_in_the_embedding(run: Path) -> None:
    change_merged(run, lambda merged, _: merged.update({EMBEDDING: merged[EMBEDDING].roll(1, 0)}))


def norm_folded_twice(run: Path) -> None:
    change_merged(run, lambda merged, _: merged.update({NORM: merged[NORM] + 1}))


def tensor_dropped(run: Path) -> None:
    rewrite_tensors(run / MERGED, lambda merged: merged.pop(UP_PROJ))


def adapter_left_over_in_merged(run: Path) -> None:
    left = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight"
    rewrite_tensors(run / MERGED, lambda merged: merged.update({left: torch.ones(4, 64, dtype=torch.bfloat16)}))


def not_a_number(run: Path) -> None:
    rewrite_tensors(run / MERGED, lambda merged: merged[UP_PROJ][0, 3].fill_(torch.nan))


def saved_in_32_bits(run: Path) -> None:
    rewrite_tensors(run / MERGED, lambda merged: merged.update({name: t.float() for name, t in merged.items()}))


def another_shape(run: Path) -> None:
    rewrite_tensors(run / MERGED, lambda merged: merged.update({UP_PROJ: merged[UP_PROJ][:-1].clone()}))


def quantization_config_put_back(run: Path) -> None:
    edit_json(run / "merged/config.json", quantization_config={"quant_method": "bitsandbytes"})


def rope_theta_changed(run: Path) -> None:
    edit_json(run / "merged/config.json", rope_theta=500000.0)


def rope_scaling_added(run: Path) -> None:
    edit_json(run / "merged/config.json", rope_scaling={"rope_type": "linear", "factor": 4.0})


def tied_head_dropped(run: Path) -> None:
    edit_json(run / "merged/config.json", tie_word_embeddings=False)


def norm_epsilon_changed(run: Path) -> None:
    edit_json(run / "merged/config.json", rms_norm_eps=1e-3)


def template_with_one_space_more(run: Path) -> None:
    replace_text(run / "merged/chat_template.jinja", "message['role'] + '\n'", "message['role'] + ' \n'")


def stop_token_missing(run: Path) -> None:
    edit_json(run / "merged/generation_config.json", eos_token_id=None)


def wrong_stop_token(run: Path) -> None:
    edit_json(run / "merged/generation_config.json", eos_token_id=1)


def one_stop_token_more(run: Path) -> None:
    edit_json(run / "merged/generation_config.json", eos_token_id=[3, 260])


def tokenizer_of_another_model(run: Path) -> None:
    path = run / "merged/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    path.write_text(json.dumps(tokenizer))


def report_edited(run: Path) -> None:
    replace_text(run / "report.html", "passed", "passed with honours")


def certificate_edited(run: Path) -> None:
    certificate = json.loads((run / "certificate.json").read_text())
    certificate["stages"][0]["evidence"][0]["value"] = 12345
    write_json(run / "certificate.json", certificate)


EXACT = "merged_tensors_exact"
CASES: list[Case] = [
    (another_revision_of_the_base, "base_unchanged", "it is another revision, or another model"),
    (base_with_one_layer_changed, "base_unchanged", f"{GATE_PROJ} changed"),
    (template_of_the_base_changed, "base_unchanged", "chat_template.jinja changed"),
    (adapter_of_another_run, "adapter_unchanged", "not the adapter that this run trained"),
    (one_adapter_key_removed, "adapter_unchanged", "not the adapter that this run trained"),
    (alpha_and_rank_swapped_in_the_adapter, "adapter_unchanged", "adapter/adapter_config.json"),
    (one_flipped_bit, EXACT, f"{UP_PROJ} differs in 1 element: (2, 7)"),
    (merged_twice, EXACT, "has the adapter merged twice"),
    (merged_from_four_bits, EXACT, "comes from a base that went through 4 bits"),
    (wrong_scale, EXACT, "moved 3.00 times as far"),
    (merged_with_alpha_and_rank_swapped, EXACT, "as it should: alpha and rank swapped"),
    (scale_left_out, EXACT, "the scale alpha / rank left out"),
    (plain_scale_taken_for_rank_stabilized, EXACT, "a plain scale taken for rank-stabilized"),
    (adapter_subtracted, EXACT, "has the adapter subtracted"),
    (change_transposed, EXACT, "has the adapter's change transposed"),
    (base_saved_as_merged, EXACT, "does not have this adapter in it"),
    (one_tensor_without_the_adapter, EXACT, f"{V_PROJ} does not have this adapter in it"),
    (two_layers_exchanged, EXACT, f"{FIRST_UP_PROJ} is {UP_PROJ}: the two were exchanged"),
    (gate_and_up_exchanged, EXACT, f"{GATE_PROJ} is {UP_PROJ}: the two were exchanged"),
    (not_a_number, EXACT, "(0, 3) is nan"),
    (saved_in_32_bits, EXACT, "is stored as float32"),
    (another_shape, EXACT, "has shape [159, 64], expected [160, 64]"),
    (vocabulary_shifted_in_the_embedding, "untouched_tensors_identical", "has its rows shifted by one"),
    (norm_folded_twice, "untouched_tensors_identical", "the norm was folded twice"),
    (tensor_dropped, "merged_tensor_names", f"missing: {UP_PROJ}"),
    (adapter_left_over_in_merged, "merged_tensor_names", "left over: base_model"),
    (quantization_config_put_back, "quantization_config_absent", "config.json has quantization_config"),
    (rope_theta_changed, "config_as_the_base", "rope_theta is 500000.0, 10000.0 in the base"),
    (rope_scaling_added, "config_as_the_base", "rope_scaling is {'rope_type': 'linear', 'factor': 4.0}"),
    (tied_head_dropped, "config_as_the_base", "tie_word_embeddings is False, True in the base"),
    (norm_epsilon_changed, "config_as_the_base", "rms_norm_eps is 0.001"),
    (template_with_one_space_more, "merged_chat_template_same", "is not the trained one: at character"),
    (stop_token_missing, "merged_stop_tokens_missing", "lacks the stop token <|im_end|>"),
    (wrong_stop_token, "merged_stop_tokens_missing", "lacks the stop token <|im_end|>"),
    (one_stop_token_more, "merged_stop_tokens_extra", "merged/ also stops at ▁"),
    (tokenizer_of_another_model, "merged_tokenizer_same", "tokenizer of another model"),
    (report_edited, "report_files_unchanged", "report.html"),
    (certificate_edited, "report_files_unchanged", "certificate.json"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case[0].__name__ for case in CASES])
def test_verify_names_the_cause_of(run: Path, case: Case) -> None:
    assert_cause_is_named(run, case)


def test_verify_passes_on_an_undamaged_run(run: Path) -> None:
    assert [item for item in verify_run(run, Events()) if item.verdict == "fail"] == []
