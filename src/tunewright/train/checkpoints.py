"""Checkpoints: enough to go on bit by bit as if nothing had happened.

`checkpoints/step-000012/` holds the adapter, the optimizer's moments and `state.json` with the training log, the key of
what is trained, and the hash of the other two files. It appears whole by a rename. Random numbers need no state: they
are seeded by the step.
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


@dataclass
class TrainingLog:
    """What training measured, step by step; it stands in `adapter/training.json`.

    Attributes:
        steps: {step, epoch, loss, learning_rate, grad_norm, supervised_tokens} of each optimizer step.
        evaluations: {step, eval_loss, samples} of each evaluation.
    """

    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


def write_checkpoint(
    directory: Path, step: int, key: str, model: Any, optimizer: torch.optim.Optimizer, log: TrainingLog
) -> None:
    """Write the checkpoint after `step` steps and drop all but the newest few."""
    final = directory / f"step-{step:06d}"
    temporary = directory / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(adapter_weights(model), temporary / "adapter.safetensors")
    save_file(_optimizer_tensors(optimizer), temporary / "optimizer.safetensors")
    state = {
        "step": step,
        "key": key,
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
            _restore_optimizer(optimizer, load_file(path / "optimizer.safetensors"))
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


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": tensor.detach().cpu().contiguous()
        for index, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
