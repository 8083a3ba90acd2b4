"""One optimizer step of LoRA in several ways: the same rows and gradients, seconds as ratios to peft on padded rows.

usage: python benchmarks/training_step.py RUN   (a run directory that has been rendered, such as runs/support_triage)

Every way computes the gradient of the same loss; the script stops if one differs by more than 1e-4 or is zero.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from tunewright.chat.order import plan_schedule, split_by_length
from tunewright.chat.rows import TokenRows, shared_prefix
from tunewright.layouts.fused_lora import fuse_lora_layers
from tunewright.layouts.layout import Layout
from tunewright.models.base import compute_device, find_base, load_model
from tunewright.recipe import TrainKeys, read_recipe
from tunewright.train.lora import attach_adapter

REPEATS = 3


def main(run: Path) -> None:
    config = read_recipe(run / "recipe.yaml", {}).section(TrainKeys)
    rows = TokenRows(run / "tokens" / "train.safetensors")
    step = [rows[index] for index in plan_schedule(config, len(rows)).rows_of_step(0)]
    prefix = shared_prefix(rows)
    device = compute_device()
    results = {}
    for name, tokens, fused in (
        ("peft, padded", prefix[:0], False),
        ("fused LoRA, padded", prefix[:0], True),
        ("peft, shared prefix", prefix, False),
        ("fused LoRA, shared prefix", prefix, True),
    ):
        model = adapted_model(config, device)
        if fused:
            fuse_lora_layers(model)
        layout = Layout(model, tokens, device)
        results[name] = measure(model, layout, split_by_length(step, config.per_device_train_batch_size))
    reference_seconds, reference = results["peft, padded"]
    print("| way | seconds per step | ratio | gradient difference |\n|---|---|---|---|")
    for name, (seconds, gradient) in results.items():
        difference = float((gradient - reference).norm() / reference.norm())
        if difference > 1e-4 or not float(gradient.norm()):
            raise SystemExit(f"{name}: gradient differs by {difference:.1e}")
        print(f"| {name} | {seconds:.2f} | {reference_seconds / seconds:.2f} | {difference:.1e} |")


def adapted_model(config: TrainKeys, device: str) -> torch.nn.Module:
    model = attach_adapter(load_model(find_base(config).path, torch.float32, device), config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
    model.train()
    return model


def measure(model: torch.nn.Module, layout: Layout, micro_batches: list) -> tuple[float, torch.Tensor]:
    """The median seconds of a step's forward and backward, and its gradient as one vector."""
    supervised = sum(int(row.mask.sum()) for rows in micro_batches for row in rows)
    seconds = []
    for _ in range(REPEATS):
        model.zero_grad(set_to_none=True)
        started = time.perf_counter()
        layout.loss_sums(micro_batches, 1 / supervised)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    gradients = [parameter.grad.flatten().cpu() for parameter in model.parameters() if parameter.requires_grad]
    return statistics.median(seconds), torch.cat(gradients)


if __name__ == "__main__":
    np.seterr(all="raise")
    main(Path(sys.argv[1]))
