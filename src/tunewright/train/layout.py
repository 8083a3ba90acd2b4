"""Choose the layout that is trained in: the planned one if it is exact on real rows, else padded rows."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from tunewright.chat.rows import TokenRow, TokenRows
from tunewright.errors import TrainingError
from tunewright.events import Events
from tunewright.evidence import Evidence, at_most
from tunewright.layouts.layout import LAYOUT_FAILURES, Layout, plain_loss
from tunewright.layouts.loss import causal_lm
from tunewright.models.liger import use_liger_kernels
from tunewright.recipe import TrainKeys
from tunewright.train.loop import is_out_of_memory

ROWS_COMPARED = 4


def choose_layout(
    config: TrainKeys, plan: dict[str, Any], model: Any, train: TokenRows, accelerator: Any, events: Events
) -> tuple[Layout, Evidence]:
    """The planned layout, if on real rows it gives the loss that the model gives each row alone; else the padded one.

    Fused kernels come in between, so that they are held to what the model's own code gives.

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
        if config.use_liger_kernel:
            use_liger_kernels(causal_lm(model))
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
        mend=f"{'Leave use_liger_kernel out, or choose' if config.use_liger_kernel else 'Choose'} another base; please "
        "report this one.",
    )


def whole_loss(layout: Layout, rows: Sequence[TokenRow]) -> float:
    """The summed loss in a layout; infinite where the model does not take that layout."""
    try:
        return float(torch.stack(layout.loss_sums(rows, scale=None)).double().sum())
    except LAYOUT_FAILURES as error:
        if layout.kind == "padded" or is_out_of_memory(error):
            raise
        return math.inf
