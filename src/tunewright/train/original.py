"""The adapter over the base as it is stored, and as it comes out of the bits that it was kept in for training.

In: the base, the adapter on disk, what was packed, and the canaries that were recorded in training. Out: canaries over
the stored base, how far these are from what was trained, and which of the two bases does better.
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
from tunewright.errors import MergeError
from tunewright.evidence import Evidence, at_most, fact
from tunewright.layouts.layout import Layout
from tunewright.models.base import load_adapted, whole_device
from tunewright.models.dequantized import QuantizedBase
from tunewright.models.peft_layers import plain
from tunewright.models.safetensors_file import stored_tensors
from tunewright.recipe import TrainKeys
from tunewright.train.bases import Choice, choose

LOSS_RATIO_LIMIT = 1.05


@dataclass(frozen=True)
class Original:
    """The base as it is stored, with the adapter; or, after `put_dequantized`, as it comes out of fewer bits.

    Attributes:
        half: the 16-bit dtype that a merge rounds to.
    """

    engine: HFEngine
    device: str
    half: torch.dtype

    def record(self, canaries: Sequence[Canary], max_new_tokens: int) -> list[Canary]:
        """What it answers to the same prompts."""
        return record_canaries(self.engine, {canary.id: canary.prompt for canary in canaries}, max_new_tokens)

    def compare(
        self, canaries: Sequence[Canary], loss: float | None, trained_loss: float | None, config: TrainKeys
    ) -> list[Evidence]:
        """How the stored base differs from what was trained: on the canaries, and in the loss of the held-out rows."""
        evidence = self.departure("original_base", canaries, "the stored base", config)
        if trained_loss and loss is not None:
            better = "stored" if loss <= trained_loss else f"{config.bits}-bit"
            detail = (
                f"Held-out loss {loss:.4f} with the adapter over the stored base, and {trained_loss:.4f} over the "
                f"{config.bits} bits it was trained on: the {better} base does better."
            )
            ratio = at_most("original_base_loss_ratio", loss / trained_loss, LOSS_RATIO_LIMIT, detail)
            evidence.append(ratio.softened())
        return evidence

    def departure(self, name: str, canaries: Sequence[Canary], base: str, config: TrainKeys) -> list[Evidence]:
        """How far its answers are from the trained model's."""
        parity = compare_with_canaries(self.engine, canaries)
        detail = f"The adapter over {base}, against the same over the {config.bits} bits it was trained on."
        return [
            fact(f"{name}_mean_kl", parity.mean_kl, f"{detail} In nats."),
            fact(f"{name}_top1_agreement", parity.top1_agreement, detail),
        ]

    @torch.no_grad()
    def row_losses(self, rows: Sequence[TokenRow]) -> list[float]:
        """The summed loss of each row."""
        alone = Layout(self.engine.model, "padded", self.device, 1)
        return [float(alone.loss_sums([row], None)[0]) for row in rows]

    @torch.no_grad()
    def put_dequantized(self, quantized: QuantizedBase) -> None:
        """Give each layer that was packed the weight that comes out of its bits, rounded once to 16 bits.

        Raises:
            MergeError: it does not come out as in training.
        """
        modules = self.engine.model.get_base_model().named_modules()
        weights = {f"{plain(name)}.weight": module.weight for name, module in modules if hasattr(module, "weight")}
        for parameter in quantized.layers:
            weight = weights[parameter]
            weight.copy_(quantized.dequantized(parameter, weight.cpu()).to(self.half))


def prove_over_both(
    original: Original,
    quantized: QuantizedBase,
    canaries: Sequence[Canary],
    rows: Sequence[TokenRow],
    trained_loss: float | None,
    config: TrainKeys,
) -> tuple[list[Canary], list[Evidence], Choice]:
    """The canaries over the stored base, evidence of both bases, and which one the merge takes."""
    losses = original.row_losses(rows)
    loss = sum(losses) / sum(int(row.mask.sum()) for row in rows) if rows else None
    evidence = original.compare(canaries, loss, trained_loss, config)
    recorded = original.record(canaries, config.canary_tokens)
    choice, found = compare_bases(original, quantized, canaries, rows, losses, config)
    return recorded, [*evidence, *found], choice


def compare_bases(
    original: Original,
    quantized: QuantizedBase,
    canaries: Sequence[Canary],
    rows: Sequence[TokenRow],
    stored_losses: Sequence[float],
    config: TrainKeys,
) -> tuple[Choice, list[Evidence]]:
    """Which base does better with the adapter; afterwards `original` is the dequantized one."""
    try:
        original.put_dequantized(quantized)
    except MergeError as error:
        choice = Choice("original", f"The dequantized base cannot be had again here: {error}")
        return choice, [fact("merge_base", choice.better, choice.reason)]
    tokens = [int(row.mask.sum()) for row in rows]
    choice = choose(stored_losses, original.row_losses(rows), tokens, config.seed)
    evidence = original.departure("dequantized_base", canaries, "the dequantized base in 16 bits", config)
    return choice, [*evidence, fact("merge_base", choice.better, choice.reason)]


def open_original(base: Path, adapter: Path, plan: dict[str, Any], supervisor: Supervisor) -> Original:
    """Load both, on the planned device if the whole base has room there, else on the CPU."""
    device = whole_device(base) if plan["device"] == "cuda" else "cpu"
    model = load_adapted(base, adapter, getattr(torch, plan["dtype"]), device)
    is_float16 = torch.float16 in {tensor.dtype for tensor in stored_tensors(base).values()}
    engine = HFEngine(model, supervisor, "adapter over the stored base", CANARY_BATCH)
    return Original(engine, device, torch.float16 if is_float16 else torch.bfloat16)
