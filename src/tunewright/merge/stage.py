"""Merge: base and adapter in, a 16-bit checkpoint out.

In: `adapter/` and the base. Out: `merged/`, which transformers, vLLM and llama.cpp's converter load.
Always: tensor by tensor on the CPU, in float32, rounded once; the base is the unquantized one that was trained on; the
tokenizer's files are the base's own, byte by byte, but for a chat template that the recipe names; the result is read
back and checked against round(W + s·B·A).
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tunewright.artifacts import RunDirectory, StageResult, read_json, write_json, write_text
from tunewright.chat.trained import trained_template
from tunewright.events import Events
from tunewright.models.adapter import Adapter
from tunewright.models.base import Base, find_base, load_tokenizer, stop_token_ids, validate_same_base
from tunewright.models.merge_check import check_merged
from tunewright.models.tensors import INDEX_FILE, CheckpointTensors
from tunewright.recipe import MergeKeys

SHARD_BYTES = 2 * 2**30
HALF_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
COPIED = ("tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "LICENSE*")


def inputs(config: MergeKeys) -> dict[str, str]:
    return {"base": find_base(config).identity}


def run(config: MergeKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    base = find_base(config, events)
    validate_same_base(base, read_json(run / "adapter" / "base.json")["files"])
    facts = merge(base, run / "adapter", out / "merged", config.merge_dtype, events)
    write_chat_template(out / "merged", trained_template(run).source)
    return StageResult(check_merged(base.path, run / "adapter", out / "merged", events), facts)


def merge(base: Base, adapter_path: Path, merged_path: Path, dtype: str, events: Events) -> dict[str, Any]:
    """Write the merged checkpoint into `merged_path`, a directory that does not exist yet.

    Args:
        dtype: `bfloat16`, `float16`, or `auto`: the base's own if it is one of them, else the one that loses less.

    Returns:
        What was done: dtype, the reason for it, and counts.
    """
    merged_path.mkdir(parents=True)
    with CheckpointTensors(base.path) as tensors, Adapter(adapter_path, tensors) as adapter:
        chosen, reason = choose_dtype(dtype, tensors, adapter)
        write_shards(merged_path, merged_tensors(tensors, adapter, chosen, events))
        count, changed, keys = len(tensors), len(adapter.pairs), len(adapter.tensors)
    write_configuration(base.path, merged_path, chosen)
    name = str(chosen).removeprefix("torch.")
    return {"dtype": name, "dtype_reason": reason, "tensors": count, "merged_tensors": changed, "adapter_keys": keys}


def choose_dtype(dtype: str, base: CheckpointTensors, adapter: Adapter) -> tuple[torch.dtype, str]:
    """The dtype of the merged checkpoint and the reason for it."""
    if dtype != "auto":
        return HALF_DTYPES[dtype], "The recipe asks for it."
    found = {base[name].dtype for name in adapter.pairs}
    if len(found) == 1 and next(iter(found)) in HALF_DTYPES.values():
        return next(iter(found)), "It is the base's own, so that every other tensor stays the base's byte by byte."
    losses = {half: rounding_loss(half, base, adapter) for half in HALF_DTYPES.values()}
    best = min(losses, key=lambda half: losses[half])
    shown = ", ".join(f"{str(half).removeprefix('torch.')} {loss:.3e}" for half, loss in losses.items())
    return best, f"It loses less to rounding (sum of squares: {shown})."


def rounding_loss(dtype: torch.dtype, base: CheckpointTensors, adapter: Adapter) -> float:
    """Sum of the squared rounding errors of the merged tensors; infinite where they overflow."""
    total = 0.0
    for name in adapter.pairs:
        exact = adapter.merged(name, base[name])
        total += float((exact - exact.to(dtype).float()).square().sum())
    return total


def merged_tensors(
    base: CheckpointTensors, adapter: Adapter, dtype: torch.dtype, events: Events
) -> Iterator[tuple[str, torch.Tensor]]:
    progress = events.progress("tensors", len(base))
    for name in base:
        weight = base[name]
        yield name, (adapter.merged(name, weight) if name in adapter.pairs else weight).to(dtype)
        progress.advance()


def write_shards(directory: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Write tensors into files of at most `SHARD_BYTES`, with an index if there are several."""
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    pending_bytes, total_bytes = 0, 0

    def write_pending() -> None:
        save_file(pending, directory / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if pending and pending_bytes + size > SHARD_BYTES:
            write_pending()
            pending_bytes = 0
        pending[name] = tensor.contiguous()
        pending_bytes += size
        total_bytes += size
    write_pending()
    _name_shards(directory, shards, total_bytes)


def _name_shards(directory: Path, shards: list[list[str]], total_bytes: int) -> None:
    if len(shards) == 1:
        (directory / "shard-0").rename(directory / "model.safetensors")
        return
    weight_map = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"shard-{number}").rename(directory / file)
        weight_map.update(dict.fromkeys(names, file))
    write_json(directory / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def write_configuration(base_path: Path, merged_path: Path, dtype: torch.dtype) -> None:
    """config.json with the new dtype, generation_config.json with every stop token, and the base's tokenizer files."""
    for pattern in COPIED:
        for file in sorted(base_path.glob(pattern)):
            shutil.copyfile(file, merged_path / file.name)
    config = json.loads((base_path / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_json(merged_path / "config.json", config)
    generation = base_path / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    stops = sorted(stop_token_ids(base_path, load_tokenizer(base_path)))
    settings["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    write_json(merged_path / "generation_config.json", settings)


def write_chat_template(directory: Path, source: str) -> None:
    """Make `source` the one chat template of a checkpoint, wherever a reader looks for it, unless it is so already."""
    if load_tokenizer(directory).chat_template == source:
        return
    for file in (*directory.glob("*.jinja"), directory / "chat_template.json"):
        file.unlink(missing_ok=True)
    settings_path = directory / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8")) if settings_path.is_file() else {}
    if settings.pop("chat_template", None) is not None:
        write_json(settings_path, settings)
    write_text(directory / "chat_template.jinja", source)
