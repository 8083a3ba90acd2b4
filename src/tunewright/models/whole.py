"""Weights that were trained whole: every parameter of a model, where there is no adapter beside a frozen base.

They are kept as peft keeps modules that it saves whole: in an adapter's files, in float32, under `base_model.model.`
and the parameter's name. So a merge takes them as it takes such modules of an adapter: what stands there takes the
place of the base's tensor, rounded once. Always: each parameter stands there once, also one that has two names in the
model, such as an embedding that is the head as well.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from tunewright.errors import ModelError
from tunewright.models.safetensors_file import TensorReader, file_tensors

PREFIX = "base_model.model."
KIND, WHOLE = "finetuning_type", "full"


def whole_config(base_name: str) -> dict[str, Any]:
    """What `adapter_config.json` says of such weights; peft knows no type for them."""
    return {KIND: WHOLE, "base_model_name_or_path": base_name, "peft_type": None, "task_type": "CAUSAL_LM"}


def is_whole(adapter_config: dict[str, Any]) -> bool:
    return adapter_config.get(KIND) == WHOLE


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter by its key, on the CPU; there they are the model's own, not copies."""
    parameters = sorted(model.named_parameters())
    return {f"{PREFIX}{name}": parameter.detach().cpu().contiguous() for name, parameter in parameters}


@torch.no_grad()
def put_whole_weights(model: Any, weights: Iterable[tuple[str, torch.Tensor]], where: str) -> None:
    """Give the model these weights.

    Raises:
        ModelError: they are not exactly those that it has.
    """
    parameters = {f"{PREFIX}{name}": parameter for name, parameter in model.named_parameters()}
    for key, tensor in weights:
        parameter = parameters.pop(key, None)
        if parameter is None or parameter.shape != tensor.shape:
            expected = f"shape {list(parameter.shape)}" if parameter is not None else "no such weight"
            raise ModelError(where, f"{key} has shape {list(tensor.shape)}", expected, "Train again.")
        parameter.copy_(tensor)
    if parameters:
        raise ModelError(where, f"{min(parameters)!r} is missing", "a tensor for each weight", "Train again.")


def read_whole_weights(path: Path, model: Any) -> None:
    """Give the model the weights in a file, one tensor in memory at a time; raises as `put_whole_weights` does."""
    with TensorReader() as reader:
        put_whole_weights(model, ((key, reader.read(tensor)) for key, tensor in file_tensors(path).items()), str(path))
