"""Plan: how the rows will lie, how many steps there will be, what they cost, and whether they fit.

In: `tokens/` and the base's configuration. Out: `plan.json`.
Always: nothing of the base's weights is loaded, and no GPU is needed.
"""

import math
import re
import time
from dataclasses import dataclass, replace
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
from tunewright.models.base import Base, compute_device, find_base, load_config
from tunewright.models.tensors import CheckpointTensors
from tunewright.parallel import launched_processes
from tunewright.plan.fit import Fit, find_fit
from tunewright.plan.layout import PlannedLayout, choose_layout
from tunewright.plan.memory import Device, MemoryPrediction, Step, predict_peak_bytes
from tunewright.recipe import PlanKeys

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
# What a CUDA process takes beside its tensors: its context with the kernels, and cuBLAS's workspaces. An assumption: it
# depends on the driver and the card.
CONTEXT_BYTES = 600 << 20
EFFICIENCY = 0.4  # Share of a square matrix product's speed that training steps reached where it was measured.


def inputs(config: PlanKeys) -> dict[str, str]:
    files = find_base(config).files
    return {"base_config": sha256_of_json(files["config.json"]), "device": compute_device()}


def run(config: PlanKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    result = plan_for(config, run, events, compute_device())
    write_json(out / "plan.json", result.facts)
    return StageResult(result.evidence, {key: value for key, value in result.facts.items() if key != "seconds"})


def plan_for(
    config: PlanKeys, run: RunDirectory, events: Events, device: Device, card_bytes: int | None = None
) -> StageResult:
    """The plan of a rendered run on a device; its facts are what `plan.json` holds.

    Args:
        card_bytes: the memory of a GPU that need not be here; None plans for the device that is.
    """
    planner = open_planner(config, find_base(config, events), run, device)
    plan = planner.plan()
    if card_bytes is None:
        plan["budget_bytes"] = memory_budget_bytes(config.memory_budget, device)
    else:
        plan["breakdown"]["context"] = CONTEXT_BYTES
        plan |= {"budget_bytes": card_bytes, "peak_bytes": plan["peak_bytes"] + CONTEXT_BYTES}
    plan["fits"] = plan["peak_bytes"] <= plan["budget_bytes"]
    fit = None
    if not plan["fits"]:
        events.note("The step does not fit into memory: looking for the cheapest change that does.")
        beside = plan["breakdown"].get("context", 0)
        fit = planner.find_fit(plan["budget_bytes"] - beside)
        plan["changes"] = fit.changes if fit else []
    operations = step_operations(config, plan, planner.base.path, supervised_tokens(planner.rows))
    seconds = None if card_bytes else seconds_of(operations, plan)
    plan["seconds_per_step"] = seconds
    plan["seconds"] = round(seconds * plan["optimizer_steps"], 1) if seconds else None
    return StageResult(check_plan(plan, fit), plan)


@dataclass(frozen=True)
class Planner:
    """What a plan is made from.

    Attributes:
        base_config: transformers' configuration of the base.
        layout: how the rows will lie.
        prediction: what a step of the recipe as it is takes.
    """

    config: PlanKeys
    base: Base
    base_config: Any
    rows: TokenRows
    device: Device
    dtype: str
    layout: PlannedLayout
    prediction: MemoryPrediction | None = None

    @property
    def longest(self) -> int:
        return max(self.rows.lengths)

    def predict(self, changed: PlanKeys, limit: int, ceiling: float = math.inf) -> MemoryPrediction:
        """What a step of a changed recipe takes, with rows cut to `limit` tokens, or that it is above a ceiling."""
        import torch

        planned = self.layout
        if changed != self.config:
            planned = replace(choose_layout(changed, self.base_config, self.rows), kind=self.layout.kind)
        prediction = predict_peak_bytes(
            self.base_config,
            changed,
            base_dtype=getattr(torch, changed.weights_dtype(self.dtype)),
            compute_dtype=getattr(torch, self.dtype),
            step=largest_step(changed, self.rows, planned, limit),
            device=self.device,
            ceiling=math.inf if changed.fsdp else ceiling,
        )
        return prediction.sharded(launched_processes()) if changed.fsdp else prediction

    def find_fit(self, budget_bytes: int) -> Fit | None:
        return find_fit(
            self.config,
            lambda changed, limit: self.predict(changed, limit, budget_bytes).peak_bytes,
            budget_bytes,
            self.longest,
        )

    def plan(self) -> dict[str, Any]:
        """What will happen, and what it takes; whether that fits is not said here."""
        layout, prediction = self.layout, self.prediction or self.predict(self.config, self.longest)
        return {
            "layout": layout.kind,
            "layout_reason": layout.reason,
            "pack_tokens": layout.pack_tokens,
            "keeps_prefix": layout.keeps_prefix,
            "effective_batch_size": self.config.effective_batch_size,
            "optimizer_steps": layout.schedule.steps,
            "steps_per_epoch": -(-len(self.rows) // self.config.effective_batch_size),
            "tokens_per_epoch_padded": layout.epoch_tokens["padded"],
            "tokens_per_epoch": layout.epoch_tokens[layout.kind],
            "peak_bytes": prediction.peak_bytes,
            "breakdown": dict(prediction.breakdown),
            "bits": self.config.bits,
            "quantized": prediction.quantized.as_json() if prediction.quantized else None,
            "changes": [],
            "dtype": self.dtype,
            "device": self.device,
        }


def open_planner(config: PlanKeys, base: Base, run: RunDirectory, device: Device) -> Planner:
    """The planner of a rendered run, with the layout that the base can do.

    Raises:
        ModelError: not even a padded step of the base can be traced.
    """
    base_config, rows = load_config(base.path), TokenRows(run / "tokens" / "train.safetensors")
    layout = choose_layout(config, base_config, rows)
    planner = Planner(config, base, base_config, rows, device, choose_dtype(config, device), layout)
    try:
        return replace(planner, prediction=planner.predict(config, planner.longest))
    except LAYOUT_FAILURES as error:
        if layout.kind == "padded":
            raise ModelError(f"model type {base_config.model_type!r}", f"a step of it fails ({error})") from None
        reason = f"The base cannot attend over packs ({type(error).__name__}), so rows are padded."
        return replace(planner, layout=replace(layout, kind="padded", reason=reason))


def choose_dtype(config: PlanKeys, device: str) -> str:
    """What the recipe asks for, else what the device is good at; the optimizer's side is float32 in any case."""
    import torch

    if config.use_liger_kernel and device == "cpu":
        raise RecipeError("use_liger_kernel", "Liger's kernels need a GPU", mend="Leave it out.")
    if config.fp16 and device == "cpu":
        raise RecipeError("fp16", "float16 needs a GPU", mend="Leave it out: a CPU computes in float32.")
    if config.fp16 or config.bf16:
        return "float16" if config.fp16 else "bfloat16"
    if device == "cpu" or config.bf16 is False:
        return "float32"
    # A card that is not here is taken for one of the last years.
    has_bfloat16 = not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
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


def bytes_of(text: str, where: str) -> int:
    """The bytes that `24GiB` and the like mean."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B)\s*", text)
    if not match:
        raise RecipeError(where, f"found {text!r}", expected="a size such as 24GiB")
    return int(float(match[1]) * UNITS[match[2]])


def memory_budget_bytes(text: str | None, device: str) -> int:
    """What the recipe allows; without a word, what is free on the device now."""
    if text is not None:
        return bytes_of(text, "memory_budget")
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def step_operations(config: PlanKeys, plan: dict[str, Any], base_path: Path, supervised: int) -> float:
    """Floating-point operations of an optimizer step, per weight of a linear layer and token: two forward, two for the
    gradients of activations, and two for those of weights, where these are trained. The output layer sees supervised
    tokens alone.
    """
    body, head = linear_parameters(base_path)
    per_weight = 6 if config.is_full else 4
    return float(per_weight * (plan["tokens_per_epoch"] * body + supervised * head) / plan["steps_per_epoch"])


def seconds_of(operations: float, plan: dict[str, Any]) -> float:
    """How long so many operations take, by a matrix product timed on this machine."""
    return round(operations / (EFFICIENCY * matmul_flops(plan["dtype"], plan["device"])), 3)


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
