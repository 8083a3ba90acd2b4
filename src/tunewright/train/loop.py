"""The training loop: one optimizer step after the other, evaluations between them, checkpoints on the way.

The loss of a step is the mean cross-entropy over the supervised tokens of the whole step, however many micro-batches it
takes. Every random number is seeded by the step, so that a resumed run computes what an undisturbed one would have.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunewright.chat.conversation import Conversation
from tunewright.chat.order import Schedule, learning_rate_factor, plan_schedule, split_by_length
from tunewright.chat.rows import TokenRow, TokenRows
from tunewright.engines.hf import HFEngine
from tunewright.errors import TrainingError
from tunewright.events import Events
from tunewright.parallel import interrupts_deferred
from tunewright.recipe import TrainKeys
from tunewright.train.checkpoints import TrainingLog, resume_from_checkpoint, write_checkpoint
from tunewright.train.layouts import Layout

EVALUATIONS_PER_RUN = 4
CHECKPOINTS_PER_RUN = 8
SAMPLE_TOKENS = 128


@dataclass(frozen=True)
class Samples:
    """Held-out conversations whose last turn is answered at each evaluation, by an engine around the model."""

    conversations: Sequence[Conversation]
    engine: HFEngine

    def answer(self) -> list[dict[str, str]]:
        if not self.conversations:
            return []
        prompts = [self.engine.prompt_ids(conversation.prompt) for conversation in self.conversations]
        return [
            {
                "id": conversation.id,
                "prompt": conversation.prompt[-1].text,
                "target": conversation.target,
                "answer": self.engine.decode(ids),
            }
            for conversation, ids in zip(self.conversations, self.engine.greedy(prompts, SAMPLE_TOKENS), strict=True)
        ]


class Trainer:
    """Trains the adapter that is attached to `model`.

    Args:
        config: the recipe's section.
        model: the base with its adapter, in training mode where dropout is wanted.
        accelerator: where and in what precision the model computes.
        layout: how losses are computed.
        train, evaluation: proven rows.
        samples: what is answered at each evaluation.
        events: where progress goes.
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
        events: Events,
    ) -> None:
        self.config = config
        self.model = model
        self.accelerator = accelerator
        self.layout = layout
        self.train = train
        self.evaluation = evaluation
        self.samples = samples
        self.events = events
        self.schedule: Schedule = plan_schedule(config, len(train))
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
        )
        self.log = TrainingLog()
        self.tokens_per_second = 0.0

    def run(self, checkpoints: Path, key: str) -> TrainingLog:
        """Train to the end, from the newest checkpoint of the same training if there is one.

        Ctrl-C takes effect after the step that is under way, which is saved.

        Args:
            checkpoints: the directory that checkpoints are kept in.
            key: the hash of everything that determines the result; checkpoints with another one are not taken.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        first, self.log = resume_from_checkpoint(checkpoints, key, self.model, self.optimizer)
        steps = self.schedule.steps
        if first:
            self.events.note(f"Going on from the checkpoint after step {first} of {steps}.")
        eval_every = self.config.eval_steps or math.ceil(steps / EVALUATIONS_PER_RUN)
        save_every = self.config.save_steps or math.ceil(steps / CHECKPOINTS_PER_RUN)
        if first == 0 or (first % eval_every == 0 and self.log.evaluations[-1]["step"] != first):
            self.evaluate(first)
        progress = self.events.progress("steps", steps, first)
        started, tokens = time.monotonic(), 0
        for step in range(first, steps):
            done = step + 1
            try:
                with interrupts_deferred():
                    tokens += self.take_step(step)
                    self.tokens_per_second = round(tokens / (time.monotonic() - started), 1)
                    self.events.emit("metric", **self.log.steps[-1], tokens_per_second=self.tokens_per_second)
            except KeyboardInterrupt:
                write_checkpoint(checkpoints, done, key, self.model, self.optimizer, self.log)
                raise
            if done % eval_every == 0 or done == steps:
                self.evaluate(done)
            if done % save_every == 0 or done == steps:
                write_checkpoint(checkpoints, done, key, self.model, self.optimizer, self.log)
            progress.advance()
        return self.log

    def take_step(self, step: int) -> int:
        """One optimizer step; the number of tokens in its rows."""
        rows = [self.train[index] for index in self.schedule.rows_of_step(step)]
        supervised = sum(int(row.mask.sum()) for row in rows)
        torch.manual_seed(self.config.seed * 1_000_003 + step)
        self.model.train()
        with self.accelerator.autocast():
            sums = self.layout.loss_sums(self.micro_batches(rows), scale=1 / supervised)
        loss = sum(sums) / supervised
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
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
            }
        )
        return sum(len(row.ids) for row in rows)

    def micro_batches(self, rows: Sequence[TokenRow]) -> list[list[TokenRow]]:
        return split_by_length(rows, self.config.per_device_train_batch_size)

    def validate_finite(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise TrainingError(
            f"step {step + 1}",
            f"the loss is {loss} and the gradient norm {norm}",
            expected="finite numbers",
            mend="Lower learning_rate; the last checkpoint before this step is kept. In float16, use bfloat16.",
        )

    def evaluate(self, step: int) -> None:
        """Evaluation loss and answered samples after `step` steps, into the log and the events."""
        self.model.eval()
        entry: dict[str, Any] = {"step": step, "eval_loss": self.evaluation_loss(), "samples": self.samples.answer()}
        self.log.evaluations.append(entry)
        self.events.emit("metric", step=step, eval_loss=entry["eval_loss"])
        for sample in entry["samples"]:
            self.events.emit("sample", step=step, **sample)

    def evaluation_loss(self) -> float | None:
        """Mean cross-entropy over the supervised tokens of all held-out rows; None if there are none."""
        if not len(self.evaluation):
            return None
        rows = list(self.evaluation)
        supervised = sum(int(row.mask.sum()) for row in rows)
        with self.accelerator.autocast():
            sums = self.layout.loss_sums(split_by_length(rows, self.config.per_device_train_batch_size), scale=None)
        return sum(sums) / supervised
