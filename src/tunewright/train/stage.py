"""Train: proven rows in, an adapter or every weight out, and its canaries.

In: `tokens/`, `data/eval.jsonl`, `plan.json` and the base.
Out, below `adapter/`: the adapter in peft's format, `training.json` (every step and evaluation), `canaries.json`,
`base.json` (the hash of each of the base's files and tensors); `canaries_quantized.json` where the base was packed.
Where every weight was trained, these stand in the adapter's place, in float32 (`models/whole.py`).
Always: the same inputs give the same adapter bit by bit on the same machine, interrupted or not. `canaries.json` is
what the adapter says over the base as it is stored; of a base that was packed `quantized_base.json` says which of the
two the adapter is merged into.
"""

import gc
import importlib.metadata
import importlib.util
import platform
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tunewright import __version__
from tunewright.artifacts import RunDirectory, StageResult, read_json, write_json
from tunewright.chat.conversation import Conversation
from tunewright.chat.files import read_conversations
from tunewright.chat.prompt import Prompt
from tunewright.chat.rows import TokenRows
from tunewright.chat.supervise import Supervisor
from tunewright.chat.trained import trained_template
from tunewright.engines.canaries import (
    CANARIES,
    CANARY_BATCH,
    QUANTIZED_CANARIES,
    Canary,
    record_canaries,
    write_canaries,
)
from tunewright.engines.hf import HFEngine, open_supervisor
from tunewright.errors import EnvironmentLackError, RenderError
from tunewright.events import Events
from tunewright.evidence import Evidence, at_most, equal
from tunewright.layouts.fused_lora import fuse_lora_layers
from tunewright.models.base import Base, find_base, load_model
from tunewright.models.dequantized import QuantizedBase, record_quantized, write_choice
from tunewright.models.quantized import QuantizedWeights, count_quantized, validate_as_planned
from tunewright.models.tensors import tensor_hashes
from tunewright.recipe import TrainKeys
from tunewright.train.checkpoints import MadeFrom, TrainingLog
from tunewright.train.layout import choose_layout
from tunewright.train.loop import Samples, Trainer
from tunewright.train.lora import make_trainable, write_adapter
from tunewright.train.original import open_original, prove_over_both
from tunewright.train.ranks import TRAIN, Ranks, open_ranks, shard_layers
from tunewright.train.speed import peak_memory_bytes

CHECKPOINTS = "checkpoints"
TRACKERS = "trackers"


def inputs(config: TrainKeys) -> dict[str, str]:
    return {"base": find_base(config).identity}


@dataclass(frozen=True)
class Trained:
    """What is left of a training when its model is gone.

    Attributes:
        log: every step and evaluation.
        canaries: what the model said while it was in memory.
        evidence, facts: for the manifest.
        quantized: what of the base was packed, if it was.
    """

    log: TrainingLog
    canaries: list[Canary]
    evidence: list[Evidence]
    facts: dict[str, Any]
    quantized: QuantizedBase | None


def run(config: TrainKeys, run: RunDirectory, out: Path, events: Events) -> StageResult:
    base = find_base(config, events)
    plan = read_json(run / "plan.json")
    supervisor = open_supervisor(base.path, config.model, trained_template(run))
    ranks = open_ranks()
    ranks.tell(TRAIN)
    trained = train_adapter(config, run, out / "adapter", base, plan, supervisor, events, ranks)
    write_base(out / "adapter" / "base.json", base)
    canaries, evidence = trained.canaries, trained.evidence
    if trained.quantized:
        gc.collect()
        write_canaries(out / "adapter" / QUANTIZED_CANARIES, canaries, plan["dtype"], config.bits)
        rows = list(TokenRows(run / "tokens" / "eval.safetensors"))
        original = open_original(base.path, out / "adapter", plan, supervisor)
        events.note("Recording the canaries again with the base as it is stored.")
        loss = trained.log.kept_evaluation["eval_loss"]
        canaries, found, choice = prove_over_both(original, trained.quantized, canaries, rows, loss, config)
        write_choice(out / "adapter", trained.quantized, choice.as_json())
        evidence += found
    write_canaries(out / "adapter" / CANARIES, canaries, config.weights_dtype(plan["dtype"]), None)
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)
    return StageResult(evidence, trained.facts)


def train_adapter(
    config: TrainKeys,
    run: RunDirectory,
    directory: Path,
    base: Base,
    plan: dict[str, Any],
    supervisor: Supervisor,
    events: Events,
    ranks: Ranks,
) -> Trained:
    """Train, write the adapter and its log into `directory`, and record the canaries; the model is gone afterwards."""
    training = open_training(config, run, base, plan, supervisor, events, ranks)
    trainer, model, layout = training.trainer, training.trainer.model, training.trainer.layout
    log = trainer.run(run / CHECKPOINTS, training.made_from)
    if config.report_to:
        trainer.accelerator.end_training()
    write_adapter(directory, model, base.name)
    write_log(directory / "training.json", log, model, plan)
    facts = {
        "base": base.name,
        "finetuning_type": config.finetuning_type,
        "bits": config.bits,
        "layout": layout.kind,
        **trainer.speed.as_json(),
        "peak_memory_bytes": peak_memory_bytes(layout.device),
        "out_of_memory": trainer.splits,
        **describe_log(log),
        **parameter_counts(model),
        "versions": versions(config),
    }
    evidence = [*training.evidence, *check_training(log)]
    canaries = held_out_canaries(config, model, training.engine, held_out_conversations(run), events)
    quantized = record_quantized(model, config.bits, plan["dtype"], plan["device"]) if config.bits else None
    return Trained(log, canaries, evidence, facts, quantized)


@dataclass(frozen=True)
class Training:
    """What one process trains with.

    Attributes:
        engine: around the trainer's model.
        made_from: everything that determines the adapter.
        evidence: what was seen before the first step.
    """

    trainer: Trainer
    engine: HFEngine
    made_from: MadeFrom
    evidence: list[Evidence]


def open_training(
    config: TrainKeys,
    run: RunDirectory,
    base: Base,
    plan: dict[str, Any],
    supervisor: Supervisor,
    events: Events,
    ranks: Ranks,
) -> Training:
    accelerator = open_accelerator(config, plan, run / TRACKERS)
    model, packed = load_trainable(config, base, plan, ranks)
    engine = HFEngine(model, supervisor, "trained model", CANARY_BATCH)
    train, evaluation = (TokenRows(run / "tokens" / f"{split}.safetensors") for split in ("train", "eval"))
    layout, layout_evidence = choose_layout(config, plan, model, train, accelerator, events)
    count = config.sample_prompts if takes_every_pass(config, ranks) else 0
    asked = dict(islice(proven_prompts(held_out_conversations(run), supervisor), count))
    samples = Samples(list(asked), list(asked.values()), engine)
    names = partial(names_of, run)
    trainer = Trainer(config, model, accelerator, layout, train, evaluation, samples, names, events, ranks)
    made_from = determining(config, run, base, layout.kind, plan["dtype"])
    return Training(trainer, engine, made_from, [layout_evidence, *packed])


def train_beside(config: TrainKeys, run: RunDirectory, ranks: Ranks) -> None:
    """Take this process's share of every step while the first one trains; nothing is written."""
    base, plan = find_base(config), read_json(run / "plan.json")
    supervisor = open_supervisor(base.path, config.model, trained_template(run))
    training = open_training(config, run, base, plan, supervisor, Events(), ranks)
    training.trainer.run(run / CHECKPOINTS, training.made_from)
    if takes_every_pass(config, ranks):
        held_out_canaries(config, training.trainer.model, training.engine, held_out_conversations(run), Events())


def takes_every_pass(config: TrainKeys, ranks: Ranks) -> bool:
    """Whether this process computes what only the first one needs: it must where no process has whole layers."""
    return ranks.is_first or config.fsdp


def load_trainable(config: TrainKeys, base: Base, plan: dict[str, Any], ranks: Ranks) -> tuple[Any, list[Evidence]]:
    """The base in the planned dtype and bits, ready for the loop, and evidence of what is packed."""
    dtype, sharded = getattr(torch, config.weights_dtype(plan["dtype"])), config.fsdp and ranks.count > 1
    device = "cpu" if sharded else plan["device"]
    model = load_model(base.path, dtype, device, config.trust_remote_code, config.bits)
    evidence = check_packed(base, count_quantized(model), plan) if config.bits else []
    model = make_trainable(model, config)
    fuse_lora_layers(model)
    if sharded:
        shard_layers(model, plan["device"])
        model.to(plan["device"])
    if config.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model, evidence


def check_packed(base: Base, found: QuantizedWeights, plan: dict[str, Any]) -> list[Evidence]:
    """That what came out of loading is packed as it was planned; a `ModelError` where it is not."""
    planned = plan["quantized"]
    validate_as_planned(str(base.path), found, planned)
    detail = (
        f"Kept in {plan['bits']} bits: {found.weights} weights in {found.stored_bytes / 2**20:.1f} MiB, as planned."
    )
    return [
        equal("quantized_layers", found.layers, planned["layers"], detail),
        equal("quantized_bytes", found.stored_bytes, planned["stored_bytes"], detail),
    ]


def names_of(run: RunDirectory, indices: Sequence[int]) -> list[str]:
    names = read_json(run / "tokens" / "index.json")["train"]
    return [names[index] for index in indices]


def determining(config: TrainKeys, run: RunDirectory, base: Base, layout: str, dtype: str) -> MadeFrom:
    """Everything that determines the adapter; checkpoints that were made from other things are refused."""
    rows = run.require_manifest("render").digest
    inputs = {**config.determining(), "training rows": rows, "base": base.identity, "layout": layout, "dtype": dtype}
    return MadeFrom(inputs, versions(config))


def write_log(path: Path, log: TrainingLog, model: Any, plan: dict[str, Any]) -> None:
    where = {"dtype": plan["dtype"], "device": plan["device"]}
    kept = {"optimizer_steps": len(log.steps), "kept_step": log.kept_evaluation["step"]}
    entries = {"steps": log.steps, "evaluations": log.evaluations, **kept}
    write_json(path, {**entries, **parameter_counts(model), **where})


def describe_log(log: TrainingLog) -> dict[str, Any]:
    return {
        "optimizer_steps": len(log.steps),
        "kept_step": log.kept_evaluation["step"],
        "first_loss": log.steps[0]["loss"],
        "final_loss": log.steps[-1]["loss"],
        "best_eval_loss": best_eval_loss(log.evaluations),
    }


PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "no"}


def open_accelerator(config: TrainKeys, plan: dict[str, Any], trackers: Path) -> Any:
    """Where and how to compute, with the trackers that the recipe names; those that write files do so in `trackers`.

    Raises:
        EnvironmentLackError: a tracker's package is not installed.
    """
    from accelerate import Accelerator

    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            mend = f"Install it with `pip install {name}`, or leave it out."
            raise EnvironmentLackError("report_to", f"the package {name} is not installed", mend=mend)
    accelerator = Accelerator(
        mixed_precision=PRECISIONS[plan["dtype"]],
        cpu=plan["device"] == "cpu",
        log_with=config.report_to or None,
        project_dir=str(trackers),
    )
    if config.report_to:
        accelerator.init_trackers("tunewright", config=flat_values(config))
    return accelerator


def flat_values(config: TrainKeys) -> dict[str, int | float | str | bool]:
    """The recipe's keys as trackers take them."""
    keys = config.model_dump(mode="json")
    return {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in keys.items()}


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


def held_out_canaries(
    config: TrainKeys, model: Any, engine: HFEngine, conversations: list[Conversation], events: Events
) -> list[Canary]:
    """The canaries of the model that is still in memory, its adapter not merged."""
    model.eval()
    events.note(f"Recording {config.canaries} canaries with the trained model.")
    last = list(islice(proven_prompts(reversed(conversations), engine.supervisor), config.canaries))
    prompts = {conversation.id: prompt for conversation, prompt in reversed(last)}
    return record_canaries(engine, prompts, config.canary_tokens)


def parameter_counts(model: Any) -> dict[str, int]:
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"trainable_parameters": trainable, "total_parameters": sum(p.numel() for p in model.parameters())}


def best_eval_loss(evaluations: list[dict[str, Any]]) -> float | None:
    losses = [entry["eval_loss"] for entry in evaluations if entry["eval_loss"] is not None]
    return min(losses, default=None)


def check_training(log: TrainingLog) -> list[Evidence]:
    """That something was learned: gradients flowed, and the held-out loss fell and did not climb back."""
    zero = sum(entry["grad_norm"] == 0 for entry in log.steps)
    evidence = [at_most("steps_without_gradient", zero, 0, f"Of {len(log.steps)} optimizer steps.")]
    losses = [entry["eval_loss"] for entry in log.evaluations if entry["eval_loss"] is not None]
    if len(losses) >= 2:
        kept = log.kept_evaluation["eval_loss"]
        detail = f"Held-out loss {losses[0]:.3f} before and {kept:.3f} after training."
        evidence.append(at_most("eval_loss_ratio", kept / losses[0], 1.0, detail))
        detail = f"Held-out loss {kept:.3f} of what is kept over the best {min(losses):.3f}: above 1.1 is overfitting."
        evidence.append(at_most("eval_loss_over_best", kept / min(losses), 1.1, detail).softened())
    return evidence


def versions(config: TrainKeys) -> dict[str, str]:
    uses_bitsandbytes = bool(config.bits) or "adamw_torch" != config.optim != "adafactor"
    names = ["torch", "transformers", "peft", "accelerate", *(["bitsandbytes"] if uses_bitsandbytes else [])]
    found = {name: importlib.metadata.version(name) for name in names}
    return {"tunewright": __version__, **found, "python": platform.python_version()}
