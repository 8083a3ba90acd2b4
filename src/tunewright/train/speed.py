"""How fast training goes and what memory it has taken, as events and certificate tell it.

Tokens are counted in three ways, which are never mixed up:

tokens_per_second              tokens that passed through the model: no padding, and a shared prefix once
supervised_tokens_per_second   tokens that were learned
equivalent_tokens_per_second   tokens of all rows, each counted whole: what rows without sharing would have to compute

Evaluations and checkpoints do not count: the seconds are those of optimizer steps alone.
"""

import resource
import sys
from collections import Counter

import torch

KINDS = ("tokens_per_second", "supervised_tokens_per_second", "equivalent_tokens_per_second")


class Speed:
    """Tokens per second over all steps that this process has made."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._tokens: Counter[str] = Counter()

    def count(self, seconds: float, computed: int, supervised: int, whole: int) -> None:
        """Add a step."""
        self._seconds += seconds
        self._tokens.update(dict(zip(KINDS, (computed, supervised, whole), strict=True)))

    def as_json(self) -> dict[str, float]:
        return {kind: round(self._tokens[kind] / self._seconds, 1) if self._seconds else 0.0 for kind in KINDS}


def peak_memory_bytes(device: torch.device | str) -> int:
    """The most that this process has held: tensors on a GPU, resident memory on a CPU."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
