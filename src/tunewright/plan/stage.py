"""Plan: how the rows will lie, how many steps there will be, what they cost, and whether they fit.

In: `tokens/` and the base's configuration. Out: `plan.json`.
Always: nothing of the base's weights is loaded, and no GPU is needed.
"""

import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from tunewright.artifacts import RunDirectory, StageResult, sha256_of_json, write_json
from tunewright.chat.rows import TokenRow, TokenRows
from tunewright.errors import ModelError, RecipeError
from tunewright.events import Events
from tunewright.evidence import Evidence, fact, failed
from tunewright.layouts.layout import LAYOUT_FAILURES
from tunewright.layouts.packing import plan_packs
from tunewright.models.base import compute_device, find_base, load_config
from tunewright.models.tensors import CheckpointTensors
from tunewright.plan.fit import Fit, find_fit
from tunewright.plan.layout import PlannedLayout, choose_layout
from tunewright.plan.memory import MemoryPrediction, Step, predict_peak_bytes
from tunewright.recipe import PlanKeys

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
EFFICIENCY = 0.4  # Share of a square matrix product's speed that training steps reached where it was measured.


def inputs(config: PlanKeys) -> dict[str, str]:
    files = find_base(config).files
    return {"base_config": sha256_of_json(files["config.json"]), "device": compute_device()}


def run(config: PlanKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    import torch

    base = find_base(config, events)
    base_config = load_config(base.path)
    device = compute_device()
    dtype = choose_dtype(config, device)
    rows = TokenRows(run / "tokens" / "train.safetensors")
    layout = choose_layout(config, base_config, rows)

    def predict(changed: PlanKeys, limit: int) -> MemoryPrediction:
        """What a step of a changed recipe takes, with rows cut to `limit` tokens."""
        planned = layout
        if changed != config:
            planned = replace(choose_layout(changed, base_config, rows), kind=layout.kind)
        return predict_peak_bytes(
            base_config,
            changed,
            base_dtype=getattr(torch, dtype),
            compute_dtype=getattr(torch, dtype),
            step=largest_step(changed, rows, planned, limit),
            device=device,
        )

    longest = max(rows.lengths)
    try:
        prediction = predict(config, longest)
    except LAYOUT_FAILURES as error:
        if layout.kind == "padded":
            raise ModelError(f"model type {base_config.model_type!r}", f"a step of it fails ({error})") from None
        reason = f"The base cannot attend over packs ({type(error).__name__}), so rows are padded."
        layout = replace(layout, kind="padded", reason=reason)
        prediction = predict(config, longest)
    budget = memory_budget_bytes(config.memory_budget, device)
    plan: dict[str, Any] = {
        "layout": layout.kind,
        "layout_reason": layout.reason,
        "pack_tokens": layout.pack_tokens,
        "keeps_prefix": layout.keeps_prefix,
        "effective_batch_size": config.effective_batch_size,
        "optimizer_steps": layout.schedule.steps,
        "steps_per_epoch": -(-len(rows) // config.effective_batch_size),
        "tokens_per_epoch_padded": layout.epoch_tokens["padded"],
        "tokens_per_epoch": layout.epoch_tokens[layout.kind],
        "peak_bytes": prediction.peak_bytes,
        "budget_bytes": budget,
        "fits": prediction.peak_bytes <= budget,
        "breakdown": prediction.breakdown,
        "bits": config.bits,
        "quantized": prediction.quantized.as_json() if prediction.quantized else None,
        "changes": [],
        "dtype": dtype,
        "device": device,
    }
    fit = None
    if not plan["fits"]:
        events.note("The step does not fit into memory: looking for the cheapest change that does.")
        fit = find_fit(config, lambda changed, limit: predict(changed, limit).peak_bytes, budget, longest)
        plan["changes"] = fit.changes if fit else []
    seconds = seconds_per_step(plan, base.path, supervised_tokens(rows))
    plan |= {"seconds_per_step": seconds, "seconds": round(seconds * plan["optimizer_steps"], 1)}
    write_json(out / "plan.json", plan)
    return StageResult(check_plan(plan, fit), {key: value for key, value in plan.items() if key != "seconds"})


def choose_dtype(config: PlanKeys, device: str) -> str:
    """What the recipe asks for, else what the device is good at; the optimizer's side is float32 in any case."""
    import torch

    if config.fp16 and device == "cpu":
        raise RecipeError("fp16", "float16 needs a GPU", mend="Leave it out: a CPU computes in float32.")
    if config.fp16 or config.bf16:
        return "float16" if config.fp16 else "bfloat16"
    if device == "cpu" or config.bf16 is False:
        return "float32"
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32" if config.fp16 is False else "float16"


def largest_step(config: PlanKeys, rows: TokenRows, layout: PlannedLayout, limit: int) -> Step:
    """The two most expensive micro-batches: those of a step of the longest rows, each cut to `limit` tokens."""
    longest = sorted(range(len(rows)), key=lambda index: -rows.lengths[index])[: config.effective_batch_size]
    step = [cut(rows[index], limit) for index in longest]
    size, keeps = config.per_device_train_batch_size, layout.keeps_prefix
    if layout.kind == "padded":
        return Step(step[: 2 * size], layout.kind, size, 0, keeps)
    packs = plan_packs(step, layout.pack_tokens, 0, layout.kind == "shared_prefix")
    largest = sorted(packs, key=lambda each: -sum(len(row.ids) for row in each))[:2]
    return Step([row for each in largest for row in each], layout.kind, size, layout.pack_tokens, keeps)


def cut(row: TokenRow, limit: int) -> TokenRow:
    """The row's first tokens, of which the last is learned, as in every row that is trained on."""
    if len(row.ids) <= limit:
        return row
    mask = row.mask[:limit].copy()
    mask[-1] = True
    return TokenRow(row.ids[:limit], mask, min(row.prompt_length, limit - 1))


def supervised_tokens(rows: TokenRows) -> int:
    return sum(int(row.mask.sum()) for row in rows)


def memory_budget_bytes(text: str | None, device: str) -> int:
    """The bytes that `24GiB` and the like mean; without a text, what is free on the device now."""
    if text is not None:
        match = re.fullmatch(r"\s*([0-9.]+)\s*([KMG]i?B)\s*", text)
        if not match:
            raise RecipeError("memory_budget", f"found {text!r}", expected="a size such as 24GiB")
        return int(float(match[1]) * UNITS[match[2]])
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def seconds_per_step(plan: dict[str, Any], base_path: Path, supervised: int) -> float:
    """Seconds of an optimizer step, from its floating-point operations and a matrix product timed on this machine.

    A LoRA step costs four operations per weight of a linear layer and token: two forward, and two for the gradients of
    activations (there are none for frozen weights). The output layer sees supervised tokens alone.
    """
    body, head = linear_parameters(base_path)
    operations = 4 * (plan["tokens_per_epoch"] * body + supervised * head) / plan["steps_per_epoch"]
    return round(float(operations) / (EFFICIENCY * matmul_flops(plan["dtype"], plan["device"])), 3)


def linear_parameters(base_path: Path) -> tuple[int, int]:
    """Weights of the linear layers inside the body, and of the output layer, read from the checkpoint's headers."""
    with CheckpointTensors(base_path) as tensors:
        shapes = {name: tensors.shape(name) for name in tensors}
    matrices = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) == 2}
    head = max((size for name, size in matrices.items() if "embed" in name or "lm_head" in name), default=0)
    body = sum(size for name, size in matrices.items() if "embed" not in name and "lm_head" not in name)
    return body, head


def matmul_flops(dtype: str, device: str, size: int = 1024, repeats: int = 8) -> float:
    """Floating-point operations per second of a square matrix product, the best of a few."""
    import torch

    left = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        (left @ left)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def check_plan(plan: dict[str, Any], fit: Fit | None) -> list[Evidence]:
    peak, budget = plan["peak_bytes"], plan["budget_bytes"]
    detail = f"Predicted peak {peak / 2**30:.2f} GiB of {budget / 2**30:.2f} GiB."
    if plan["fits"]:
        fits = Evidence("memory_fits", peak, f"<= {budget}", "pass", detail)
    elif fit:
        mend = f" With {fit.options} it takes {fit.peak_bytes / 2**30:.2f} GiB{fit.price}."
        fits = failed("memory_fits", peak, f"<= {budget}", detail + mend)
    else:
        fits = failed("memory_fits", peak, f"<= {budget}", f"{detail} No change of the recipe makes it fit.")
    return [fits, fact("optimizer_steps", plan["optimizer_steps"], plan["layout_reason"])]
