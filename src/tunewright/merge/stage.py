"""Merge: base and adapter in, a 16-bit checkpoint out.

In: `adapter/` and the base. Out: `merged/`, which transformers, vLLM and llama.cpp's converter load.
Always: planned and validated before anything is written; tensor by tensor on the CPU, in float32, rounded once, with a
few blocks in memory; the base is the unquantized one that was trained on, or what the bits make of it that it was kept
in for training, where that does better on held-out rows; the tokenizer is the base's own, with the chat template that
was trained; the result is read back and checked against its recomputation.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, StageResult, read_json, record_of_file, sha256_of_json
from tunewright.events import Events
from tunewright.merge.apply import JOURNAL, finished_shards, write_shards
from tunewright.merge.provenance import validate_sixteen_bits
from tunewright.models.adapter import ADAPTER_FILE, CONFIG_FILE
from tunewright.models.base import Base, find_base, validate_same_base
from tunewright.models.checkpoint_check import check_readers
from tunewright.models.checkpoint_directory import write_chat_template, write_configuration
from tunewright.models.dequantized import QuantizedBase, choose_base
from tunewright.models.merge_check import check_merged
from tunewright.models.merge_dtype import choose_dtype
from tunewright.models.merge_layout import lay_out, write_index
from tunewright.models.merge_plan import MergePlan, OpenMerge, plan_merge
from tunewright.recipe import MergeKeys

UNFINISHED = "merging"


def inputs(config: MergeKeys) -> dict[str, str]:
    return {"base": find_base(config).identity}


def run(config: MergeKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    base = find_base(config, events)
    validate_same_base(base, read_json(run / "adapter" / "base.json")["files"])
    validate_sixteen_bits(base)
    unfinished = run / UNFINISHED
    template = read_json(run / "tokens" / "template.json")
    stop_ids = frozenset(template["stop_ids"])
    chosen = choose_base(run / "adapter", config.merge_into)
    facts = merge(base, run / "adapter", unfinished, config.merge_dtype, events, stop_ids, chosen.quantized)
    unfinished.rename(out / "merged")
    write_chat_template(out / "merged", template["chat_template"])
    evidence = [
        *check_merged(base.path, run / "adapter", out / "merged", events, chosen.quantized),
        *check_readers(out / "merged", stop_ids),
        *chosen.evidence,
    ]
    return StageResult(evidence, {**facts, "merged_into": chosen.into})


def merge(
    base: Base,
    adapter_path: Path,
    merged_path: Path,
    dtype: str,
    events: Events,
    stop_ids: frozenset[int] = frozenset(),
    quantized: QuantizedBase | None = None,
) -> dict[str, Any]:
    """Write the merged checkpoint into `merged_path`; what an earlier try of the same left there is taken up.

    Args:
        stop_ids: ids that end a turn, beside those that the base states.
        dtype: `bfloat16`, `float16`, or `auto`: the base's own if it is one of them, else the one that loses less.
        quantized: what was trained over in fewer bits, to merge into that.

    Returns:
        What was done: dtype, the reason for it, and counts.

    Raises:
        MergeError: base and adapter do not fit, or a result is not finite; nothing that looks finished is left behind.
    """
    plan = plan_merge(base.path, adapter_path, quantized)
    with OpenMerge(plan) as opened:
        chosen, reason = choose_dtype(dtype, opened)
        shards = lay_out(plan, chosen)
        key = merge_key(plan, str(chosen), shards)
        if not finished_shards(merged_path, key):
            shutil.rmtree(merged_path, ignore_errors=True)
        merged_path.mkdir(parents=True, exist_ok=True)
        write_shards(merged_path, shards, opened, key, events)
    write_index(merged_path, shards)
    write_configuration(base.path, merged_path, chosen, plan.settings, stop_ids)
    (merged_path / JOURNAL).unlink()
    name = str(chosen).removeprefix("torch.")
    counts = {"tensors": len(plan.tensors), "merged_tensors": len(plan.touched), "adapter_keys": plan.adapter_keys}
    return {"dtype": name, "dtype_reason": reason, **counts, "shards": len(shards), **plan.settings}


def merge_key(plan: MergePlan, dtype: str, shards: list[Any]) -> str:
    """The hash of everything that determines the shards; a try with another one is not taken up."""
    sources = sorted({tensor.source.path for tensor in plan.tensors.values()})
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    adapter = [asdict(record_of_file(plan.adapter_path / name)) for name in (ADAPTER_FILE, CONFIG_FILE)]
    packed = asdict(plan.quantized) if plan.quantized else None
    layout = [[shard.file, list(shard.tensors)] for shard in shards]
    return sha256_of_json(
        {"sources": states, "adapter": adapter, "dtype": dtype, "layout": layout, "quantized": packed}
    )
