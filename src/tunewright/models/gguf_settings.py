"""What a GGUF says of the model's shape and arithmetic, against the checkpoint's `config.json`.

In go a header and a checkpoint directory; out comes one Evidence. Always: only what both state is compared, and only
for architectures whose settings the converter copies; a setting that differs is named with both values.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.artifacts import read_json
from tunewright.evidence import Evidence, equal, fact
from tunewright.models.gguf_header import GgufHeader
from tunewright.models.gguf_tensors import ROTARY_ROWS_INTERLEAVED, VALUES_UNCHANGED

SAME_NUMBER = 1e-5  # The GGUF keeps 32 bits.
# Keys of a GGUF, behind its architecture, and of config.json.
COUNTERPARTS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
FACTOR = "rope.scaling.factor"
SCALED_BY_FACTOR = ("linear", "yarn")


def check_settings(header: GgufHeader, merged_directory: Path) -> Evidence:
    config = read_json(merged_directory / "config.json")
    architecture = (config.get("architectures") or ["unknown"])[0]
    if architecture not in ROTARY_ROWS_INTERLEAVED | VALUES_UNCHANGED:
        return fact("gguf_settings", "not compared", f"How the converter writes those of {architecture} is not known.")
    pairs = list(compared(header, config.get("text_config", config)))
    other = [f"{key} is {found}, {wanted} in config.json" for key, found, wanted in pairs if not is_same(found, wanted)]
    detail = f"{len(pairs)} settings are those of config.json."
    if other:
        detail = f"The GGUF computes otherwise than the checkpoint: {'; '.join(other)}. Export again."
    return equal("gguf_settings", len(other), 0, detail)


def compared(header: GgufHeader, config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Key, what the GGUF says, and what the checkpoint says, for every setting that both state."""
    rope = rotary(config)
    stated = {**config, **{key: value for key, value in rope.items() if key == "rope_theta"}}
    prefix = f"{header.metadata.get('general.architecture')}."
    for key, name in COUNTERPARTS.items():
        found, wanted = header.metadata.get(prefix + key), stated.get(name)
        if isinstance(found, int | float) and isinstance(wanted, int | float):
            yield key, found, wanted
    found = header.metadata.get(prefix + FACTOR, 1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in (*SCALED_BY_FACTOR, "default"):
        yield FACTOR, found, rope.get("factor", 1.0) if kind != "default" else 1.0


def rotary(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings under the names of transformers 5, from either version's; empty where layers differ."""
    rope = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta"),
        **(config.get("rope_scaling") or {}),
    }
    return {} if any(isinstance(value, dict) for value in rope.values()) else rope


def is_same(found: float, wanted: float) -> bool:
    return math.isclose(found, wanted, rel_tol=SAME_NUMBER)
