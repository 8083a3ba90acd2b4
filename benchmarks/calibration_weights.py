"""Damages to weights, as a checkpoint or a GGUF may suffer them: in go the tuned and the base's, out come others."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from served_models import Weights
from tunewright.models.merge_diagnosis import through_nf4

Damage = Callable[[Weights, Weights], Weights]
EMBEDDING, LAST_NORM = "model.embed_tokens.weight", "model.norm.weight"


def moved(times: float) -> Damage:
    """Weights that went `times` as far from the base as they should."""
    return lambda tuned, base: {name: base[name] + times * (tuned[name] - base[name]) for name in tuned}


def the_base(tuned: Weights, base: Weights) -> Weights:
    return base


def the_opposite_adapter(tuned: Weights, base: Weights) -> Weights:
    return moved(-1)(tuned, base)


def half_the_scale(tuned: Weights, base: Weights) -> Weights:
    return moved(0.5)(tuned, base)


def twice_the_scale(tuned: Weights, base: Weights) -> Weights:
    return moved(2)(tuned, base)


def one_layer_without_the_adapter(tuned: Weights, base: Weights) -> Weights:
    return {name: base[name] if ".layers.1." in name else values for name, values in tuned.items()}


def through_four_bits(tuned: Weights, base: Weights) -> Weights:
    return {
        name: through_nf4(torch.from_numpy(values)).numpy() if "_proj.weight" in name else values
        for name, values in tuned.items()
    }


def last_norm_folded_twice(tuned: Weights, base: Weights) -> Weights:
    return {**tuned, LAST_NORM: tuned[LAST_NORM] + 1}


def vocabulary_shifted_by_one(tuned: Weights, base: Weights) -> Weights:
    return {**tuned, EMBEDDING: np.roll(tuned[EMBEDDING], 1, axis=0)}


def two_layers_exchanged(tuned: Weights, base: Weights) -> Weights:
    other = {".layers.0.": ".layers.1.", ".layers.1.": ".layers.0."}

    def source(name: str) -> str:
        return next((name.replace(one, two) for one, two in other.items() if one in name), name)

    return {name: tuned[source(name)] for name in tuned}


DAMAGES: tuple[Damage, ...] = (
    *(the_base, the_opposite_adapter, half_the_scale, twice_the_scale, one_layer_without_the_adapter),
    *(through_four_bits, last_norm_folded_twice, vocabulary_shifted_by_one, two_layers_exchanged),
)


def in_words(damage: Any) -> str:
    return str(damage.__name__).replace("_", " ")


def write_checkpoint(merged: Path, weights: Weights, out: Path) -> Path:
    """A copy of the merged checkpoint with other weights, rounded to its 16 bits."""
    shutil.copytree(merged, out)
    path = out / "model.safetensors"
    stored = load_file(path)
    found = {name: torch.from_numpy(weights[name].copy()).to(tensor.dtype) for name, tensor in stored.items()}
    save_file(found, path, metadata={"format": "pt"})
    return out
