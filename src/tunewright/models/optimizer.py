"""The optimizer that a recipe asks for: torch's AdamW, transformers' Adafactor, or bitsandbytes' 8-bit and paged AdamW.

In: the recipe's section, the parameters, and where they are. Always: the learning rate is what `param_groups` say.
"""

from collections.abc import Iterable
from typing import Any

import torch

from tunewright.recipe import TrainKeys


def open_optimizer(
    keys: TrainKeys, parameters: Iterable[torch.nn.Parameter], device: str, foreach: bool | None = None
) -> torch.optim.Optimizer:
    """The optimizer.

    Args:
        keys: the recipe's section.
        parameters: what is trained; of these, matrices alone decay.
        device: where they are. A paged optimizer pages on a GPU alone: a CPU has nowhere to page to.
        foreach: whether torch's AdamW works on all parameters at once; default: torch's own choice.
    """
    shared: dict[str, Any] = {"lr": keys.learning_rate, "weight_decay": keys.weight_decay}
    groups = decay_groups(keys, parameters)
    adam = {**shared, "betas": (keys.adam_beta1, keys.adam_beta2), "eps": keys.adam_epsilon}
    if keys.optim == "adamw_torch":
        return torch.optim.AdamW(groups, **adam, foreach=foreach)
    if keys.optim == "adafactor":
        from transformers.optimization import Adafactor

        factored: torch.optim.Optimizer = Adafactor(groups, **shared, scale_parameter=False, relative_step=False)
        return factored
    from bitsandbytes.optim import AdamW

    bits = 32 if keys.optim == "paged_adamw_32bit" else 8
    paged = keys.optim.startswith("paged") and device == "cuda"
    optimizer: torch.optim.Optimizer = AdamW(groups, **adam, optim_bits=bits, is_paged=paged)
    return optimizer


def decay_groups(keys: TrainKeys, parameters: Iterable[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """The parameters, those apart that do not decay: norms and biases, as in transformers' own trainer."""
    every = list(parameters)
    if not keys.weight_decay:
        return [{"params": every}]
    matrices, others = ([each for each in every if (each.dim() > 1) == wide] for wide in (True, False))
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
