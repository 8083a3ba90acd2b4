"""Checkpoints: enough to go on bit by bit as if nothing had happened.

`checkpoints/step-000012/` holds the adapter, the optimizer's tensors and `state.json` with its numbers, the training
log, everything that determines the training, and the hash of the other two files. It appears whole by a rename. Random
numbers need no state: they are seeded by the step. `checkpoints/best/` holds the weights with the lowest held-out loss
so far.
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunewright.artifacts import publish_directory, read_json, sha256_of_file, write_json
from tunewright.errors import ArtifactError, TrainingError
from tunewright.recipe import Resume
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


@dataclass(frozen=True)
class MadeFrom:
    """Everything that determines a training, as JSON.

    Attributes:
        inputs: the recipe's keys, and hashes of rows and base.
        versions: of the libraries and of Python.
    """

    inputs: dict[str, Any]
    versions: dict[str, str]


def write_checkpoint(
    directory: Path, step: int, made_from: MadeFrom, model: Any, optimizer: torch.optim.Optimizer, log: TrainingLog
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
        "made_from": asdict(made_from),
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
    directory: Path, made_from: MadeFrom, resume: Resume, model: Any, optimizer: torch.optim.Optimizer
) -> tuple[int, TrainingLog]:
    """Load the newest whole checkpoint; the steps done and the log, or (0, an empty log).

    Raises:
        TrainingError: it was made from something else, and `resume` does not allow that.
    """
    if resume == "never":
        shutil.rmtree(directory, ignore_errors=True)
    for path in sorted(directory.glob("step-*"), reverse=True):
        state = _whole_state(path)
        if state is not None:
            _validate_same_training(path, state["step"], MadeFrom(**state["made_from"]), made_from, resume)
            set_adapter_weights(model, load_file(path / "adapter.safetensors"))
            _restore_optimizer(optimizer, load_file(path / "optimizer.safetensors"), state["optimizer"])
            return state["step"], TrainingLog(state["steps"], state["evaluations"])
    return 0, TrainingLog()


def _whole_state(path: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = read_json(path / "state.json")
    except ArtifactError:
        return None
    whole = all(
        (path / name).is_file() and sha256_of_file(path / name) == digest for name, digest in state["sha256"].items()
    )
    return state if whole and "made_from" in state else None


def _validate_same_training(path: Path, step: int, old: MadeFrom, new: MadeFrom, resume: Resume) -> None:
    where, anew = f"{path.parent.name}/{path.name}", "or begin anew with -o resume=never"
    if others := _differences(old.inputs, new.inputs):
        mend = f"Put that back to go on from step {step}, {anew}."
        raise TrainingError(where, f"it was made otherwise: {others}", "the same settings, rows and base", mend)
    if resume == "exact" and (others := _differences(old.versions, new.versions)):
        mend = f"Install those again, go on with these by -o resume=any_versions, {anew}."
        raise TrainingError(where, f"it was made with other libraries: {others}", "the same, to the last bit", mend)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {str(old.get(name))[:40]}, now {str(new.get(name))[:40]}" for name in names)


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
