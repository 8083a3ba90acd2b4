"""The merged model in memory in float32, nothing rounded: the merge's arithmetic alone, for proofs."""

from pathlib import Path
from typing import Any

from tunewright.errors import ModelError
from tunewright.models.dequantized import QuantizedBase
from tunewright.models.merge_plan import OpenMerge, plan_merge
from tunewright.models.outline import read_outline


def merged_in_float32(base_path: Path, adapter_path: Path, device: str, quantized: QuantizedBase | None = None) -> Any:
    """The base with the adapter merged as `merge` does it, loaded without a file between; four bytes a weight, twice.

    Raises:
        MergeError: base and adapter do not fit.
        ModelError: the merged weights are not those that the model takes.
    """
    import torch
    from transformers import AutoConfig

    plan = plan_merge(base_path, adapter_path, quantized)
    model_class = type(read_outline(base_path, []).model)
    config = AutoConfig.from_pretrained(str(base_path), local_files_only=True)
    for key, value in plan.settings.items():
        setattr(config, key, value)
        setattr(config.get_text_config(), key, value)
    with OpenMerge(plan) as merge:
        tensors = {name: merge.rounded(name, torch.float32) for name in plan.tensors}
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        missing = sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])])
        raise ModelError(str(base_path), f"merged, it lacks {missing[0]}", mend="Report this base: its layout is new.")
    return model.to(device).eval()
