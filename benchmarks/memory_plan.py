"""Predicted memory of a training step against what a real one takes.

usage: python benchmarks/memory_plan.py [--device cpu|cuda] [--steps 2]

Each configuration is predicted as `tunewright plan` does, from shapes alone. Then a checkpoint with random weights of
those shapes is written, loaded, given an adapter and trained for a few steps on the same micro-batches, each side in a
process of its own. On the CPU every tensor's storage of the last step is traced, on a GPU it is the allocator's
`max_memory_allocated`. A gradient of zero ends the benchmark.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recipes import BASES, LONGEST, Shape, made_rows, shape

from tunewright.models.base import Base
from tunewright.plan.layout import choose_layout
from tunewright.plan.stage import Planner, largest_step
from tunewright.recipe import PlanKeys

SMALL = {"SmolLM2 135M": shape("LlamaConfig", 576, 1536, 30, 9, 3, 49_152, tie_word_embeddings=True)}
CHECKPOINTED = {"gradient_checkpointing": True}
# Small micro-batches, so that a step on a CPU takes a minute at most.
ONE_ROW = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
ON_CPU: list[tuple[str, dict[str, Any]]] = [
    ("SmolLM2 135M", {**ONE_ROW, **keys})
    for keys in (
        {"layout": "padded"},
        {"layout": "padded", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
        {"layout": "padded", **CHECKPOINTED},
        {"layout": "packed"},
        {"layout": "shared_prefix"},
        {"layout": "shared_prefix", **CHECKPOINTED},
        {"layout": "padded", "load_in_8bit": True},
        {"layout": "padded", "load_in_4bit": True},
        {"layout": "padded", "load_in_4bit": True, **CHECKPOINTED},
    )
]
ON_GPU: list[tuple[str, dict[str, Any]]] = [
    (name, keys)
    for name in BASES
    for keys in ({}, CHECKPOINTED, {"load_in_8bit": True, **CHECKPOINTED}, {"load_in_4bit": True, **CHECKPOINTED})
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, name, keys = arguments.side
        print("RESULT", json.dumps(SIDES[side](name, json.loads(keys), arguments.device, arguments.steps)))
        return 0
    print("| base | settings | predicted GiB | measured GiB | difference | gradient norm |\n|---|---|---|---|---|---|")
    worst = 0.0
    for name, keys in ON_CPU if arguments.device == "cpu" else ON_GPU:
        predicted, measured = (result_of(side, name, keys, arguments) for side in SIDES)
        if not measured["grad_norm"]:
            raise SystemExit(f"{name} {keys}: the gradient is zero")
        difference = predicted["bytes"] / measured["bytes"] - 1
        worst = max(worst, abs(difference))
        settings = (
            ", ".join(f"{key} {value}" for key, value in keys.items() if ONE_ROW.get(key) != value) or "as they come"
        )
        sizes = " | ".join(f"{each['bytes'] / 2**30:.3f}" for each in (predicted, measured))
        print(f"| {name} | {settings} | {sizes} | {difference:+.1%} | {measured['grad_norm']:.3g} |", flush=True)
    print(f"\nLargest difference: {worst:.1%}.")
    return 0


def result_of(side: str, name: str, keys: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    options = ["--device", arguments.device, "--steps", str(arguments.steps)]
    done = subprocess.run(
        [sys.executable, __file__, *options, "--side", side, name, json.dumps(keys)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{name} {keys}: {side} ended with {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def planner_of(base: Shape, keys: dict[str, Any], device: str, directory: Path) -> Planner:
    config, base_config, rows = PlanKeys(**keys), base.config(), made_rows(directory)
    layout = choose_layout(config, base_config, rows)
    dtype = "float32" if device == "cpu" else "bfloat16"
    return Planner(config, Base("random", directory, {}), base_config, rows, device, dtype, layout)  # type: ignore[arg-type]


def predict(name: str, keys: dict[str, Any], device: str, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        planner = planner_of({**BASES, **SMALL}[name], keys, device, Path(directory))
        return {"bytes": planner.predict(planner.config, LONGEST).peak_bytes}


def measure(name: str, keys: dict[str, Any], device: str, steps: int) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from tunewright.layouts.fused_lora import fuse_lora_layers
    from tunewright.layouts.layout import Layout
    from tunewright.models.base import load_model
    from tunewright.models.optimizer import open_optimizer
    from tunewright.plan.memory import StorageLog
    from tunewright.train.lora import attach_adapter

    with tempfile.TemporaryDirectory() as directory:
        planner = planner_of({**BASES, **SMALL}[name], keys, device, Path(directory))
        config, dtype = planner.config, getattr(torch, planner.dtype)
        AutoModelForCausalLM.from_config(planner.base_config, dtype=dtype).save_pretrained(directory)
        model = attach_adapter(load_model(Path(directory), dtype, device, bits=config.bits), config)
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        fuse_lora_layers(model)
        model.train()
        step = largest_step(config, planner.rows, planner.layout, LONGEST)
    layout = Layout(model, step.kind, device, step.batch_size, step.budget, step.keeps_prefix)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = open_optimizer(config, parameters, device)
    supervised = sum(int(row.mask.sum()) for row in step.rows)

    def take_step() -> float:
        layout.loss_sums(step.rows, 1 / supervised)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    for _ in range(steps - 1):
        take_step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return {"grad_norm": take_step(), "bytes": torch.cuda.max_memory_allocated()}
    log = StorageLog(planner.base_config.vocab_size)
    state = [value for values in optimizer.state.values() for value in values.values()]
    for tensor in (*model.parameters(), *model.buffers(), *packed_state(model), *state):
        if isinstance(tensor, torch.Tensor):
            log.record(tensor)
    with log:
        norm = take_step()
    return {"grad_norm": norm, "bytes": log.peak_bytes}


def packed_state(model: Any) -> list[Any]:
    """What bitsandbytes keeps beside the packed weights."""
    from tunewright.models.quantized import packed_tensors, quantized_layers

    return [tensor for layer in quantized_layers(model) for tensor in packed_tensors(layer)]


SIDES = {"predict": predict, "measure": measure}

if __name__ == "__main__":
    sys.exit(main())
