"""Kinds of adapters and of training: each goes from training to a merge that is proven."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tiny_bases import write_base
from tunewright.artifacts import RunDirectory, read_json
from tunewright.chat.order import learning_rate_factor
from tunewright.errors import EnvironmentLackError, RecipeError
from tunewright.events import Event, Events
from tunewright.layouts.fused_lora import fuse_lora_layers
from tunewright.layouts.layout import Layout
from tunewright.models.base import find_base, load_model
from tunewright.models.liger import use_liger_kernels
from tunewright.pipeline import run_pipeline
from tunewright.recipe import TrainKeys, VerifyKeys, build_recipe, read_recipe
from tunewright.train.loop import SCALE_GROWTH_STEPS, Trainer, next_loss_scale
from tunewright.train.lora import attach_adapter
from tunewright.verify.parity import check_parity, compare_artifacts

ADAPTER = "adapter/adapter_model.safetensors"


class PulledPlug(BaseException):
    """Ends a run as a power cut would."""


def run_on(recipe: Path, run: Path, until: str, stop_after: int | None = None, **overrides: Any) -> RunDirectory:
    def watch(event: Event) -> None:
        if event["kind"] == "metric" and event["step"] == stop_after and "loss" in event:
            raise PulledPlug

    directory = RunDirectory(run)
    run_pipeline(read_recipe(recipe, overrides), directory, Events(None, (watch,)), until=until)
    return directory


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora with a pattern": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "norms trained whole": {"modules_to_save": ["norm"], "lora_target_modules": ["q_proj", "v_proj"]},
    "gaussian start": {"init_lora_weights": "gaussian", "lora_target_modules": r".*\.(up|down)_proj"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_trained_merged_and_verified(tiny_recipe: Path, tmp_path: Path, kind: str) -> None:
    run = run_on(tiny_recipe, tmp_path / "run", "merge", max_steps=3, **KINDS[kind])
    config = read_recipe(run / "recipe.yaml", {"merged_top1_limit": 0.9}).section(VerifyKeys)
    results = compare_artifacts(config, run, find_base(config), Events(None, ()))
    assert {item.verdict for item in check_parity(results)} == {"pass"}
    assert {entry["artifact"] for entry in results["engines"]} == {"adapter", "merged_in_float32", "merged"}
    names = set(load_file(run / ADAPTER))
    assert any(("magnitude" in name) if kind == "dora" else ("norm" in name) for name in names) == (
        kind in ("dora", "norms trained whole")
    )


@pytest.mark.parametrize(
    ("keys", "fused"),
    [
        ({}, 14),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 2}}, 14),
        ({"use_dora": True}, 0),
        ({"lora_dropout": 0.1}, 0),
        ({"load_in_4bit": True}, 14),
    ],
)
def test_layers_are_fused_where_that_is_exact(tiny_base: Path, keys: dict[str, Any], fused: int) -> None:
    config = TrainKeys(model=str(tiny_base), **keys)
    model = attach_adapter(load_model(tiny_base, torch.float32, bits=config.bits), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(300, 320)[None]
    by_peft = gradients(model.eval(), ids)
    assert fuse_lora_layers(model) == fused
    for found, expected in zip(gradients(model, ids), by_peft, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def gradients(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(model(input_ids=ids, labels=ids).loss, trainable))


@pytest.mark.parametrize("start", ["pissa", "olora", "loftq"])
def test_starts_that_change_the_base_are_refused(start: str) -> None:
    with pytest.raises(RecipeError, match="init_lora_weights"):
        build_recipe({"data": "rows.jsonl", "init_lora_weights": start}, "recipe.yaml")


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_32bit", "adafactor"])
def test_training_resumed_gives_the_same_adapter_with_every_optimizer(
    tiny_recipe: Path, tmp_path: Path, optim: str
) -> None:
    # Rank 64 makes matrices of 4096 numbers and more, of which bitsandbytes keeps the moments in 8 bits.
    settings: dict[str, Any] = {"optim": optim, "max_steps": 4, "save_steps": 2, "lora_r": 64, "learning_rate": 0.001}
    undisturbed = run_on(tiny_recipe, tmp_path / "undisturbed", "train", **settings)
    with pytest.raises(PulledPlug):
        run_on(tiny_recipe, tmp_path / "stopped", "train", stop_after=3, **settings)
    kept = load_file(tmp_path / "stopped" / "checkpoints" / "step-000002" / "optimizer.safetensors")
    assert (torch.uint8 in {tensor.dtype for tensor in kept.values()}) == (optim == "adamw_8bit")
    resumed = run_on(tiny_recipe, tmp_path / "stopped", "train", **settings)
    assert (resumed / ADAPTER).read_bytes() == (undisturbed / ADAPTER).read_bytes()


def test_the_best_weights_are_kept_and_training_ends_where_it_no_longer_helps(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    """A rate that is far too high: the held-out loss soon climbs."""
    settings: dict[str, Any] = {"learning_rate": 0.3, "max_steps": 12, "eval_steps": 1, "lr_scheduler_type": "constant"}
    settings |= {"early_stopping_patience": 2, "accept": ["eval_loss_ratio"], "save_steps": 2}
    run = run_on(tiny_recipe, tmp_path / "run", "train", **settings)
    training = read_json(run / "adapter" / "training.json")
    losses = [entry["eval_loss"] for entry in training["evaluations"]]
    best = losses.index(min(losses))
    assert training["kept_step"] == best
    assert len(losses) == best + 3 < 13
    assert run.require_manifest("train").facts["kept_step"] == best
    only_to_the_best = {**settings, "early_stopping_patience": None, "max_steps": max(best, 1)}
    if best:
        shorter = run_on(tiny_recipe, tmp_path / "shorter", "train", **only_to_the_best)
        assert (shorter / ADAPTER).read_bytes() == (run / ADAPTER).read_bytes()
    with pytest.raises(PulledPlug):
        run_on(tiny_recipe, tmp_path / "stopped", "train", stop_after=best + 2, **settings)
    resumed = run_on(tiny_recipe, tmp_path / "stopped", "train", **settings)
    assert (resumed / ADAPTER).read_bytes() == (run / ADAPTER).read_bytes()


def test_early_stopping_without_held_out_rows_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there are no held-out rows to measure"):
        run_on(tiny_recipe, tmp_path / "run", "train", eval_rows=0, early_stopping_patience=1)


SCHEDULES: dict[str, list[float]] = {
    "linear": [0.5, 1.0, 1.0, 0.75, 0.5, 0.25],
    "cosine": [0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447],
    "cosine_with_min_lr": [0.5, 1.0, 1.0, 0.868198, 0.55, 0.231802],
    "polynomial": [0.5, 1.0, 1.0, 0.5625, 0.25, 0.0625],
    "inverse_sqrt": [0.5, 1.0, 1.0, 0.816497, 0.707107, 0.632456],
    "constant": [1.0] * 6,
    "constant_with_warmup": [0.5, 1.0, 1.0, 1.0, 1.0, 1.0],
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_are_those_of_transformers_without_a_first_step_at_zero(kind: Any) -> None:
    settings: dict[str, Any] = {"lr_scheduler_kwargs": {"power": 2.0}} if kind == "polynomial" else {}
    config = TrainKeys(lr_scheduler_type=kind, warmup_ratio=1 / 3, **settings)
    found = [learning_rate_factor(config, step, 6) for step in range(6)]
    assert found == pytest.approx(SCHEDULES[kind], abs=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine", "cosine_with_min_lr", "polynomial", "inverse_sqrt"])
def test_schedules_behind_the_warm_up_are_transformers_own(kind: Any) -> None:
    from transformers.optimization import get_scheduler

    ours: dict[str, dict[str, float]] = {"polynomial": {"power": 1.5, "lr_end": 1e-5}}
    config = TrainKeys(lr_scheduler_type=kind, warmup_ratio=0.2, lr_scheduler_kwargs=ours.get(kind, {}))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    theirs: dict[str, Any] = {**ours, "cosine_with_min_lr": {"min_lr_rate": 0.1}}
    options = {"num_warmup_steps": 4, "num_training_steps": 20, "scheduler_specific_kwargs": theirs.get(kind)}
    scheduler = get_scheduler(kind, optimizer, **options)
    for step in range(20):
        if step >= 4:
            rate = config.learning_rate * learning_rate_factor(config, step, 20)
            assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_a_setting_that_a_schedule_has_not_is_refused() -> None:
    with pytest.raises(RecipeError, match="cosine has no setting 'power'"):
        build_recipe({"data": "rows.jsonl", "lr_scheduler_kwargs": {"power": 2}}, "recipe.yaml")


def test_a_gradient_that_overflows_does_its_step_again_and_nothing_else_changes(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scale of float16, in float32, where a power of two changes nothing but the exponent."""
    plain = run_on(tiny_recipe, tmp_path / "plain", "train", max_steps=3)
    run_on(tiny_recipe, tmp_path / "scaled", "plan", max_steps=3)
    whole, opened, calls = Layout.loss_sums, Trainer.__init__, iter(range(100))

    def overflowing(layout: Layout, rows: Any, scale: float | None) -> list[torch.Tensor]:
        sums = whole(layout, rows, scale)
        if scale is not None and next(calls) == 1:
            next(p for p in layout.model.parameters() if p.grad is not None).grad.fill_(math.inf)
        return sums

    def scaled(trainer: Trainer, *arguments: Any) -> None:
        opened(trainer, *arguments)
        trainer.loss_scale = 2.0**10

    monkeypatch.setattr(Layout, "loss_sums", overflowing)
    monkeypatch.setattr(Trainer, "__init__", scaled)
    run = run_on(tiny_recipe, tmp_path / "scaled", "train", max_steps=3)
    scales = [entry["loss_scale"] for entry in read_json(run / "adapter" / "training.json")["steps"]]
    assert scales == [2.0**10, 2.0**9, 2.0**9]
    for name, weights in load_file(plain / ADAPTER).items():
        torch.testing.assert_close(load_file(run / ADAPTER)[name], weights, rtol=0, atol=1e-7)


def test_the_loss_scale_grows_where_it_held_for_long() -> None:
    assert next_loss_scale([8.0] * SCALE_GROWTH_STEPS) == 16.0
    assert next_loss_scale([16.0] + [8.0] * (SCALE_GROWTH_STEPS - 1)) == 8.0
    assert next_loss_scale([8.0]) == 8.0


def test_float16_on_a_cpu_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="float16 needs a GPU"):
        run_on(tiny_recipe, tmp_path / "run", "plan", fp16=True)


def test_kernels_for_a_gpu_are_refused_on_a_cpu(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="use_liger_kernel: Liger's kernels need a GPU"):
        run_on(tiny_recipe, tmp_path / "run", "plan", use_liger_kernel=True)


def test_kernels_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(EnvironmentLackError, match="pip install liger-kernel"):
        use_liger_kernels(None)


def test_a_tracker_that_is_not_installed_is_named(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLackError, match="the package no_such_tracker is not installed"):
        run_on(tiny_recipe, tmp_path / "run", "train", report_to="no_such_tracker", max_steps=1)


def test_trackers_get_the_figures_of_every_step(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, dict[str, float]]] = []

    class Recorder(Accelerator):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            assert options.pop("log_with") == ["json"]
            super().__init__(**options)

        def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
            logged.append((step or 0, values))

    monkeypatch.setattr("accelerate.Accelerator", Recorder)
    run_on(tiny_recipe, tmp_path / "run", "train", report_to="json", max_steps=2, eval_steps=2)
    assert [step for step, values in logged if "loss" in values] == [1, 2]
    assert [step for step, values in logged if "eval_loss" in values] == [0, 2]
    assert all(values["grad_norm"] > 0 for _, values in logged if "loss" in values)


def test_layers_whose_bias_is_trained_are_left_to_peft(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "qwen2")
    for bias, fused in (("none", 2 * 7), ("lora_only", 2 * 4)):
        config = TrainKeys.model_validate({"model": str(base), "bias": bias})
        assert fuse_lora_layers(attach_adapter(load_model(base, torch.float32), config)) == fused
