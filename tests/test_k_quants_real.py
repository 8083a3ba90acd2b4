"""The types that llama.cpp's own quantizer gives each tensor, where TUNEWRIGHT_LIBLLAMA names a directory with it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from tunewright.events import Events
from tunewright.export.k_quants import MIXTURES, quantize_gguf
from tunewright.models.gguf_header import read_gguf_header

VARIABLE = "TUNEWRIGHT_LIBLLAMA"
PROGRAM = Path(__file__).with_name("llama_quantize.py")
BF16 = GGMLQuantizationType.BF16
LAYERS = 17
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
FUSED = ("attn_qkv", "attn_output")
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
EXPERTS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
CASES: dict[str, dict[str, Any]] = {
    "llama": {"parts": (*ATTENTION, *FEED_FORWARD)},
    "llama, tied": {"parts": (*ATTENTION, *FEED_FORWARD), "tied": True},
    "llama, rows of 96": {"parts": (*ATTENTION, *FEED_FORWARD), "width": 96},
    "llama, rows of 96, tied": {"parts": (*ATTENTION, *FEED_FORWARD), "width": 96, "tied": True},
    "llama, four experts": {"parts": (*ATTENTION, *EXPERTS), "experts": 4},
    "llama, eight experts": {"parts": (*ATTENTION, *EXPERTS), "experts": 8},
    "llama, eight experts, rows of 96": {"parts": (*ATTENTION, *EXPERTS), "experts": 8, "width": 96},
    "qwen2": {"parts": (*ATTENTION, *FEED_FORWARD), "tied": True},
    "qwen3moe": {"parts": (*ATTENTION, *EXPERTS), "experts": 4},
    "phi3": {"parts": (*FUSED, "ffn_up", "ffn_down")},
    "olmo": {"parts": (*ATTENTION, *FEED_FORWARD)},
    "gemma3": {"parts": (*ATTENTION, *FEED_FORWARD), "tied": True},
    "falcon": {"parts": (*FUSED, "ffn_up", "ffn_down")},
    "falcon, tied": {"parts": (*FUSED, "ffn_up", "ffn_down"), "tied": True},
}


def write_gguf(
    path: Path, architecture: str, parts: tuple[str, ...], width: int = 256, tied: bool = False, experts: int = 0
) -> None:
    """A GGUF of an architecture, with as much as the quantizer reads of it."""
    random = np.random.default_rng(0)
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_sliding_window(32)
    writer.add_file_type(32)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(2)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    names = ["token_embd", *([] if tied else ["output"]), *(f"blk.{n}.{part}" for n in range(LAYERS) for part in parts)]
    for name in names:
        shape = (experts, 4, width) if "exps" in name else (4, width)
        tensor = quantize(random.standard_normal(shape).astype(np.float32), BF16)
        writer.add_tensor(f"{name}.weight", tensor, raw_dtype=BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"set {VARIABLE} to a directory with llama.cpp's libllama.so")
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("case", CASES)
def test_every_tensor_gets_the_type_that_llama_cpps_own_quantizer_gives_it(
    tmp_path: Path, case: str, mixture: str
) -> None:
    source, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("source", "ours", "theirs"))
    write_gguf(source, case.partition(",")[0], **CASES[case])
    quantize_gguf(source, ours, mixture, Events())
    command = [sys.executable, str(PROGRAM), os.environ[VARIABLE], str(source), str(theirs), str(MIXTURES[mixture][0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found, expected = read_gguf_header(ours), read_gguf_header(theirs)
    assert {name: each.type for name, each in found.tensors.items()} == {
        name: each.type for name, each in expected.tensors.items()
    }
    assert found.metadata["general.file_type"] == expected.metadata["general.file_type"]
