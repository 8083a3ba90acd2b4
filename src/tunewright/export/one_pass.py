"""Base and adapter to GGUF in one pass: no merged checkpoint is written.

In goes what `merge` takes; out comes the GGUF that merging and converting would give, byte by byte. The converter reads
a directory that has everything of a merged checkpoint but the weights; those are merged as it asks for them.
"""

import tempfile
from pathlib import Path

import torch

from tunewright.events import Events
from tunewright.export.converter import convert_to_gguf
from tunewright.models.base import Base
from tunewright.models.checkpoint_directory import write_chat_template, write_configuration
from tunewright.models.dequantized import QuantizedBase
from tunewright.models.merge_dtype import choose_dtype
from tunewright.models.merge_layout import write_virtual
from tunewright.models.merge_plan import OpenMerge, plan_merge

# The converter takes the model's name from that of its directory: the same as in a run.
MERGED = "merged"


def export_adapter(
    base: Base,
    adapter_path: Path,
    gguf_path: Path,
    format: str,  # noqa: A002
    events: Events,
    dtype: str = "auto",
    chat_template: str | None = None,
    quantized: QuantizedBase | None = None,
) -> torch.dtype:
    """Write the GGUF of `base` with the adapter merged; the 16-bit dtype that the weights went through.

    Args:
        dtype: `bfloat16`, `float16` or `auto`, as for `merge`.
        chat_template: in the place of the base's own.
        quantized: as for `merge`.

    Raises:
        MergeError: base and adapter do not fit.
        ExportError: the converter failed; its last lines are quoted.
    """
    plan = plan_merge(base.path, adapter_path, quantized)
    with OpenMerge(plan) as merge:
        chosen, _ = choose_dtype(dtype, merge)
    gguf_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=gguf_path.parent, prefix=".one-pass-") as scratch:
        directory = Path(scratch) / MERGED
        directory.mkdir()
        write_configuration(base.path, directory, chosen, plan.settings)
        if chat_template is not None:
            write_chat_template(directory, chat_template)
        virtual = write_virtual(directory, plan, chosen)
        convert_to_gguf(directory, gguf_path, format, events, virtual)
    return chosen
