"""The adapter over the base as it is stored, where it was trained over the same base in fewer bits.

In: the base, the adapter on disk, and the canaries that were recorded in training. Out: the canaries that everything
merged and served is held to, and how far they are from what was trained.
Always: nothing of this is assumed to be small; each figure is measured on the run's own held-out rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunewright.chat.rows import TokenRow
from tunewright.chat.supervise import Supervisor
from tunewright.engines.canaries import CANARY_BATCH, Canary, compare_with_canaries, record_canaries
from tunewright.engines.hf import HFEngine
from tunewright.evidence import Evidence, at_most, fact
from tunewright.layouts.layout import Layout
from tunewright.models.base import load_adapted, whole_device
from tunewright.recipe import TrainKeys

LOSS_RATIO_LIMIT = 1.05


@dataclass(frozen=True)
class Original:
    """The base as it is stored, with the adapter."""

    engine: HFEngine
    device: str

    def record(self, canaries: Sequence[Canary], max_new_tokens: int) -> list[Canary]:
        """What it answers to the same prompts."""
        return record_canaries(self.engine, {canary.id: canary.prompt for canary in canaries}, max_new_tokens)

    def compare(
        self, canaries: Sequence[Canary], rows: Sequence[TokenRow], trained_loss: float | None, config: TrainKeys
    ) -> list[Evidence]:
        """How it differs from what was trained: on the canaries, and in the loss of the held-out rows."""
        parity = compare_with_canaries(self.engine, canaries)
        detail = f"The adapter over the stored base, against the same over the {config.bits} bits it was trained on."
        evidence = [
            fact("original_base_mean_kl", parity.mean_kl, f"{detail} In nats."),
            fact("original_base_top1_agreement", parity.top1_agreement, detail),
        ]
        if trained_loss:
            loss = self.mean_loss(rows, config.per_device_train_batch_size)
            better = "stored" if loss <= trained_loss else f"{config.bits}-bit"
            detail = (
                f"Held-out loss {loss:.4f} with the adapter over the stored base, into which it is merged, and "
                f"{trained_loss:.4f} over the {config.bits} bits it was trained on: the {better} base does better."
            )
            evidence.append(
                at_most("original_base_loss_ratio", loss / trained_loss, LOSS_RATIO_LIMIT, detail).softened()
            )
        return evidence

    @torch.no_grad()
    def mean_loss(self, rows: Sequence[TokenRow], batch_size: int) -> float:
        """Mean cross-entropy over the supervised tokens of rows."""
        sums = Layout(self.engine.model, "padded", self.device, batch_size).loss_sums(rows, None)
        return float(torch.stack(sums).double().sum()) / sum(int(row.mask.sum()) for row in rows)


def open_original(base: Path, adapter: Path, plan: dict[str, Any], supervisor: Supervisor) -> Original:
    """Load both, on the planned device if the whole base has room there, else on the CPU."""
    device = whole_device(base) if plan["device"] == "cuda" else "cpu"
    model = load_adapted(base, adapter, getattr(torch, plan["dtype"]), device)
    return Original(HFEngine(model, supervisor, "adapter over the stored base", CANARY_BATCH), device)
