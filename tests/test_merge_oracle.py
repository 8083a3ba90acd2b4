"""peft's own merge is the oracle: every kind of adapter, on tiny models of many architectures, tensor by tensor."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_bases import CONFIGS, TIED, load, write_base
from tiny_model import write_tokenizer
from tunewright.errors import MergeError
from tunewright.events import Events
from tunewright.merge.stage import merge
from tunewright.models.base import Base, load_model
from tunewright.models.checkpoint_check import check_checkpoint
from tunewright.models.merge_check import check_merged
from tunewright.models.merge_plan import OpenMerge, plan_merge

Tensors = dict[str, torch.Tensor]
GPT2_LAYERS = ["c_attn", "c_proj", "c_fc"]
ATTENTION = {"gpt2": ["c_attn", "attn.c_proj"], "phi3": ["qkv_proj", "o_proj"]}
ALL = {"gpt2": GPT2_LAYERS, "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
MIXTURES = ("qwen3_moe", "mixtral")
EMBEDDING = {"gpt2": "wte"}
PLAIN: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"layers.0.self_attn.q_proj": 2, "c_attn": 2}, "alpha_pattern": {"o_proj": 3}},
    "half_precision": {},
}


QUICK = ("gpt2", "qwen2")
ARCHITECTURES = [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in sorted(CONFIGS)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("bases") / request.param, request.param)


def targets(kind: str) -> list[str]:
    if kind in MIXTURES:
        return ["q_proj", "k_proj", "v_proj", "o_proj"]
    return ALL.get(kind, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])


def write_adapter(base: Any, directory: Path, options: dict[str, Any], half: bool = False) -> Path:
    """A random adapter for `base`, saved by peft."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **options}
    resized = settings.pop("save_embedding_layers", "auto")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(**settings))
        generator = torch.Generator().manual_seed(7)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
                if half and "lora_" in name:
                    parameter.data = parameter.data.bfloat16()
        model.save_pretrained(directory, save_embedding_layers=resized)
    return directory


def merged_by_peft(base: Any, adapter: Path, directory: Path) -> Tensors:
    """What peft's merge gives, under the names of a checkpoint."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().save_pretrained(directory)
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def merged_by_us(base: Path, adapter: Path) -> Tensors:
    plan = plan_merge(base, adapter)
    assert plan.used_keys == plan.adapter_keys
    assert plan.touched
    with OpenMerge(plan) as merge:
        return {name: merge.rows(name).float() for name in plan.tensors}


def assert_same(found: Tensors, oracle: Tensors) -> None:
    assert set(found) == set(oracle)
    assert [name for name in oracle if not torch.equal(found[name], oracle[name])] == []


def kind_of(base: Path) -> str:
    return base.name


@pytest.mark.parametrize("variant", PLAIN)
def test_merge_is_pefts_bit_by_bit(base: Path, variant: str, tmp_path: Path) -> None:
    half = variant == "half_precision"
    options = {"target_modules": targets(kind_of(base)), **PLAIN[variant]}
    adapter = write_adapter(load(base), tmp_path / "adapter", options, half)
    assert_same(merged_by_us(base, adapter), merged_by_peft(load(base), adapter, tmp_path / "oracle"))


def test_merge_rounds_once_where_peft_rounds_twice(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(load(base), tmp_path / "adapter", {"target_modules": targets(kind_of(base))})
    plan = plan_merge(base, adapter)
    exact = merged_by_peft(load(base), adapter, tmp_path / "oracle")
    rounded_twice = merged_by_peft(load(base).bfloat16(), adapter, tmp_path / "half")
    with OpenMerge(plan) as merge:
        for name in plan.tensors:
            ours = merge.rounded(name, torch.bfloat16)
            assert torch.equal(ours, exact[name].bfloat16()), name
            assert bool((ours.float() - rounded_twice[name].float()).abs().le(exact[name].abs() / 128 + 2e-3).all()), (
                name
            )


@pytest.mark.parametrize("option", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}], ids=str)
@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_biases_are_pefts(kind: str, option: dict[str, Any], tmp_path: Path) -> None:
    base = write_base(tmp_path / kind, kind)
    names = ["q_proj", "v_proj"] if kind == "qwen2" else targets(kind)
    adapter = write_adapter(load(base), tmp_path / "adapter", {"target_modules": names, **option})
    found = merged_by_us(base, adapter)
    assert_same(found, merged_by_peft(load(base), adapter, tmp_path / "oracle"))
    assert any(key.endswith("bias") for key in load_file(adapter / "adapter_model.safetensors"))


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("option", [{}, {"use_rslora": True}, {"target_parameters": EXPERTS[1:]}], ids=str)
def test_experts_are_pefts(kind: str, option: dict[str, Any], tmp_path: Path) -> None:
    base = write_base(tmp_path / kind, kind)
    options = {"target_modules": targets(kind), "target_parameters": EXPERTS, **option}
    adapter = write_adapter(load(base), tmp_path / "adapter", options)
    found = merged_by_us(base, adapter)
    assert any(".experts.3." in name for name in found)
    assert_same(found, merged_by_peft(load(base), adapter, tmp_path / "oracle"))


def untied(base: Path) -> Any:
    """The base with a head of its own; where it had none, one that holds what the embedding holds."""
    if kind_of(base) not in TIED:
        return load(base)
    model = load(base, tie_word_embeddings=False)
    model.get_output_embeddings().weight.data = model.get_input_embeddings().weight.data.clone()
    return model


EMBEDDINGS: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["embedding"]},
    "head": {"target_modules": ["lm_head"]},
    "both": {"target_modules": ["embedding", "lm_head"]},
    "dora_embedding": {"target_modules": ["embedding"], "use_dora": True},
    "saved_head": {"target_modules": ["c_proj", "o_proj"], "modules_to_save": ["lm_head"]},
    "saved_both": {"target_modules": ["c_proj", "o_proj"], "modules_to_save": ["embedding", "lm_head"]},
}


def with_embedding_named(options: dict[str, Any], kind: str) -> dict[str, Any]:
    name = EMBEDDING.get(kind, "embed_tokens")
    return {
        key: [name if entry == "embedding" else entry for entry in value] if isinstance(value, list) else value
        for key, value in options.items()
    }


@pytest.mark.parametrize("variant", EMBEDDINGS)
def test_embedding_and_head_are_merged_each_for_itself(base: Path, variant: str, tmp_path: Path) -> None:
    kind = kind_of(base)
    options = with_embedding_named(EMBEDDINGS[variant], kind)
    adapter = write_adapter(load(base), tmp_path / "adapter", options)
    assert_same(merged_by_us(base, adapter), merged_by_peft(untied(base), adapter, tmp_path / "oracle"))
    assert plan_merge(base, adapter).settings == ({"tie_word_embeddings": False} if kind in TIED else {})


def test_trained_tokens_are_pefts_and_leave_a_tied_head_tied(base: Path, tmp_path: Path) -> None:
    options = {"target_modules": targets(kind_of(base)), "trainable_token_indices": [3, 95, 17]}
    adapter = write_adapter(load(base), tmp_path / "adapter", options)
    assert_same(merged_by_us(base, adapter), merged_by_peft(load(base), adapter, tmp_path / "oracle"))
    assert plan_merge(base, adapter).settings == {}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_a_resized_vocabulary_is_the_adapters(kind: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / kind, kind)

    def resized() -> Any:
        model = load(base)
        model.resize_token_embeddings(101, mean_resizing=False)
        return model

    options = {"target_modules": targets(kind), "save_embedding_layers": True}
    write_adapter(resized(), tmp_path / "adapter", options)
    plan = plan_merge(base, tmp_path / "adapter")
    assert plan.settings == {"vocab_size": 101}
    assert_same(
        merged_by_us(base, tmp_path / "adapter"), merged_by_peft(resized(), tmp_path / "adapter", tmp_path / "o")
    )


WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "untied": ("qwen3", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "experts": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "saved": ("gemma3", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_whole_merge_passes_its_check_and_answers_as_the_adapter_does(case: str, tmp_path: Path) -> None:
    from peft import PeftModel

    kind, options = WHOLE[case]
    tokens = write_tokenizer(tmp_path)
    path = write_base(tmp_path / kind, kind, vocab_size=len(tokens))
    write_tokenizer(path)
    adapter = write_adapter(load(path), tmp_path / "adapter", options)
    merge(Base(kind, path, {}), adapter, tmp_path / "merged", "auto", Events())
    failed = [item for item in check_merged(path, adapter, tmp_path / "merged", Events()) if item.verdict != "pass"]
    assert failed == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attached = PeftModel.from_pretrained(load(path), str(adapter)).eval()
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        ours, theirs = load_model(tmp_path / "merged", torch.float32)(ids).logits, attached(ids).logits
    assert float((ours - theirs).norm() / theirs.norm()) < 0.03
    assert {item.verdict for item in check_checkpoint(tmp_path / "merged")} == {"pass"}


def test_an_adapter_for_experts_one_by_one_says_how_to_mend_it(tmp_path: Path) -> None:
    base = write_base(tmp_path / "qwen3_moe", "qwen3_moe")
    adapter = write_adapter(load(base), tmp_path / "adapter", {"target_modules": ["q_proj"]})
    tensors = load_file(adapter / "adapter_model.safetensors")
    for side in "AB":
        of = "base_model.model.model.layers.0.{}.lora_" + side + ".weight"
        tensors[of.format("mlp.experts.1.up_proj")] = tensors[of.format("self_attn.q_proj")].clone()
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(
        MergeError, match=r"experts\.1\.up_proj.*load the adapter with peft on its base and save it again"
    ):
        plan_merge(base, adapter)


@pytest.mark.parametrize("option", ["target_modules", "modules_to_save"])
def test_weights_that_were_trained_tied_stay_tied(option: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "qwen3", "qwen3")
    names = {"target_modules": ["o_proj"], option: ["o_proj", "embed_tokens"]}
    if option == "modules_to_save":
        names = {"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]}
    adapter = write_adapter(load(base), tmp_path / "adapter", {"ensure_weight_tying": True, **names})
    plan = plan_merge(base, adapter)
    assert plan.settings == {}
    assert plan.used_keys == plan.adapter_keys
    assert "lm_head.weight" not in plan.tensors
