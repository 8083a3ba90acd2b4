"""The adapter: attach it to a base, read and write its weights under peft's names."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunewright.errors import TrainingError
from tunewright.models.base import with_adapter
from tunewright.models.lora import lora_config
from tunewright.recipe import TrainKeys

ADAPTER_FILE = "adapter_model.safetensors"


def attach_adapter(model: Any, config: TrainKeys) -> Any:
    """`model` with a new LoRA adapter; A is random by `config.seed`, B is zero, so that the model starts as the base.

    Raises:
        RecipeError: no module of the model has one of the names in `lora_target_modules`.
    """
    torch.manual_seed(config.seed)
    return with_adapter(model, lora_config(config))


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's tensors by peft's names, on the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}


def set_adapter_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    from peft import set_peft_model_state_dict

    result = set_peft_model_state_dict(model, weights)
    if result.unexpected_keys:
        raise TrainingError("adapter", f"the model has no place for {result.unexpected_keys[:3]}")


def write_adapter(directory: Path, model: Any, base_name: str) -> None:
    """Write the adapter in peft's format; the same weights give the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"].to_dict()
    config["base_model_name_or_path"] = base_name
    config["inference_mode"] = True
    if not isinstance(config["target_modules"], str):
        config["target_modules"] = sorted(config["target_modules"])
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (directory / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    save_file(adapter_weights(model), directory / ADAPTER_FILE, metadata={"format": "pt"})


def read_adapter_weights(directory: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(directory / ADAPTER_FILE)
    return weights
