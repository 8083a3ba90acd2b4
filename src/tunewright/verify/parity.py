"""Parity: the canaries, answered by each artifact in its engine."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from tunewright.artifacts import RunDirectory, read_json
from tunewright.chat.degenerate import is_degenerate
from tunewright.chat.template import ChatTemplate
from tunewright.chat.trained import trained_template
from tunewright.engines.canaries import (
    CANARY_BATCH,
    QUANTIZED_CANARIES,
    Canary,
    Parity,
    canary_from_json,
    compare_with_canaries,
    held_to,
)
from tunewright.engines.hf import HFEngine, open_hf_engine, open_supervisor
from tunewright.engines.interface import Engine
from tunewright.engines.llama_cpp import LlamaCppEngine
from tunewright.events import Events
from tunewright.evidence import Evidence, at_least, at_most, fact, failed
from tunewright.models.base import Base, compute_device, load_adapted, whole_device
from tunewright.models.dequantized import QuantizedBase, base_of_merge
from tunewright.models.merge_in_memory import merged_in_float32
from tunewright.recipe import Bits, VerifyKeys
from tunewright.verify.limits import (
    Limits,
    exact_limits,
    gguf_limits,
    over_positions,
    rounded_limits,
    top1_left_by,
    with_near_ties,
)

RECORDED = "what the trained model said"
RECORDED_APART = "what the trained adapter said over the base as it is stored (it was trained over fewer bits)"


def compare_artifacts(config: VerifyKeys, run: RunDirectory, base: Base, events: Events) -> dict[str, Any]:
    """Each artifact against the recorded canaries; the content of `verify.json`."""
    dtype, canaries = read_canaries(held_to(run))
    quantized = base_of_merge(run)
    candidates = candidate_engines(config, run, base, dtype, canaries, quantized)
    progress = events.progress("engines", len(candidates))
    entries, answers = [], {}
    against = RECORDED
    if (run / "adapter" / QUANTIZED_CANARIES).is_file():
        entries.append(compare_quantized(config, run, base) | {"against": RECORDED})
        against = RECORDED if quantized else RECORDED_APART
    for label, (limits, open_engine) in candidates.items():
        parity = compare_with(open_engine, canaries)
        answers[parity.engine] = parity.answers
        entries.append(describe(label, parity, canaries, limits) | {"against": against})
        progress.advance()
    texts = [
        {
            "id": canary.id,
            "prompt": canary.prompt.messages[-1].text,
            "recorded": canary.answer,
            "answers": {engine: found[canary.id] for engine, found in answers.items()},
        }
        for canary in canaries
    ]
    return {"engines": entries, "canaries": texts}


def read_canaries(path: Path) -> tuple[torch.dtype, list[Canary]]:
    """The dtype that canaries were recorded in, and the canaries."""
    recorded = read_json(path)
    return getattr(torch, recorded["dtype"]), [canary_from_json(item) for item in recorded["canaries"]]


def compare_quantized(config: VerifyKeys, run: RunDirectory, base: Base) -> dict[str, Any]:
    """The adapter over the packed base that it was trained on, against what that said while it was trained."""
    path = run / "adapter" / QUANTIZED_CANARIES
    bits: Bits = read_json(path)["bits"]
    dtype, canaries = read_canaries(path)
    template = trained_template(run)
    parity = compare_with(lambda: open_adapter(base, run / "adapter", dtype, template, bits), canaries)
    return describe("adapter_as_trained", parity, canaries, exact_limits(config))


def candidate_engines(
    config: VerifyKeys,
    run: RunDirectory,
    base: Base,
    dtype: torch.dtype,
    canaries: list[Canary],
    quantized: QuantizedBase | None,
) -> dict[str, tuple[Limits, Callable[[], Engine]]]:
    """What is compared, by artifact: the limits, and how to open its engine. One is open at a time.

    Where the merge went into what was `quantized`, the adapter over the base as it is stored says nothing of it.
    """
    exact = exact_limits(config)
    template = trained_template(run)
    adapter = run / "adapter"
    candidates: dict[str, tuple[Limits, Callable[[], Engine]]] = {}
    if quantized is None:
        candidates["adapter"] = (exact, lambda: open_adapter(base, adapter, dtype, template))
    if float32_fits(base.path):
        candidates["merged_in_float32"] = (exact, lambda: open_merged_in_float32(base, adapter, template, quantized))
    candidates["merged"] = (
        rounded_limits(config),
        lambda: open_hf_engine(run / "merged", "merged, Hugging Face", CANARY_BATCH, dtype),
    )
    longest = max(len(canary.prompt_ids) + len(canary.answer_ids) for canary in canaries)
    for label, path in run.gguf_files.items():
        candidates[label] = (gguf_limits(config, label), partial(open_gguf, path, label, longest))
    return candidates


def open_adapter(
    base: Base, adapter_path: Path, dtype: torch.dtype, template: ChatTemplate, bits: Bits | None = None
) -> HFEngine:
    """The base with the adapter beside it, as peft loads it from disk; the base packed where `bits` are given."""
    device = compute_device() if bits else whole_device(base.path)
    model = load_adapted(base.path, adapter_path, dtype, device, bits)
    name = f"adapter over {bits} bits, Hugging Face" if bits else "adapter, Hugging Face"
    return HFEngine(model, open_supervisor(base.path, base.name, template), name, CANARY_BATCH)


def open_merged_in_float32(
    base: Base, adapter_path: Path, template: ChatTemplate, quantized: QuantizedBase | None
) -> HFEngine:
    """The base with the adapter merged in memory in float32, nothing rounded: the merge's arithmetic alone."""
    model = merged_in_float32(base.path, adapter_path, compute_device(), quantized)
    supervisor = open_supervisor(base.path, base.name, template)
    return HFEngine(model, supervisor, "merged in float32, Hugging Face", CANARY_BATCH)


def open_gguf(path: Path, label: str, longest: int) -> LlamaCppEngine:
    return LlamaCppEngine(path, f"{label}, llama.cpp", n_ctx=longest + 256)


def float32_fits(base_path: Path) -> bool:
    """Whether the base in float32 takes less than two thirds of the free memory."""
    stored = sum(path.stat().st_size for path in base_path.glob("*.safetensors"))
    return 2 * stored < psutil.virtual_memory().available * 2 / 3


def compare_with(open_engine: Callable[[], Engine], canaries: list[Canary]) -> Parity:
    engine = open_engine()
    try:
        return compare_with_canaries(engine, canaries)
    finally:
        engine.close()


def describe(label: str, parity: Parity, canaries: list[Canary], limits: Limits) -> dict[str, Any]:
    reasons = {name: reason for name, text in parity.answers.items() if (reason := is_degenerate(text))}
    recorded = {canary.id for canary in canaries if is_degenerate(canary.answer)}
    top = [position for canary in canaries for position in canary.top]
    limits = with_near_ties(limits, top, parity.mean_kl)
    return {
        "engine": parity.engine,
        "artifact": label,
        "prompt_ids_equal": parity.prompt_ids_equal,
        "top1_agreement": parity.top1_agreement,
        "clear_top1_agreement": parity.clear_top1_agreement,
        "positions": parity.positions,
        "clear_positions": parity.clear_positions,
        "mean_kl": parity.mean_kl,
        "top1_left_by_kl": top1_left_by(parity.mean_kl, top),
        "greedy_agreement": parity.greedy_agreement,
        "degenerate_answers": len(reasons),
        "degenerate_reasons": reasons,
        "degenerate_recorded": len(recorded),
        "limits": over_positions(limits, parity.positions, parity.clear_positions),
    }


def check_parity(results: dict[str, Any]) -> list[Evidence]:
    """Each engine's figures against their limits."""
    evidence = []
    for entry in results["engines"]:
        label, engine, limits = entry["artifact"], entry["engine"], entry["limits"]
        detail = f"{engine} against {entry['against']}, over {entry['positions']} positions."
        evidence += [
            at_least(f"{label}_prompt_ids_equal", entry["prompt_ids_equal"], 1.0, f"{engine}: share of equal prompts."),
            share_evidence(entry, "top1_agreement", detail + near_ties_in_words(entry)),
            share_evidence(
                entry,
                "clear_top1_agreement",
                f"{engine} against {entry['against']}, over the {entry['clear_positions']} positions where the first "
                "choice was at least 1.5 times as likely as the second.",
            ),
            at_most(f"{label}_mean_kl", entry["mean_kl"], limits["mean_kl"], f"{detail} In nats."),
            fact(f"{label}_greedy_agreement", entry["greedy_agreement"], "Share of the answer before it departs."),
            degenerate_evidence(label, entry),
        ]
    return evidence


def near_ties_in_words(entry: dict[str, Any]) -> str:
    """What its KL explains of the choices that are not the recorded ones; nothing where none is excused."""
    if entry["limits"].get("top1_agreement", 0.0) == 1:
        return ""
    return f" Errors that make up its KL leave {entry['top1_left_by_kl']:.1%} of these choices in place."


def share_evidence(entry: dict[str, Any], figure: str, detail: str) -> Evidence:
    """A share of equal first choices, with a limit where the format has one."""
    name, limit = f"{entry['artifact']}_{figure}", entry["limits"].get(figure)
    return fact(name, entry[figure], detail) if limit is None else at_least(name, entry[figure], limit, detail)


def degenerate_evidence(label: str, entry: dict[str, Any]) -> Evidence:
    """A failure if the engine's answers run in loops or break up where the trained model's own did not."""
    count, recorded = entry["degenerate_answers"], entry["degenerate_recorded"]
    name, limit = f"{label}_degenerate_answers", f"<= {recorded}"
    if count <= recorded:
        return Evidence(
            name, count, limit, "pass", "No loops, repeated words or broken characters beyond the recorded."
        )
    canary, reason = next(iter(entry["degenerate_reasons"].items()))
    return failed(name, count, limit, f"{entry['engine']} on {canary}: {reason}.")
