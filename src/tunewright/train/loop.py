"""The training loop: one optimizer step after the other, evaluations between them, checkpoints on the way.

The loss of a step is the mean cross-entropy over the supervised tokens of the whole step, however many micro-batches it
takes. Every random number is seeded by the step, so that a resumed run computes what an undisturbed one would have.
In float16 the loss is multiplied by a power of two, so that small gradients do not vanish; where large ones overflow,
the step is done again with half of it, and no step is lost.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunewright.chat.conversation import Conversation
from tunewright.chat.degenerate import is_degenerate
from tunewright.chat.order import Schedule, learning_rate_factor, plan_schedule
from tunewright.chat.prompt import Prompt
from tunewright.chat.rows import TokenRow, TokenRows
from tunewright.engines.hf import HFEngine
from tunewright.errors import RecipeError, TrainingError
from tunewright.events import Events
from tunewright.layouts.layout import Layout
from tunewright.models.optimizer import open_optimizer
from tunewright.parallel import interrupts_deferred
from tunewright.recipe import TrainKeys
from tunewright.train.checkpoints import (
    MadeFrom,
    TrainingLog,
    keep_best,
    restore_best,
    resume_from_checkpoint,
    write_checkpoint,
)
from tunewright.train.ranks import Ranks
from tunewright.train.speed import KINDS, Speed, peak_memory_bytes

EVALUATIONS_PER_RUN = 4
CHECKPOINTS_PER_RUN = 8
SAMPLE_TOKENS = 128
# Devices whose memory has to hold a step before training begins; a CPU's is not the trainer's alone.
REHEARSED_ON = frozenset({"cuda"})
FIRST_LOSS_SCALE, LEAST_LOSS_SCALE, SCALE_GROWTH_STEPS = 2.0**16, 2.0, 2000
TRACKED = ("loss", "learning_rate", "grad_norm", "epoch", "supervised_tokens", "peak_memory_bytes", *KINDS)


@dataclass(frozen=True)
class Samples:
    """Held-out conversations whose last turn is answered at each evaluation, by an engine around the model."""

    conversations: Sequence[Conversation]
    prompts: Sequence[Prompt]
    engine: HFEngine

    def answer(self) -> list[dict[str, str]]:
        if not self.conversations:
            return []
        answers = self.engine.greedy([self.engine.prompt_ids(prompt) for prompt in self.prompts], SAMPLE_TOKENS)
        return [
            {
                "id": conversation.id,
                "prompt": conversation.prompt[-1].text,
                "target": conversation.target,
                "answer": self.engine.decode(ids),
            }
            for conversation, ids in zip(self.conversations, answers, strict=True)
        ]


class Trainer:
    """Trains what of `model` takes gradients: its adapter, or every weight.

    Args:
        config: the recipe's section.
        model: the base with its adapter, or to be trained itself.
        accelerator: where and in what precision the model computes.
        layout: how losses are computed.
        train, evaluation: proven rows.
        samples: what is answered at each evaluation.
        row_names: the names of training rows, by index, for messages.
        events: where progress goes.
        ranks: the processes that train together; each has a trainer, which takes its share of every step.
    """

    def __init__(
        self,
        config: TrainKeys,
        model: Any,
        accelerator: Any,
        layout: Layout,
        train: TokenRows,
        evaluation: TokenRows,
        samples: Samples,
        row_names: Callable[[Sequence[int]], list[str]],
        events: Events,
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.model = model
        self.accelerator = accelerator
        self.layout = layout
        self.train = train
        self.evaluation = evaluation
        self.samples = samples
        self.row_names = row_names
        self.events = events
        self.ranks = ranks
        self.schedule: Schedule = plan_schedule(config, len(train))
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = torch.device(layout.device)
        self.optimizer = open_optimizer(config, self.parameters, self.device.type)
        self.log = TrainingLog()
        self.loss_scale = FIRST_LOSS_SCALE if accelerator.mixed_precision == "fp16" else 1.0
        self.speed = Speed()
        self.splits = 0

    def run(self, checkpoints: Path, made_from: MadeFrom) -> TrainingLog:
        """Train to the end, from the newest checkpoint of the same training if there is one.

        Ctrl-C takes effect after the step that is under way, or at once between steps; all steps done are saved.

        Args:
            checkpoints: the directory that checkpoints are kept in.
            made_from: everything that determines the result.

        Raises:
            TrainingError: the loss or the gradient is not finite; or there are checkpoints of another training.
            RecipeError: the best weights are asked for, and there are no held-out rows to tell them by.
        """
        if self.config.keeps_best and not len(self.evaluation):
            raise RecipeError(
                "early_stopping_patience, load_best_model_at_end",
                "there are no held-out rows to measure",
                mend="Set eval_rows or eval_data, or leave these keys out.",
            )
        if self.device.type in REHEARSED_ON:
            self.rehearse()
        first, self.log = resume_from_checkpoint(checkpoints, made_from, self.config.resume, self.model, self.optimizer)
        if first:
            self.events.note(f"Going on from the checkpoint after step {first} of {self.schedule.steps}.")
        try:
            self.take_steps(first, checkpoints, made_from)
        except KeyboardInterrupt:
            # Whatever it came in the middle of, the steps in the log are done and what they left is whole.
            if len(self.log.steps) > first:
                self.save(checkpoints, len(self.log.steps), made_from)
            raise
        if self.config.keeps_best and self.ranks.is_first:
            restore_best(checkpoints, self.model)
            self.log.kept = self.log.best
            self.events.note(f"The weights after step {self.log.kept_evaluation['step']} are the best and are kept.")
        return self.log

    def rehearse(self) -> None:
        """One step on the longest rows, of which only the size stays that micro-batches have room for."""
        longest = sorted(range(len(self.train)), key=lambda index: -self.train.lengths[index])
        rows = [self.train[index] for index in longest[: self.config.effective_batch_size]]
        weights, scale = [each.detach().cpu().clone() for each in self.parameters], self.loss_scale
        self.model.train()
        self.learn(rows, sum(int(row.mask.sum()) for row in rows), 0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, before in zip(self.parameters, weights, strict=True):
                parameter.copy_(before)
        self.optimizer, self.loss_scale = open_optimizer(self.config, self.parameters, self.device.type), scale
        memory = peak_memory_bytes(self.device)
        self.events.note(f"A step on the longest rows, before the first one, took {memory / 2**30:.2f} GiB.")

    def take_steps(self, first: int, checkpoints: Path, made_from: MadeFrom) -> None:
        """All steps after the `first`, with the evaluations and checkpoints between them."""
        steps = self.schedule.steps
        eval_every = self.config.eval_steps or math.ceil(steps / EVALUATIONS_PER_RUN)
        save_every = self.config.save_steps or math.ceil(steps / CHECKPOINTS_PER_RUN)
        if first in (0, steps) or first % eval_every == 0:
            self.evaluate_once(first, checkpoints)
        progress = self.events.progress("steps", steps, first)
        for step in range(first, steps):
            if self.has_stopped_improving():
                self.events.note(f"The held-out loss has stopped falling: training ends after step {step} of {steps}.")
                break
            done = step + 1
            with interrupts_deferred():
                self.take_step(step)
                memory = peak_memory_bytes(self.device)
                entry = {**self.log.steps[-1], **self.speed.as_json(), "peak_memory_bytes": memory}
                self.events.emit("metric", **entry)
                self.track(done, entry, TRACKED)
            if done % eval_every == 0 or done == steps:
                self.evaluate_once(done, checkpoints)
            if done % save_every == 0 or done == steps:
                self.save(checkpoints, done, made_from)
            progress.advance()

    def save(self, checkpoints: Path, step: int, made_from: MadeFrom) -> None:
        """Write a checkpoint; one process is enough, since all have the same weights."""
        if self.ranks.is_first:
            write_checkpoint(checkpoints, step, made_from, self.model, self.optimizer, self.log)

    def has_stopped_improving(self) -> bool:
        """Whether as many evaluations as the recipe has patience for have passed since the best one."""
        patience = self.config.early_stopping_patience
        return patience is not None and len(self.log.evaluations) - 1 - self.log.best >= patience

    def evaluate_once(self, step: int, checkpoints: Path) -> None:
        """Evaluate after `step` steps, unless that has been done, and keep the weights if they are the best so far."""
        if self.log.evaluations and self.log.evaluations[-1]["step"] == step:
            return
        entry = self.evaluate(step)
        with interrupts_deferred():
            self.log.evaluations.append(entry)
            if self.config.keeps_best and self.ranks.is_first and self.log.best == len(self.log.evaluations) - 1:
                keep_best(checkpoints, self.model)
            self.tell(entry)

    def take_step(self, step: int) -> None:
        """One optimizer step, into the log and the speed."""
        started = time.monotonic()
        rows = [self.train[index] for index in self.schedule.rows_of_step(step)]
        supervised = sum(int(row.mask.sum()) for row in rows)
        self.model.train()
        loss, norm = self.learn(rows, supervised, step)
        self.validate_finite(step, loss, norm)
        rate = self.config.learning_rate * learning_rate_factor(self.config, step, self.schedule.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.log.steps.append(
            {
                "step": step + 1,
                "epoch": self.schedule.epoch_after(step),
                "loss": loss,
                "learning_rate": rate,
                "grad_norm": norm,
                "supervised_tokens": supervised,
                **({"loss_scale": self.loss_scale} if self.loss_scale != 1 else {}),
            }
        )
        own = self.ranks.share(rows)
        computed = int(self.ranks.sum(self.layout.tokens(own) if own else 0))
        self.speed.count(time.monotonic() - started, computed, supervised, sum(len(row.ids) for row in rows))

    def learn(self, rows: Sequence[TokenRow], supervised: int, step: int) -> tuple[float, float]:
        """The gradients of the mean loss, clipped, in place; the loss, and the gradients' norm before clipping."""
        if self.loss_scale != 1 and self.log.steps:
            self.loss_scale = next_loss_scale([entry["loss_scale"] for entry in self.log.steps[-SCALE_GROWTH_STEPS:]])
        while True:
            loss = self.loss_sum(rows, self.loss_scale / supervised, step) / supervised
            self.ranks.sum_gradients(self.parameters)
            if self.loss_scale != 1:
                torch._foreach_div_([each.grad for each in self.parameters if each.grad is not None], self.loss_scale)
            norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
            if math.isfinite(norm) or self.loss_scale <= LEAST_LOSS_SCALE or not math.isfinite(loss):
                return loss, norm
            self.optimizer.zero_grad(set_to_none=True)
            self.loss_scale /= 2

    def loss_sum(self, rows: Sequence[TokenRow], scale: float | None, step: int) -> float:
        """The summed loss of rows over all processes, and with `scale` the gradients of this one's share."""
        own = self.ranks.share(rows)
        missing = self.missing_passes(own)
        found = self.own_loss_sum(own, scale, step) if own else 0.0
        for _ in range(missing):
            with self.accelerator.autocast():
                self.layout.loss_sums(rows[:1], None if scale is None else 0.0)
        return self.ranks.sum(found)

    def missing_passes(self, own: Sequence[TokenRow]) -> int:
        """How many passes more the busiest process makes; in each, sharded layers are put together from all of them."""
        if not self.config.fsdp:
            return 0
        passes = self.layout.micro_batches(own) if own else 0
        return self.ranks.most(passes) - passes

    def own_loss_sum(self, rows: Sequence[TokenRow], scale: float | None, step: int) -> float:
        """The summed loss of rows and, with `scale`, the gradients; see `Layout.loss_sums`.

        Where memory runs out, everything of these rows is computed again in smaller micro-batches, which give the same
        sums and gradients; they stay smaller from then on.

        Raises:
            TrainingError: a single row does not fit.
        """
        while True:
            torch.manual_seed((self.config.seed * 1_000_003 + step) * self.ranks.count + self.ranks.rank)
            try:
                with self.accelerator.autocast():
                    sums = self.layout.loss_sums(rows, scale)
                return float(torch.stack(sums).double().sum())
            except (RuntimeError, MemoryError) as error:
                # With sharded layers the others wait in this pass, and would for ever.
                if not is_out_of_memory(error) or self.config.fsdp:
                    raise
            # Here the error and the tensors that its frames held are gone.
            self.optimizer.zero_grad(set_to_none=True)
            self.layout = self.split_micro_batches(rows, step)

    def split_micro_batches(self, rows: Sequence[TokenRow], step: int) -> Layout:
        smaller = self.layout.smaller(rows)
        if smaller is None:
            raise TrainingError(
                f"step {step + 1}",
                f"memory ran out with a single row of {max(len(row.ids) for row in rows)} tokens",
                mend="Set gradient_checkpointing, or lower max_length.",
            )
        self.splits += 1
        self.events.warning(
            f"Memory ran out in step {step + 1}: micro-batches are half as large, its result is the same."
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return smaller

    def validate_finite(self, step: int, loss: float, norm: float) -> None:
        """Raise `TrainingError` that names the step's rows."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        names = ", ".join(self.row_names(self.schedule.rows_of_step(step)))
        raise TrainingError(
            f"step {step + 1}",
            f"the loss is {loss} and the gradient norm {norm}; its rows are {names}",
            expected="finite numbers",
            mend="Lower learning_rate; the last checkpoint before this step is kept. In float16, use bfloat16.",
        )

    def evaluate(self, step: int) -> dict[str, Any]:
        """The held-out loss and the answered samples after `step` steps, as they stand in the log."""
        self.model.eval()
        samples = self.samples.answer()
        return {"step": step, "eval_loss": self.evaluation_loss(step), "samples": samples}

    def tell(self, evaluation: dict[str, Any]) -> None:
        """Give an evaluation to the events and the trackers, with a warning for each degenerate answer."""
        step = evaluation["step"]
        self.events.emit("metric", step=step, eval_loss=evaluation["eval_loss"])
        self.track(step, evaluation, ("eval_loss",))
        for sample in evaluation["samples"]:
            self.events.emit("sample", step=step, **sample)
            if step and (fault := degeneration(sample)):
                self.events.warning(f"After step {step} the answer to {sample['id']} is degenerate: {fault}.")

    def track(self, step: int, entry: dict[str, Any], names: Sequence[str]) -> None:
        """Give these figures to the trackers that the recipe names."""
        if self.config.report_to:
            self.accelerator.log({name: entry[name] for name in names if entry[name] is not None}, step=step)

    def evaluation_loss(self, step: int) -> float | None:
        """Mean cross-entropy over the supervised tokens of all held-out rows; None if there are none."""
        if not len(self.evaluation):
            return None
        rows = list(self.evaluation)
        supervised = sum(int(row.mask.sum()) for row in rows)
        return self.loss_sum(rows, None, step) / supervised


def next_loss_scale(last: Sequence[float]) -> float:
    """The scale of the next step: that of the last one, or twice that where it has held for long enough."""
    return last[-1] * 2 if len(last) == SCALE_GROWTH_STEPS and len(set(last)) == 1 else last[-1]


def degeneration(sample: dict[str, str]) -> str | None:
    """Why a sample's answer is degenerate; None if it is not, or if what it should say looks like that too."""
    return None if is_degenerate(sample["target"]) else is_degenerate(sample["answer"])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or this process has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
