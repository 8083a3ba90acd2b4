"""Checkpoints: enough to go on bit by bit as if nothing had happened.

`checkpoints/step-000012/` holds the adapter, the optimizer's tensors and `state.json` with its numbers, the training
log, the key of what is trained, and the hash of the other two files. It appears whole by a rename. Random numbers need
no state: they are seeded by the step. `checkpoints/best/` holds the weights with the lowest held-out loss so far.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunewright.artifacts import publish_directory, read_json, sha256_of_file, write_json
from tunewright.errors import ArtifactError
from tunewright.train.lora import adapter_weights, set_adapter_weights

KEPT = 2
BEST = "best"


@dataclass
class TrainingLog:
    """What training measured, step by step; it stands in `adapter/training.json`.

    Attributes:
        steps: {step, epoch, loss, learning_rate, grad_norm, supervised_tokens} of each optimizer step.
        evaluations: {step, eval_loss, samples} of each evaluation.
        kept: the index of the evaluation whose weights are the result.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    kept: int = -1

    @property
    def kept_evaluation(self) -> dict[str, Any]:
        return self.evaluations[self.kept]

    @property
    def best(self) -> int:
        """The index of the evaluation with the lowest held-out loss, the first of equal ones."""
        return min(range(len(self.evaluations)), key=lambda index: float(self.evaluations[index]["eval_loss"]))


def write_checkpoint(
    directory: Path, step: int, key: str, model: Any, optimizer: torch.optim.Optimizer, log: TrainingLog
) -> None:
    """Write the checkpoint after `step` steps and drop all but the newest few."""
    final = directory / f"step-{step:06d}"
    temporary = directory / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(adapter_weights(model), temporary / "adapter.safetensors")
    tensors, numbers = _optimizer_state(optimizer)
    save_file(tensors, temporary / "optimizer.safetensors")
    state = {
        "step": step,
        "key": key,
        "optimizer": numbers,
        "steps": log.steps,
        "evaluations": log.evaluations,
        "sha256": {path.name: sha256_of_file(path) for path in sorted(temporary.glob("*.safetensors"))},
    }
    write_json(temporary / "state.json", state)
    publish_directory(temporary, final)
    for old in sorted(directory.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def resume_from_checkpoint(
    directory: Path, key: str, model: Any, optimizer: torch.optim.Optimizer
) -> tuple[int, TrainingLog]:
    """Load the newest valid checkpoint of the same training; the steps done and the log, or (0, an empty log)."""
    for path in sorted(directory.glob("step-*"), reverse=True):
        state = _valid_state(path, key)
        if state is not None:
            set_adapter_weights(model, load_file(path / "adapter.safetensors"))
            _restore_optimizer(optimizer, load_file(path / "optimizer.safetensors"), state["optimizer"])
            return state["step"], TrainingLog(state["steps"], state["evaluations"])
    return 0, TrainingLog()


def _valid_state(path: Path, key: str) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = read_json(path / "state.json")
    except ArtifactError:
        return None
    whole = all(
        (path / name).is_file() and sha256_of_file(path / name) == digest for name, digest in state["sha256"].items()
    )
    return state if whole and state["key"] == key else None


def keep_best(directory: Path, model: Any) -> None:
    """Keep the weights of now as the best so far."""
    temporary = directory / ".best.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(adapter_weights(model), temporary / "adapter.safetensors")
    write_json(temporary / "sha256.json", sha256_of_file(temporary / "adapter.safetensors"))
    publish_directory(temporary, directory / BEST)


def restore_best(directory: Path, model: Any) -> None:
    """Put the best weights back into `model`.

    Raises:
        ArtifactError: they are missing or damaged.
    """
    path = directory / BEST / "adapter.safetensors"
    if not path.is_file() or sha256_of_file(path) != read_json(directory / BEST / "sha256.json"):
        raise ArtifactError(str(path), "the best weights are not what was kept", mend="Train again.")
    set_adapter_weights(model, load_file(path))


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_state(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, float]]]:
    """The tensors that an optimizer keeps, by number of the parameter and name; and its plain numbers, likewise."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                # A table may be one tensor for all parameters, which safetensors does not take.
                tensors[f"{index}.{name}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, numbers


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], numbers: dict[str, dict[str, float]]
) -> None:
    parameters = _parameters(optimizer)
    for index, parameter in enumerate(parameters):
        optimizer.state[parameter] = dict(numbers.get(str(index), {}))
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        # torch's AdamW counts its steps on the CPU.
        optimizer.state[parameter][name] = tensor if name == "step" else tensor.to(parameter.device)
