"""What only a GPU can show: `python -m pytest tests/gpu` on a machine that has one; skipped elsewhere.

Layouts, Liger's kernels and the plan, on the device. For whole models: `benchmarks/memory_plan.py --device cuda`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunewright.artifacts import RunDirectory, read_json
from tunewright.chat.rows import TokenRow
from tunewright.events import Events
from tunewright.layouts.fused_lora import fuse_lora_layers
from tunewright.layouts.layout import Kind, Layout
from tunewright.layouts.loss import causal_lm
from tunewright.models.base import load_model
from tunewright.models.liger import use_liger_kernels
from tunewright.pipeline import run_pipeline
from tunewright.recipe import TrainKeys, read_recipe
from tunewright.train.lora import attach_adapter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
PREFIX = 40


def make_rows(count: int) -> list[TokenRow]:
    """Rows of 50 to 90 tokens behind a common prefix of 40, the last ten of each learned."""
    random = np.random.default_rng(0)
    prefix = random.integers(10, 380, PREFIX)
    lengths = random.integers(50, 90, count)
    ids = [np.concatenate([prefix, random.integers(10, 380, size - PREFIX)]).astype(np.int32) for size in lengths]
    return [TokenRow(each, np.arange(len(each)) >= len(each) - 10, len(each) - 10) for each in ids]


def adapted(base: Path, device: str) -> Any:
    """The base in float32 with an adapter whose B is not zero, so that every gradient is."""
    model = attach_adapter(load_model(base, torch.float32, device), TrainKeys(lora_r=4))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def gradients(model: Any, kind: Kind, device: str) -> tuple[float, torch.Tensor]:
    """The summed loss of eight rows in two micro-batches, and all gradients in one vector."""
    model.zero_grad(set_to_none=True)
    losses = Layout(model, kind, device, 4, 300).loss_sums(make_rows(8), 1.0)
    found = [each.grad.flatten().cpu().double() for each in model.parameters() if each.requires_grad]
    return float(torch.stack(losses).double().sum()), torch.cat(found)


def assert_same(found: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor], relative: float) -> None:
    assert float(expected[1].norm()) > 0
    assert found[0] == pytest.approx(expected[0], rel=relative)
    assert float((found[1] - expected[1]).norm() / expected[1].norm()) <= relative


@pytest.mark.parametrize("kind", ["padded", "packed", "shared_prefix"])
def test_every_layout_has_the_gradients_of_the_cpu(tiny_base: Path, kind: Kind) -> None:
    expected = gradients(adapted(tiny_base, "cpu"), "padded", "cpu")
    model = adapted(tiny_base, "cuda")
    fuse_lora_layers(model)
    assert_same(gradients(model, kind, "cuda"), expected, 1e-4)


def test_ligers_kernels_have_the_gradients_of_the_models_own(tiny_base: Path) -> None:
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    model = adapted(tiny_base, "cuda")
    fuse_lora_layers(model)
    expected = gradients(model, "packed", "cuda")
    use_liger_kernels(causal_lm(model))
    assert_same(gradients(model, "packed", "cuda"), expected, 1e-5)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_a_run_passes_its_gates_and_takes_no_more_memory_than_was_planned(
    tiny_recipe: Path, tmp_path: Path, bits: int | None
) -> None:
    packed = {f"load_in_{bits}bit": True} if bits else {}
    run = RunDirectory(tmp_path / "run")
    manifests = run_pipeline(read_recipe(tiny_recipe, packed), run, Events())
    assert manifests["train"].facts["peak_memory_bytes"] <= read_json(run / "plan.json")["peak_bytes"]
    assert read_json(run / "certificate.json")["verdict"] == "pass"
