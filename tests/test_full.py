"""Every weight trained: the same chain as for an adapter, from the plan to what is served, with the same proofs."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from test_layouts import RELATIVE, assert_exact, make_groups, reference_gradients, relative_difference
from test_memory import WEIGHTS, small_llama, step_of
from test_train_options import ADAPTER, PulledPlug, run_on
from tiny_bases import CONFIGS, write_base
from tunewright.artifacts import RunDirectory, read_json
from tunewright.errors import MergeError, ModelError, RecipeError
from tunewright.events import Events
from tunewright.layouts.layout import Kind, Layout
from tunewright.merge.stage import merge
from tunewright.models.base import Base, find_base, load_adapted, load_model
from tunewright.models.merge_dtype import choose_dtype
from tunewright.models.merge_plan import OpenMerge, plan_merge
from tunewright.models.whole import PREFIX, whole_weights
from tunewright.plan.fit import find_fit
from tunewright.plan.memory import predict_peak_bytes
from tunewright.recipe import PlanKeys, TrainKeys, VerifyKeys, build_recipe, read_recipe
from tunewright.train.lora import make_trainable, write_adapter
from tunewright.verify.parity import check_parity, compare_artifacts
from tunewright.verify.stage import verify

Tensors = dict[str, torch.Tensor]
FULL: dict[str, Any] = {"finetuning_type": "full", "lora_r": 16, "lora_alpha": 32, "learning_rate": 1e-3}
EMBEDDING, UP_PROJ = "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def run(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run from the rows to the report."""
    return run_on(tiny_recipe, tmp_path_factory.mktemp("full") / "run", "report", **FULL)


def test_a_run_passes_its_gates_and_says_what_was_trained(run: RunDirectory) -> None:
    certificate = read_json(run / "certificate.json")
    assert certificate["verdict"] == "pass"
    assert certificate["facts"]["train"]["finetuning_type"] == "full"
    training = read_json(run / "adapter" / "training.json")
    assert training["trainable_parameters"] == training["total_parameters"]
    assert {entry["artifact"] for entry in read_json(run / "verify.json")["engines"]} >= {"adapter", "merged", "q8_0"}
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "with every weight trained" in card
    assert "lora" not in card.lower()
    assert "every weight" in (run / "report.html").read_text(encoding="utf-8")


def test_the_plan_counts_weights_gradients_and_moments_of_every_parameter(run: RunDirectory) -> None:
    weights = 4 * read_json(run / "adapter" / "training.json")["total_parameters"]
    parts = read_json(run / "plan.json")["breakdown"]
    counters = 4 * len(load_file(run / ADAPTER))
    expected = {"weights": weights, "adapter": 0, "optimizer": 2 * weights + counters}
    assert {part: parts[part] for part in expected} == expected
    assert 0 < parts["gradients"] <= weights


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_every_parameter_are_there_from_the_second_micro_batch_on(compute_dtype: torch.dtype) -> None:
    step = replace(step_of(rows=2, tokens=64, supervised=16), batch_size=1)
    keys = TrainKeys(finetuning_type="full")
    found = predict_peak_bytes(
        small_llama(), keys, base_dtype=torch.float32, compute_dtype=compute_dtype, step=step
    ).breakdown
    assert found["weights"] == found["gradients"] == 4 * WEIGHTS


def test_merged_tensors_are_the_trained_ones_rounded_once(run: RunDirectory) -> None:
    trained, merged = load_file(run / ADAPTER), load_file(run / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert {f"{PREFIX}{name}" for name in merged} == set(trained)
    for name, tensor in merged.items():
        assert torch.equal(tensor, trained[f"{PREFIX}{name}"].bfloat16()), name
    assert read_json(run / "merged" / "config.json")["tie_word_embeddings"] is True


# `load_model` asks for an attention that Gemma 2 has not.
@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "gemma2"])
def test_weights_of_every_architecture_are_merged_as_they_were_trained(kind: str, tmp_path: Path) -> None:
    """Experts that lie one by one in the checkpoint among them, and names that transformers changes."""
    base = write_base(tmp_path / "base", kind)
    trained = trained_whole(base, tmp_path / "adapter")
    plan = plan_merge(base, tmp_path / "adapter")
    assert plan.touched == list(plan.tensors)
    assert plan.used_keys == plan.adapter_keys
    with OpenMerge(plan) as opened:
        assert choose_dtype("auto", opened) == (torch.bfloat16, "It is the base's own.")
        merged = {name: opened.rounded(name, torch.bfloat16) for name in plan.tensors}
    (tmp_path / "merged").mkdir()
    save_file(merged, tmp_path / "merged" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(base / "config.json", tmp_path / "merged")
    found = whole_weights(load_model(tmp_path / "merged", torch.float32))
    assert_all_equal(found, {key: each.bfloat16().float() for key, each in trained.items()})
    reopened = load_adapted(base, tmp_path / "adapter", torch.float32, "cpu")
    assert_all_equal(whole_weights(reopened), trained)


def trained_whole(base: Path, directory: Path) -> Tensors:
    """Weights near the base's, written as training writes them."""
    model = make_trainable(load_model(base, torch.float32), TrainKeys(finetuning_type="full"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    write_adapter(directory, model, "base")
    return whole_weights(model)


def assert_all_equal(found: Tensors, expected: Tensors) -> None:
    assert set(found) == set(expected)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("kind", ["padded", "packed", "shared_prefix"])
@pytest.mark.parametrize("budget", [1, 150])
def test_every_layout_gives_the_gradients_of_single_plain_rows(tiny_base: Path, kind: Kind, budget: int) -> None:
    model = make_trainable(load_model(tiny_base, torch.float32), TrainKeys(finetuning_type="full"))
    rows = make_groups()
    expected_loss, expected = reference_gradients(model, rows)
    assert EMBEDDING in expected
    found = assert_exact(Layout(model, kind, "cpu", 2, budget), rows, expected_loss, expected)
    for name, gradient in expected.items():
        assert relative_difference({name: found[name]}, {name: gradient}) <= 10 * RELATIVE, name


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit"])
def test_training_resumed_gives_the_same_weights_bit_by_bit(tiny_recipe: Path, tmp_path: Path, optim: str) -> None:
    """With the best weights kept and some decay, of which norms have none."""
    settings = {**FULL, "optim": optim, "max_steps": 4, "save_steps": 2, "eval_steps": 2, "weight_decay": 0.1}
    settings |= {"load_best_model_at_end": True}
    undisturbed = run_on(tiny_recipe, tmp_path / "undisturbed", "train", **settings)
    with pytest.raises(PulledPlug):
        run_on(tiny_recipe, tmp_path / "stopped", "train", stop_after=3, **settings)
    resumed = run_on(tiny_recipe, tmp_path / "stopped", "train", **settings)
    assert (resumed / ADAPTER).read_bytes() == (undisturbed / ADAPTER).read_bytes()


@pytest.fixture
def new_precision() -> Iterator[None]:
    """accelerate computes in one precision for each process, unless it is told to forget it."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("new_precision")
def test_weights_are_held_in_float32_where_the_model_computes_in_bfloat16(tiny_recipe: Path, tmp_path: Path) -> None:
    """Steps that 16 bits could not hold are there, and what was said with these weights is said by the files."""
    settings = {**FULL, "bf16": True, "max_steps": 2, "learning_rate": 1e-6, "accept": ["eval_loss_ratio"]}
    run = run_on(tiny_recipe, tmp_path / "run", "merge", **settings)
    trained = load_file(run / ADAPTER)
    base = load_file(Path(read_recipe(run / "recipe.yaml", {}).model) / "model.safetensors")
    assert read_json(run / "plan.json")["dtype"] == "bfloat16"
    assert float((trained[PREFIX + UP_PROJ] != base[UP_PROJ].float()).float().mean()) > 0.9
    config = read_recipe(run / "recipe.yaml", {"merged_top1_limit": 0.9}).section(VerifyKeys)
    results = compare_artifacts(config, run, find_base(config), Events(None, ()))
    assert {item.verdict for item in check_parity(results)} == {"pass"}


Damage = Callable[[Tensors], object]
NAMED: dict[str, tuple[Damage, str]] = {
    "missing": (lambda t: t.pop(PREFIX + UP_PROJ), r"layers\.1\.mlp\.up_proj\.weight' is missing"),
    "another shape": (
        lambda t: t.update({PREFIX + UP_PROJ: t[PREFIX + UP_PROJ][1:].clone()}),
        r"up_proj\.weight \[159, 64\] does not fit: its layer of the base takes \[160, 64\]",
    ),
    "another vocabulary": (
        lambda t: t.update({PREFIX + EMBEDDING: t[PREFIX + EMBEDDING][1:].clone()}),
        r"embed_tokens\.weight \[\d+, 64\] does not fit",
    ),
    "left over": (lambda t: t.update({PREFIX + "a.bias": torch.ones(4)}), "'a.bias', which the base has not"),
    "not finite": (lambda t: t[PREFIX + UP_PROJ][2].fill_(torch.nan), r"up_proj\.weight has numbers that are not"),
}


@pytest.mark.parametrize("damage", NAMED)
def test_damage_to_the_trained_weights_is_named(tiny_base: Path, tmp_path: Path, damage: str) -> None:
    trained_whole(tiny_base, tmp_path / "adapter")
    change, message = NAMED[damage]
    rewrite(tmp_path / ADAPTER, change)
    with pytest.raises(MergeError, match=message):
        merge(Base("tiny", tiny_base, {}), tmp_path / "adapter", tmp_path / "merged", "auto", Events())


@pytest.mark.parametrize("damage", ["missing", "another shape", "left over"])
def test_damaged_weights_are_not_put_into_a_model_either(tiny_base: Path, tmp_path: Path, damage: str) -> None:
    trained_whole(tiny_base, tmp_path / "adapter")
    rewrite(tmp_path / ADAPTER, NAMED[damage][0])
    with pytest.raises(ModelError, match="is missing" if damage == "missing" else "has shape"):
        load_adapted(tiny_base, tmp_path / "adapter", torch.float32, "cpu")


def rewrite(path: Path, change: Damage) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_weights_that_are_still_the_bases_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", load_model(tiny_base, torch.float32), "tiny")
    with pytest.raises(MergeError, match=r"all of its 20 tensors are the base's own.*train again"):
        merge(Base("tiny", tiny_base, {}), tmp_path / "adapter", tmp_path / "merged", "auto", Events())


def first_failure(run: RunDirectory) -> tuple[str, str]:
    evidence, _ = verify(read_recipe(run / "recipe.yaml", {}).section(VerifyKeys), run, Events())
    failures = [item for item in evidence if item.verdict == "fail"]
    return failures[0].name, failures[0].detail


def test_verify_names_what_is_wrong_with_merged_weights(run: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    copy = RunDirectory(tmp_path / "run")
    base = load_file(Path(read_recipe(run / "recipe.yaml", {}).model) / "model.safetensors")
    rewrite(copy / "merged" / "model.safetensors", lambda tensors: tensors.update({UP_PROJ: base[UP_PROJ]}))
    name, detail = first_failure(copy)
    assert name == "merged_tensors_exact"
    assert f"{UP_PROJ} is the base's own, not what was trained" in detail
    rewrite(copy / "merged" / "model.safetensors", lambda tensors: tensors[UP_PROJ].mul_(2))
    assert "differs from what was trained" in first_failure(copy)[1]


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"load_in_4bit": True}, "full trains every weight.*4 bits"),
        ({"load_in_8bit": True}, "full trains every weight.*8 bits"),
        ({"lora_r": 8, "use_rslora": True}, "full has no adapter; leave lora_r, use_rslora out"),
        ({"modules_to_save": "lm_head"}, "full has no adapter; leave modules_to_save out"),
    ],
)
def test_keys_that_do_not_go_with_full_are_refused(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=f"finetuning_type: {named}"):
        build_recipe({"data": "rows.jsonl", "finetuning_type": "full", **keys}, "recipe.yaml")


def test_the_learning_rate_begins_lower_where_every_weight_is_trained() -> None:
    given: list[dict[str, Any]] = [{}, {"finetuning_type": "full"}, {"finetuning_type": "full", "lr": 1e-3}]
    recipes = [build_recipe({"data": "rows.jsonl", **keys}, "recipe.yaml") for keys in given]
    assert [recipe.learning_rate for recipe in recipes] == [2e-4, 2e-5, 1e-3]
    assert build_recipe(json.loads(recipes[1].model_dump_json()), "recipe.yaml") == recipes[1]


def test_no_fit_of_full_training_packs_the_base() -> None:
    def predict(config: PlanKeys, limit: int) -> int:
        return (160 if config.bits is None else 40) + config.per_device_train_batch_size * limit

    fit = find_fit(PlanKeys(finetuning_type="full"), predict, 160 + 128, longest=200)
    assert fit is not None
    keys = {change["key"] for change in fit.changes}
    assert "max_length" in keys
    assert not keys & {"load_in_4bit", "load_in_8bit"}
