"""Train: proven rows in, an adapter and its canaries out.

In: `tokens/`, `data/eval.jsonl`, `plan.json` and the base.
Out, below `adapter/`: the adapter in peft's format, `training.json` (every step and evaluation), `canaries.json`,
`base.json` (the hash of each of the base's files and tensors).
Always: the same inputs give the same adapter bit by bit on the same machine, interrupted or not.
"""

import importlib.metadata
import math
import platform
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tunewright import __version__
from tunewright.artifacts import RunDirectory, StageResult, read_json, sha256_of_json, write_json
from tunewright.chat.conversation import Conversation
from tunewright.chat.files import read_conversations
from tunewright.chat.prompt import Prompt
from tunewright.chat.rows import TokenRow, TokenRows
from tunewright.chat.supervise import Supervisor
from tunewright.chat.trained import trained_template
from tunewright.engines.canaries import CANARY_BATCH, TOP_K, record_canaries
from tunewright.engines.hf import HFEngine, open_supervisor
from tunewright.errors import RenderError, TrainingError
from tunewright.events import Events
from tunewright.evidence import Evidence, at_most
from tunewright.layouts.fused_lora import fuse_lora_layers
from tunewright.layouts.layout import LAYOUT_FAILURES, Layout, plain_loss
from tunewright.models.base import Base, find_base, load_model
from tunewright.models.tensors import tensor_hashes
from tunewright.recipe import TrainKeys
from tunewright.train.checkpoints import TrainingLog
from tunewright.train.loop import Samples, Trainer, is_out_of_memory
from tunewright.train.lora import attach_adapter, write_adapter

CHECKPOINTS = "checkpoints"
ROWS_COMPARED = 4


def inputs(config: TrainKeys) -> dict[str, str]:
    return {"base": find_base(config).identity}


def run(config: TrainKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    base = find_base(config, events)
    plan = read_json(run / "plan.json")
    accelerator = open_accelerator(plan["dtype"], plan["device"])
    model = load_trainable(config, base, plan)
    supervisor = open_supervisor(base.path, config.model, trained_template(run))
    engine = HFEngine(model, supervisor, "trained model", CANARY_BATCH)
    held_out = held_out_conversations(run)
    train, evaluation = (TokenRows(run / "tokens" / f"{split}.safetensors") for split in ("train", "eval"))
    layout, layout_evidence = choose_layout(config, plan, model, train, accelerator, events)
    asked = dict(islice(proven_prompts(held_out, supervisor), config.sample_prompts))
    samples = Samples(list(asked), list(asked.values()), engine)
    trainer = Trainer(config, model, accelerator, layout, train, evaluation, samples, partial(names_of, run), events)
    key = training_key(config, run, base, layout.kind, plan["dtype"])
    log = trainer.run(run / CHECKPOINTS, key)
    directory = out / "adapter"
    write_adapter(directory, model, base.name)
    write_log(directory / "training.json", log, model, plan)
    write_base(directory / "base.json", base)
    write_canaries(directory / "canaries.json", config, model, engine, held_out, events)
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    facts = {
        "base": base.name,
        "layout": layout.kind,
        "tokens_per_second": trainer.tokens_per_second,
        "out_of_memory": trainer.splits,
    }
    return StageResult(
        [layout_evidence, *check_training(log.steps, log.evaluations)],
        {**facts, **describe_log(log), **parameter_counts(model), "versions": versions()},
    )


def load_trainable(config: TrainKeys, base: Base, plan: dict[str, Any]) -> Any:
    """The base in the planned dtype with a new adapter, ready for the loop."""
    model = load_model(base.path, getattr(torch, plan["dtype"]), plan["device"], config.trust_remote_code)
    model = attach_adapter(model, config)
    fuse_lora_layers(model)
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def names_of(run: RunDirectory, indices: Sequence[int]) -> list[str]:
    names = read_json(run / "tokens" / "index.json")["train"]
    return [names[index] for index in indices]


def training_key(config: TrainKeys, run: RunDirectory, base: Base, layout: str, dtype: str) -> str:
    """The hash of everything that determines the adapter; a checkpoint with another one is not taken."""
    return sha256_of_json(
        {
            "config": config.model_dump(mode="json"),
            "rows": run.require_manifest("render").digest,
            "base": base.identity,
            "layout": layout,
            "dtype": dtype,
        }
    )


def write_log(path: Path, log: TrainingLog, model: Any, plan: dict[str, Any]) -> None:
    where = {"dtype": plan["dtype"], "device": plan["device"]}
    entries = {"steps": log.steps, "evaluations": log.evaluations, "optimizer_steps": len(log.steps)}
    write_json(path, {**entries, **parameter_counts(model), **where})


def describe_log(log: TrainingLog) -> dict[str, Any]:
    return {
        "optimizer_steps": len(log.steps),
        "first_loss": log.steps[0]["loss"],
        "final_loss": log.steps[-1]["loss"],
        "best_eval_loss": best_eval_loss(log.evaluations),
    }


def open_accelerator(dtype: str, device: str) -> Any:
    from accelerate import Accelerator

    return Accelerator(mixed_precision="bf16" if dtype == "bfloat16" else "no", cpu=device == "cpu")


def choose_layout(
    config: TrainKeys, plan: dict[str, Any], model: Any, train: TokenRows, accelerator: Any, events: Events
) -> tuple[Layout, Evidence]:
    """The planned layout, if on real rows it gives the loss that the model gives each row alone; else the padded one.

    Raises:
        TrainingError: the padded layout does not either.
    """
    planned = Layout(
        model,
        plan["layout"],
        plan["device"],
        config.per_device_train_batch_size,
        plan["pack_tokens"],
        plan["keeps_prefix"],
    )
    shortest = sorted(range(len(train)), key=lambda index: train.lengths[index])
    rows = [train[index] for index in shortest[:ROWS_COMPARED]]
    limit = 1e-5 if plan["dtype"] == "float32" else 2e-2
    detail = f"Relative difference of the summed loss of {len(rows)} rows to that of each row alone, before training."
    with torch.no_grad(), accelerator.autocast():
        expected = sum(plain_loss(model, row, plan["device"]) for row in rows)
        for layout in dict.fromkeys((planned, replace(planned, kind="padded"))):
            difference = abs(whole_loss(layout, rows) - expected) / abs(expected)
            if difference <= limit:
                return layout, at_most("layout_is_exact", difference, limit, f"{layout.kind}: {detail}")
            events.warning(
                f"The layout {layout.kind} is not exact for this base (relative difference {difference:.1e})."
            )
    raise TrainingError(
        f"model type {model.config.model_type!r}",
        f"its loss over a batch is not that of its rows alone (relative difference {difference:.1e})",
        mend="Choose another base; please report this one.",
    )


def whole_loss(layout: Layout, rows: Sequence[TokenRow]) -> float:
    """The summed loss in a layout; infinite where the model does not take that layout."""
    try:
        return float(torch.stack(layout.loss_sums(rows, scale=None)).double().sum())
    except LAYOUT_FAILURES as error:
        if layout.kind == "padded" or is_out_of_memory(error):
            raise
        return math.inf


def held_out_conversations(run: RunDirectory) -> list[Conversation]:
    """Conversations that were not trained on; without any, those that were."""
    held_out = list(read_conversations(run / "data" / "eval.jsonl"))
    return held_out or list(read_conversations(run / "data" / "train.jsonl"))


def proven_prompts(
    conversations: Iterable[Conversation], supervisor: Supervisor
) -> Iterator[tuple[Conversation, Prompt]]:
    """Conversations whose last turn is learned and has a proof, each with the prompt of that turn."""
    for conversation in conversations:
        last = conversation.messages[-1]
        if last.role == "assistant" and last.train:
            with suppress(RenderError):
                yield conversation, supervisor.prompt_of(conversation)


def write_base(path: Path, base: Base) -> None:
    record = {"name": base.name, "identity": base.identity, "files": base.files, "tensors": tensor_hashes(base.path)}
    write_json(path, record)


def write_canaries(
    path: Path, config: TrainKeys, model: Any, engine: HFEngine, conversations: list[Conversation], events: Events
) -> None:
    """Record the canaries with the model that is still in memory, its adapter not merged."""
    model.eval()
    events.note(f"Recording {config.canaries} canaries with the trained model.")
    last = list(islice(proven_prompts(reversed(conversations), engine.supervisor), config.canaries))
    prompts = {conversation.id: prompt for conversation, prompt in reversed(last)}
    canaries = record_canaries(engine, prompts, config.canary_tokens)
    if not canaries:
        raise TrainingError("canaries", "no held-out conversation gave an answer")
    dtype = str(model.dtype).removeprefix("torch.")
    write_json(path, {"top_k": TOP_K, "dtype": dtype, "canaries": [canary.as_json() for canary in canaries]})


def parameter_counts(model: Any) -> dict[str, int]:
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"trainable_parameters": trainable, "total_parameters": sum(p.numel() for p in model.parameters())}


def best_eval_loss(evaluations: list[dict[str, Any]]) -> float | None:
    losses = [entry["eval_loss"] for entry in evaluations if entry["eval_loss"] is not None]
    return min(losses, default=None)


def check_training(steps: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> list[Evidence]:
    """That the adapter learned: gradients flowed, and the held-out loss fell and did not climb back."""
    zero = sum(entry["grad_norm"] == 0 for entry in steps)
    evidence = [at_most("steps_without_gradient", zero, 0, f"Of {len(steps)} optimizer steps.")]
    losses = [entry["eval_loss"] for entry in evaluations if entry["eval_loss"] is not None]
    if len(losses) >= 2:
        detail = f"Held-out loss {losses[0]:.3f} before and {losses[-1]:.3f} after training."
        evidence.append(at_most("eval_loss_ratio", losses[-1] / losses[0], 1.0, detail))
        detail = f"Last held-out loss {losses[-1]:.3f} over the best one {min(losses):.3f}: above 1.1 is overfitting."
        evidence.append(at_most("eval_loss_over_best", losses[-1] / min(losses), 1.1, detail).softened())
    return evidence


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "accelerate")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"tunewright": __version__, **found, "python": platform.python_version()}
