"""Every layout and the fused LoRA layer give the loss and the gradients of plain padded rows computed by peft."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tunewright.chat.order import Schedule, learning_rate_factor, plan_schedule, split_by_length
from tunewright.chat.rows import TokenRow, shared_prefix_length
from tunewright.models.base import load_model
from tunewright.recipe import TrainKeys
from tunewright.train.fused_lora import fuse_lora_layers
from tunewright.layouts.layout import Layout
from tunewright.train.lora import attach_adapter

PREFIX = 40
RELATIVE = 1e-5


def make_rows(count: int = 6) -> list[TokenRow]:
    """Rows with a common prefix of 40 tokens, then 5 to 20 unlearned and 3 to 18 learned ones."""
    random = np.random.default_rng(0)
    prefix = random.integers(10, 380, PREFIX)
    rows = []
    for _ in range(count):
        prompt, answer = (
            random.integers(10, 380, random.integers(5, 20)),
            random.integers(10, 380, random.integers(3, 18)),
        )
        ids = np.concatenate([prefix, prompt, answer]).astype(np.int32)
        mask = np.arange(len(ids)) >= PREFIX + len(prompt)
        rows.append(TokenRow(ids, mask, PREFIX + len(prompt)))
    return rows


@pytest.fixture
def model(tiny_base: Path) -> Any:
    """The tiny base in float32 with an adapter whose B is not zero, so that every gradient is."""
    config = TrainKeys(lora_r=4, lora_alpha=8)
    adapted = attach_adapter(load_model(tiny_base, torch.float32), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    return adapted


def gradients(model: Any, compute: Callable[[], Any]) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    compute()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def relative_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys()
    squared = sum(float((found[name] - expected[name]).square().sum()) for name in expected)
    return float((squared / sum(float(value.square().sum()) for value in expected.values())) ** 0.5)


def reference_gradients(model: Any, rows: list[TokenRow]) -> tuple[float, dict[str, torch.Tensor]]:
    """One row at a time through plain Hugging Face and peft, all logits computed, nothing shared."""
    supervised = sum(int(row.mask.sum()) for row in rows)
    total = 0.0

    def compute() -> None:
        nonlocal total
        for row in rows:
            ids = torch.from_numpy(row.ids.astype(np.int64))
            logits = model(input_ids=ids[None]).logits[0]
            learned = torch.from_numpy(row.mask[1:])
            loss = F.cross_entropy(logits[:-1][learned], ids[1:][learned], reduction="sum") / supervised
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()

    found = gradients(model, compute)
    return total, found


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("prefix_length", [0, PREFIX])
def test_layout_gives_the_loss_and_gradients_of_single_plain_rows(
    model: Any, prefix_length: int, size: int, fused: bool
) -> None:
    rows = make_rows()
    expected_loss, expected = reference_gradients(model, rows)
    if fused:
        assert fuse_lora_layers(model) == 14
    layout = Layout(model, rows[0].ids[:prefix_length], "cpu")
    scale = 1 / sum(int(row.mask.sum()) for row in rows)
    sums: list[float] = []
    found = gradients(model, lambda: sums.extend(layout.loss_sums(split_by_length(rows, size), scale)))
    assert sum(sums) * scale == pytest.approx(expected_loss, rel=RELATIVE)
    assert relative_difference(found, expected) <= RELATIVE
    assert all(float(gradient.abs().sum()) > 0 for gradient in found.values())


def test_loss_without_scale_computes_no_gradients(model: Any) -> None:
    rows = make_rows(2)
    model.zero_grad(set_to_none=True)
    Layout(model, rows[0].ids[:PREFIX], "cpu").loss_sums([rows], scale=None)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fusing_leaves_layers_with_dropout_to_peft(tiny_base: Path) -> None:
    adapted = attach_adapter(load_model(tiny_base, torch.float32), TrainKeys(lora_dropout=0.1))
    assert fuse_lora_layers(adapted) == 0


def test_fusing_leaves_layers_of_another_dtype_to_peft(tiny_base: Path) -> None:
    adapted = attach_adapter(load_model(tiny_base, torch.bfloat16), TrainKeys())
    assert fuse_lora_layers(adapted) == 0


def test_micro_batch_predicts_each_supervised_token_from_the_one_before() -> None:
    row = TokenRow(np.array([7, 8, 9, 10], np.int32), np.array([False, False, True, True]), 2)
    batch = build_micro_batch([row], 0, "cpu")
    assert batch.predicts_BT.tolist() == [[False, True, True, False]]
    assert batch.targets_N.tolist() == [9, 10]


def test_micro_batch_targets_stand_in_the_order_of_the_rows() -> None:
    rows = [
        TokenRow(np.array([1, 2, 3], np.int32), np.array([False, True, True]), 1),
        TokenRow(np.array([1, 4], np.int32), np.array([False, True]), 1),
    ]
    batch = build_micro_batch(rows, 0, "cpu")
    assert batch.targets_N.tolist() == [2, 3, 4]
    assert batch.ids_BT.tolist() == [[1, 2, 3], [1, 4, 0]]


def test_shared_prefix_leaves_the_predictor_of_the_first_supervised_token_with_each_row() -> None:
    first = TokenRow(np.array([5, 6, 7, 8], np.int32), np.array([False, False, True, True]), 2)
    second = TokenRow(np.array([5, 6, 7, 9], np.int32), np.array([False, False, False, True]), 3)
    assert shared_prefix_length([first, second]) == 1


def test_order_of_rows_is_a_pure_function_of_seed_and_step() -> None:
    schedule = Schedule(rows=10, batch_size=4, rows_to_see=25, seed=3)
    assert schedule.steps == 7
    seen = [index for step in range(7) for index in schedule.rows_of_step(step)]
    assert len(seen) == 25
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]
    again = Schedule(rows=10, batch_size=4, rows_to_see=25, seed=3)
    assert again.rows_of_step(5) == schedule.rows_of_step(5)


def test_schedule_takes_max_steps_over_epochs() -> None:
    assert plan_schedule(TrainKeys(max_steps=3, num_train_epochs=9), rows=100).steps == 3


def test_learning_rate_warms_up_and_decays_to_zero() -> None:
    config = TrainKeys(warmup_ratio=0.2, lr_scheduler_type="linear")
    factors = [learning_rate_factor(config, step, 10) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[-1] == pytest.approx(0.125)
    assert learning_rate_factor(config, 10, 10) == 0.0
    cosine = TrainKeys(warmup_ratio=0.0, lr_scheduler_type="cosine")
    assert learning_rate_factor(cosine, 5, 10) == pytest.approx(0.5)
