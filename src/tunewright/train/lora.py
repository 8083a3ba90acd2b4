"""What is trained: an adapter on a base, or every weight; made ready, read and written under peft's names."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tunewright.errors import TrainingError
from tunewright.models.base import with_adapter
from tunewright.models.lora import lora_config
from tunewright.models.whole import put_whole_weights, whole_config, whole_weights
from tunewright.recipe import TrainKeys

ADAPTER_FILE = "adapter_model.safetensors"


def attach_adapter(model: Any, config: TrainKeys) -> Any:
    """`model` with a new LoRA adapter; A is random by `config.seed`, B is zero, so that the model starts as the base.

    Raises:
        RecipeError: no module of the model has one of the names in `lora_target_modules`.
    """
    torch.manual_seed(config.seed)
    return with_adapter(model, lora_config(config))


def make_trainable(model: Any, config: TrainKeys) -> Any:
    """`model` with what the recipe trains: all of its weights, or a new adapter."""
    return model.requires_grad_(True) if config.is_full else attach_adapter(model, config)


def is_adapted(model: Any) -> bool:
    return hasattr(model, "peft_config")


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """What is trained, by peft's names, on the CPU: the adapter's tensors, or every weight."""
    from peft import get_peft_model_state_dict

    if not is_adapted(model):
        return whole_weights(model)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}


def set_adapter_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    from peft import set_peft_model_state_dict

    if not is_adapted(model):
        put_whole_weights(model, weights.items(), "checkpoint")
        return
    result = set_peft_model_state_dict(model, weights)
    if result.unexpected_keys:
        raise TrainingError("adapter", f"the model has no place for {result.unexpected_keys[:3]}")


def write_adapter(directory: Path, model: Any, base_name: str) -> None:
    """Write what was trained, an adapter in peft's format; the same weights give the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    config = peft_config(model, base_name) if is_adapted(model) else whole_config(base_name)
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (directory / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    save_file(adapter_weights(model), directory / ADAPTER_FILE, metadata={"format": "pt"})


def peft_config(model: Any, base_name: str) -> dict[str, Any]:
    """The adapter's configuration as it is written."""
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    if not isinstance(config["target_modules"], str):
        config["target_modules"] = sorted(config["target_modules"])
    return {**config, "base_model_name_or_path": base_name, "inference_mode": True}
