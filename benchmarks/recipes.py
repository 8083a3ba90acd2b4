"""What fits on which card: the plan of the bases of our users for 4 GB and 24 GB, as a Markdown page.

usage: python benchmarks/recipes.py > docs/recipes.md

Only shapes are needed, no weights and no GPU: each base's configuration is written here from its published one, and
the step is traced on fake tensors by the code of `tunewright plan --gpu`. Rows are made up: one system prompt of 300
tokens, rows of 500 to 1,024 tokens of which the last 200 are learned, 16 in a step.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.chat.rows import TokenRows, write_rows
from tunewright.chat.supervise import SupervisedRow
from tunewright.models.base import Base
from tunewright.plan.layout import choose_layout
from tunewright.plan.stage import CONTEXT_BYTES, Planner
from tunewright.recipe import PlanKeys

HEAD = """# What fits on which card

Made by `benchmarks/recipes.py`, which asks `tunewright plan --gpu` for the cheapest change that fits: LoRA of rank 16
on all linear layers in bfloat16, AdamW, 16 rows a step, the longest of 1,024 tokens, one system prompt of 300 tokens
in all. {context} MiB are counted for the CUDA context. **No GPU was at hand: these are predictions, and none was held
against a card.**

| base | card | the plan as it is | what to set | then |
|---|---|---|---|---|"""
CARDS = (4, 24)
LONGEST, PREFIX, LEARNED, ROWS = 1024, 300, 200, 64


@dataclass(frozen=True)
class Shape:
    """A base's configuration: transformers' class, and the keys that are not its defaults."""

    kind: str
    keys: dict[str, Any]

    def config(self) -> Any:
        import transformers

        return getattr(transformers, self.kind)(**self.keys)


def shape(kind: str, hidden: int, feed_forward: int, layers: int, heads: int, key_heads: int, vocabulary: int,
          **more: Any) -> Shape:  # fmt: skip
    sizes = {"hidden_size": hidden, "intermediate_size": feed_forward, "num_hidden_layers": layers}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": key_heads}
    return Shape(kind, {**sizes, **heads_of, "vocab_size": vocabulary, "max_position_embeddings": 4096, **more})


QWEN3 = {"head_dim": 128, "tie_word_embeddings": False}
BASES = {
    "TinyLlama 1.1B": shape("LlamaConfig", 2048, 5632, 22, 32, 4, 32_000),
    "Qwen3 1.7B": shape("Qwen3Config", 2048, 6144, 28, 16, 8, 151_936, head_dim=128, tie_word_embeddings=True),
    "Phi-3-mini 3.8B": shape("Phi3Config", 3072, 8192, 32, 32, 32, 32_064, pad_token_id=0),
    "Mistral 7B v0.3": shape("MistralConfig", 4096, 14_336, 32, 32, 8, 32_768, sliding_window=None),
    "Qwen3 8B, and the text part of Qwen3-VL 8B": shape("Qwen3Config", 4096, 12_288, 36, 32, 8, 151_936, **QWEN3),
    "Qwen3 14B": shape("Qwen3Config", 5120, 17_408, 40, 40, 8, 151_936, **QWEN3),
}


def made_rows(directory: Path) -> TokenRows:
    random = np.random.default_rng(0)
    prefix = random.integers(10, 30_000, PREFIX)
    rows = []
    for length in np.linspace(500, LONGEST, ROWS).astype(int):
        ids = np.concatenate([prefix, random.integers(10, 30_000, length - PREFIX)]).astype(np.int32)
        rows.append(SupervisedRow("", ids, np.arange(length) >= length - LEARNED, int(length) - LEARNED))
    write_rows(directory / "rows.safetensors", rows)
    return TokenRows(directory / "rows.safetensors")


def planned(name: str, base: Shape, rows: TokenRows) -> list[str]:
    """A line of the table for each card."""
    config, base_config = PlanKeys(), base.config()
    layout = choose_layout(config, base_config, rows)
    planner = Planner(config, Base(name, Path(), {}), base_config, rows, "cuda", "bfloat16", layout)
    plain = planner.predict(config, planner.longest).peak_bytes + CONTEXT_BYTES
    lines = []
    for card in CARDS:
        budget, before = card << 30, f"{layout.kind}, {plain / 2**30:.1f} GiB"
        if plain <= budget:
            lines.append(f"| {name} | {card} GiB | {before} | nothing | it fits |")
            continue
        fit = planner.find_fit(budget - CONTEXT_BYTES)
        then = f"{(fit.peak_bytes + CONTEXT_BYTES) / 2**30:.1f} GiB" if fit else "does not fit"
        options = f"`{fit.options}`" if fit else ""
        lines.append(f"| {name} | {card} GiB | {before} | {options} | {then} |")
    return lines


def main() -> None:
    print(HEAD.format(context=CONTEXT_BYTES >> 20))
    with tempfile.TemporaryDirectory() as directory:
        rows = made_rows(Path(directory))
        for name, base in BASES.items():
            print("\n".join(planned(name, base, rows)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
