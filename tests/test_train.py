"""Training: exact resume, a clear stop where the loss is not finite, and what the log says."""

import signal
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tunewright.artifacts import RunDirectory, read_json
from tunewright.chat.rows import TokenRow
from tunewright.errors import RecipeError, TrainingError
from tunewright.events import Event, Events
from tunewright.layouts import attention
from tunewright.layouts.layout import Layout
from tunewright.pipeline import run_pipeline
from tunewright.recipe import read_recipe
from tunewright.train import loop, stage
from tunewright.train.loop import Trainer

usual_versions = stage.versions
LAYOUTS = ("padded", "packed", "shared_prefix")


class PulledPlug(BaseException):
    """Ends a run as a power cut would: nothing that catches errors sees it."""


def train(
    tiny_recipe: Path, run: Path, stop_after_step: int | None = None, until: str = "train", **overrides: Any
) -> RunDirectory:
    def watch(event: Event) -> None:
        if event["kind"] == "metric" and event["step"] == stop_after_step and "loss" in event:
            raise PulledPlug

    directory = RunDirectory(run)
    run_pipeline(read_recipe(tiny_recipe, overrides), directory, Events(None, (watch,)), until=until)
    return directory


def adapter_bytes(run: RunDirectory) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_training_resumed_in_the_middle_of_an_epoch_gives_the_same_adapter_bit_by_bit(
    tiny_recipe: Path, tmp_path: Path, dropout: float
) -> None:
    settings: dict[str, Any] = {"lora_dropout": dropout, "save_steps": 3, "max_steps": 8}
    undisturbed = train(tiny_recipe, tmp_path / "undisturbed", **settings)
    with pytest.raises(PulledPlug):
        train(tiny_recipe, tmp_path / "stopped", stop_after_step=5, **settings)
    resumed = train(tiny_recipe, tmp_path / "stopped", **settings)
    assert adapter_bytes(resumed) == adapter_bytes(undisturbed)
    for name in ("training.json", "canaries.json"):
        assert (resumed / "adapter" / name).read_bytes() == (undisturbed / "adapter" / name).read_bytes()


@pytest.mark.parametrize("under_way", ["evaluate", "save"])
def test_an_interrupt_between_steps_loses_none_of_them(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, under_way: str
) -> None:
    settings: dict[str, Any] = {"save_steps": 100 if under_way == "evaluate" else 4, "eval_steps": 4, "max_steps": 8}
    undisturbed = train(tiny_recipe, tmp_path / "undisturbed", **settings)

    usual, interrupts = getattr(Trainer, under_way), count()

    def interrupted(trainer: Trainer, *arguments: Any) -> Any:
        if len(trainer.log.steps) == 4 and next(interrupts) == 0:
            signal.raise_signal(signal.SIGINT)
        return usual(trainer, *arguments)

    monkeypatch.setattr(Trainer, under_way, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe, tmp_path / "stopped", **settings)
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["step-000004"]
    assert adapter_bytes(train(tiny_recipe, tmp_path / "stopped", **settings)) == adapter_bytes(undisturbed)


@pytest.mark.parametrize("optim", ["adamw_torch", "paged_adamw_8bit"])
def test_a_step_on_the_longest_rows_before_the_first_one_leaves_nothing_behind(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    settings: dict[str, Any] = {"save_steps": 2, "max_steps": 4, "optim": optim}
    plain = train(tiny_recipe, tmp_path / "plain", **settings)
    monkeypatch.setattr(loop, "REHEARSED_ON", {"cpu"})
    with pytest.raises(PulledPlug):
        train(tiny_recipe, tmp_path / "rehearsed", stop_after_step=3, **settings)
    rehearsed = train(tiny_recipe, tmp_path / "rehearsed", **settings)
    assert adapter_bytes(rehearsed) == adapter_bytes(plain)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tiny_recipe: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_steps": 2, "max_steps": 6}
    undisturbed = train(tiny_recipe, tmp_path / "undisturbed", **settings)
    with pytest.raises(PulledPlug):
        train(tiny_recipe, tmp_path / "stopped", stop_after_step=5, **settings)
    newest = tmp_path / "stopped" / "checkpoints" / "step-000004" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\xff")
    assert adapter_bytes(train(tiny_recipe, tmp_path / "stopped", **settings)) == adapter_bytes(undisturbed)


def test_a_checkpoint_of_another_recipe_is_refused_by_what_differs_and_left_on_demand(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"save_steps": 2, "max_steps": 6}
    with pytest.raises(PulledPlug):
        train(tiny_recipe, tmp_path / "run", stop_after_step=5, **settings)
    settings["learning_rate"] = 0.001
    with pytest.raises(
        TrainingError, match=r"step-000004: .*learning_rate 0\.01, now 0\.001; .*resume=never"
    ) as refusal:
        train(tiny_recipe, tmp_path / "run", **settings)
    assert refusal.value.found.count(", now ") == 1, "nothing else differs"
    changed = train(tiny_recipe, tmp_path / "run", resume="never", **settings)
    fresh = train(tiny_recipe, tmp_path / "fresh", **settings)
    assert adapter_bytes(changed) == adapter_bytes(fresh)


def test_a_checkpoint_of_other_rows_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(PulledPlug):
        train(tiny_recipe, tmp_path / "run", stop_after_step=5, save_steps=2, max_steps=6)
    with pytest.raises(TrainingError, match="training rows"):
        train(tiny_recipe, tmp_path / "run", save_steps=2, max_steps=6, system_prompt="Another one.")


def test_a_checkpoint_of_other_libraries_is_taken_on_demand_alone(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"save_steps": 2, "max_steps": 6}
    with monkeypatch.context() as patch:
        patch.setattr(stage, "versions", lambda config: {**usual_versions(config), "torch": "2.11.0"})
        with pytest.raises(PulledPlug):
            train(tiny_recipe, tmp_path / "run", stop_after_step=5, **settings)
    with pytest.raises(TrainingError, match=r"torch 2\.11\.0, now .*any_versions"):
        train(tiny_recipe, tmp_path / "run", **settings)
    resumed = train(tiny_recipe, tmp_path / "run", resume="any_versions", **settings)
    assert adapter_bytes(resumed) == adapter_bytes(train(tiny_recipe, tmp_path / "fresh", **settings))


def test_how_to_resume_decides_nothing_that_is_made(tiny_recipe: Path, tmp_path: Path) -> None:
    done = train(tiny_recipe, tmp_path / "run", max_steps=2)
    before = done.require_manifest("train")
    assert train(tiny_recipe, tmp_path / "run", max_steps=2, resume="never").require_manifest("train") == before


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step \d+: the loss is nan .* its rows are rows.jsonl:\d+, "):
        train(tiny_recipe, tmp_path / "run", learning_rate=1e30, warmup_ratio=0.0)
    assert not (tmp_path / "run" / "adapter").exists()


def test_the_loss_of_a_step_does_not_depend_on_the_micro_batches(tiny_recipe: Path, tmp_path: Path) -> None:
    """The mean over the supervised tokens of the step, whether it takes one micro-batch or four."""
    losses = []
    for size, steps in ((4, 1), (1, 4)):
        run = train(
            tiny_recipe,
            tmp_path / f"run-{size}",
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        losses.append([entry["loss"] for entry in read_json(run / "adapter" / "training.json")["steps"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
def test_fifty_steps_have_the_same_losses_in_every_layout(tiny_recipe: Path, tmp_path: Path) -> None:
    losses = {}
    for layout in LAYOUTS:
        run = train(tiny_recipe, tmp_path / layout, max_steps=50, learning_rate=1e-3, layout=layout)
        losses[layout] = [entry["loss"] for entry in read_json(run / "adapter" / "training.json")["steps"]]
    assert losses["padded"][-1] < losses["padded"][0] - 0.1
    assert losses["packed"] == pytest.approx(losses["padded"], abs=1e-4)
    assert losses["shared_prefix"] == pytest.approx(losses["padded"], abs=1e-4)


def test_training_lowers_the_loss_and_every_step_has_a_gradient(tiny_recipe: Path, tmp_path: Path) -> None:
    run = train(tiny_recipe, tmp_path / "run", max_steps=10)
    steps = read_json(run / "adapter" / "training.json")["steps"]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert all(entry["grad_norm"] > 0 for entry in steps)
    assert [entry["step"] for entry in steps] == list(range(1, 11))


@pytest.mark.parametrize("seed", range(4))
def test_running_out_of_memory_at_any_point_changes_nothing_that_is_learned(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    settings: dict[str, Any] = {"max_steps": 8, "per_device_train_batch_size": 4, "layout": LAYOUTS[seed % 3]}
    undisturbed = adapter_weights_of(train(tiny_recipe, tmp_path / "undisturbed", **settings))
    train(tiny_recipe, tmp_path / "disturbed", until="plan", **settings)
    points, calls = set(np.random.default_rng(seed).choice(8, 5, replace=False)), count()
    whole = Layout.loss_sums

    def without_memory(layout: Layout, rows: Sequence[TokenRow], scale: float | None) -> list[torch.Tensor]:
        found = whole(layout, rows, scale)
        if scale is not None and next(calls) in points and layout.smaller(rows) is not None:
            raise torch.OutOfMemoryError("as if")
        return found

    monkeypatch.setattr(Layout, "loss_sums", without_memory)
    run = train(tiny_recipe, tmp_path / "disturbed", **settings)
    assert run.require_manifest("train").facts["out_of_memory"] >= 2
    disturbed = adapter_weights_of(run)
    for name, weights in undisturbed.items():
        torch.testing.assert_close(disturbed[name], weights, rtol=0, atol=1e-6)


def test_a_single_row_without_memory_ends_the_run_and_says_how_to_mend_it(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_recipe, tmp_path / "run", until="plan", max_steps=2)
    whole = Layout.loss_sums

    def without_memory(layout: Layout, rows: Sequence[TokenRow], scale: float | None) -> list[torch.Tensor]:
        if scale is not None:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return whole(layout, rows, scale)

    monkeypatch.setattr(Layout, "loss_sums", without_memory)
    with pytest.raises(TrainingError, match=r"memory ran out with a single row of .* gradient_checkpointing"):
        train(tiny_recipe, tmp_path / "run", max_steps=2)


def test_a_base_that_cannot_attend_over_packs_is_trained_on_padded_rows(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_segments(*_: Any, **__: Any) -> Any:
        raise TypeError("packed_attention() missing 1 required keyword-only argument: 'segments'")

    monkeypatch.setattr(attention, "packed_attention", without_segments)
    run = train(tiny_recipe, tmp_path / "run", max_steps=2)
    assert read_json(run / "plan.json")["layout"] == "padded"
    assert "cannot attend over packs" in read_json(run / "plan.json")["layout_reason"]
    monkeypatch.undo()
    train(tiny_recipe, tmp_path / "late", until="plan", max_steps=2)
    monkeypatch.setattr(attention, "packed_attention", without_segments)
    late = train(tiny_recipe, tmp_path / "late", max_steps=2)
    assert read_json(late / "plan.json")["layout"] == "shared_prefix"
    assert late.require_manifest("train").facts["layout"] == "padded"
    assert adapter_bytes(late) == adapter_bytes(run)


def adapter_weights_of(run: RunDirectory) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(run / "adapter" / "adapter_model.safetensors")
    return found


def test_unknown_target_modules_are_refused_by_name(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no_such_layer"):
        train(tiny_recipe, tmp_path / "run", lora_target_modules=["no_such_layer"])
