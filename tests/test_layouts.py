"""Every layout and the fused LoRA layer give the loss and the gradients of plain padded rows computed by peft."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tunewright.chat.order import Schedule, learning_rate_factor, plan_schedule
from tunewright.chat.rows import TokenRow
from tunewright.layouts import loss
from tunewright.layouts.attention import attend_by_segment, packed_attention
from tunewright.layouts.fused_lora import fuse_lora_layers
from tunewright.layouts.layout import Kind, Layout, plain_loss
from tunewright.layouts.packing import LEAST_SHARED, pack, plan_packs
from tunewright.models.base import load_model
from tunewright.recipe import TrainKeys
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


def make_groups() -> list[TokenRow]:
    """Rows of two articles with two questions each, one asked twice, and a row that is the beginning of another."""
    random = np.random.default_rng(1)
    system, *articles = (random.integers(10, 380, size) for size in (20, 30, 25))
    rows = []
    for article in articles:
        for _ in range(2):
            question, answer = random.integers(10, 380, 18), random.integers(10, 380, 6)
            ids = np.concatenate([system, article, question, answer]).astype(np.int32)
            rows.append(TokenRow(ids, np.arange(len(ids)) >= len(ids) - 6, len(ids) - 6))
    short = rows[0].ids[:-2]
    return [*rows, rows[0], TokenRow(short, np.arange(len(short)) >= len(short) - 4, len(short) - 4), *make_rows(2)]


def row_of(*tokens: int, learned: int) -> TokenRow:
    return TokenRow(np.array(tokens, np.int32), np.arange(len(tokens)) >= len(tokens) - learned, len(tokens) - learned)


def assert_exact(
    layout: Layout, rows: list[TokenRow], expected_loss: float, expected: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """That a layout has this loss and these gradients; its own gradients."""
    scale = 1 / sum(int(row.mask.sum()) for row in rows)
    sums: list[torch.Tensor] = []
    found = gradients(layout.model, lambda: sums.extend(layout.loss_sums(rows, scale)))
    assert float(sum(sums)) * scale == pytest.approx(expected_loss, rel=RELATIVE)
    assert relative_difference(found, expected) <= RELATIVE
    return found


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rows", [make_rows(), make_groups()], ids=["one prefix", "groups"])
@pytest.mark.parametrize(
    ("kind", "budget"),
    [("padded", 0), *((kind, budget) for kind in ("packed", "shared_prefix") for budget in (1, 150, 1000))],
)
def test_layout_gives_the_loss_and_gradients_of_single_plain_rows(
    model: Any, rows: list[TokenRow], kind: Kind, budget: int, fused: bool
) -> None:
    expected_loss, expected = reference_gradients(model, rows)
    if fused:
        assert fuse_lora_layers(model) == 14
    found = assert_exact(Layout(model, kind, "cpu", 2, budget), rows, expected_loss, expected)
    assert all(float(gradient.abs().sum()) > 0 for gradient in found.values())


def test_checkpointing_gives_the_same_gradients_in_a_pack(model: Any) -> None:
    rows = make_groups()
    _, expected = reference_gradients(model, rows)
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    layout = Layout(model, "shared_prefix", "cpu", 2, 150, keeps_prefix=False)
    scale = 1 / sum(int(row.mask.sum()) for row in rows)
    found = gradients(model, lambda: layout.loss_sums(rows, scale))
    assert relative_difference(found, expected) <= RELATIVE


def test_loss_without_scale_computes_no_gradients(model: Any) -> None:
    rows = make_rows(2)
    model.zero_grad(set_to_none=True)
    Layout(model, "shared_prefix", "cpu", 2, 1000).loss_sums(rows, scale=None)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_attends_as_before_once_a_pack_is_done(model: Any) -> None:
    usual = model.config._attn_implementation
    Layout(model, "packed", "cpu", 2, 1000).loss_sums(make_rows(2), scale=None)
    assert model.config._attn_implementation == usual


def test_segment_by_segment_attention_is_that_of_the_parts() -> None:
    segments = pack(make_groups()).segments
    generator = torch.Generator().manual_seed(0)
    width, prefix = segments[-1].end, 7
    sizes = ((4, width), (2, prefix + width), (2, prefix + width))
    query, key, value = (torch.randn(1, heads, size, 8, generator=generator).requires_grad_() for heads, size in sizes)
    weights = torch.randn(1, width, 4, 8, generator=generator)
    by_parts, _ = packed_attention(None, query, key, value, None, segments=segments)
    by_segment = attend_by_segment(query, key, value, segments, 8**-0.5).transpose(1, 2)
    torch.testing.assert_close(by_parts, by_segment, rtol=1e-5, atol=1e-6)
    found, expected = (
        torch.autograd.grad((each * weights).sum(), (query, key, value)) for each in (by_parts, by_segment)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_loss_is_that_of_all_logits_whatever_the_model_does_to_them(model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(loss, "LOGITS_BYTES", 1)
    monkeypatch.setattr(loss, "LEAST_POSITIONS", 3)
    inner = model.get_base_model()
    plain = inner.forward
    inner.forward = lambda **inputs: capped(plain(**inputs))
    rows = make_rows(2)
    found = float(sum(Layout(model, "padded", "cpu", 2).loss_sums(rows, scale=None)))
    with torch.no_grad():
        assert found == pytest.approx(sum(plain_loss(model, row, "cpu") for row in rows), rel=1e-6)


def capped(output: Any) -> Any:
    output.logits = torch.tanh(output.logits / 3) * 3
    return output


def test_a_trained_output_layer_gets_its_gradients_too(model: Any) -> None:
    head = model.get_output_embeddings().weight.requires_grad_()
    rows = make_rows(3)
    _, expected = reference_gradients(model, rows)
    assert any(each.shape == head.shape for each in expected.values())
    layout = Layout(model, "shared_prefix", "cpu", 2, 1000)
    scale = 1 / sum(int(row.mask.sum()) for row in rows)
    assert relative_difference(gradients(model, lambda: layout.loss_sums(rows, scale)), expected) <= RELATIVE


def test_a_pack_holds_common_beginnings_once_and_every_target_behind_its_predictor() -> None:
    common = range(100, 100 + LEAST_SHARED)
    rows = [row_of(*common, 7, 8, learned=2), row_of(*common, 9, learned=1), row_of(5, 6, learned=1)]
    found = pack(rows)
    assert found.ids.tolist() == [5, 6, *common, 7, 8, 9]
    assert found.positions.tolist() == [0, 1, *range(LEAST_SHARED + 2), LEAST_SHARED]
    spans = [(each.start, each.end, each.reach) for each in found.segments]
    assert spans == [(0, 2, 2), (2, 18, 21), (18, 20, 20), (20, 21, 21)]
    assert found.targets.tolist() == [7, 8, 9, 6]
    assert found.ids[found.sources].tolist() == [common[-1], 7, common[-1], 5]
    assert pack(rows, sharing=False).tokens == sum(len(row.ids) for row in rows) == found.row_tokens


def test_packs_keep_to_their_budget_and_rows_that_share_stand_together() -> None:
    rows = [*make_rows(), *make_groups()]
    for budget in (90, 200, 1000):
        packs = plan_packs(rows, budget)
        assert sorted(map(id, rows)) == sorted(id(row) for part in packs for row in part)
        assert all(pack(part).tokens <= budget or len(part) == 1 for part in packs)


def test_fusing_leaves_layers_with_dropout_to_peft(tiny_base: Path) -> None:
    adapted = attach_adapter(load_model(tiny_base, torch.float32), TrainKeys(lora_dropout=0.1))
    assert fuse_lora_layers(adapted) == 0


def test_fusing_leaves_layers_of_another_dtype_to_peft(tiny_base: Path) -> None:
    adapted = attach_adapter(load_model(tiny_base, torch.bfloat16), TrainKeys())
    assert fuse_lora_layers(adapted) == 0


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
