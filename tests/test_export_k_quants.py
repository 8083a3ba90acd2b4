"""Mixtures of K-quants: llama.cpp's types for each tensor, its own blocks, and nothing else changed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from tunewright.events import Events
from tunewright.export.k_quants import gets_more_bits, quantize_gguf
from tunewright.models.ggml_blocks import BLOCKS, encoded
from tunewright.models.gguf_header import GgufHeader, read_gguf_header

LAYERS = 12
BF16 = GGMLQuantizationType.BF16


def write_gguf(path: Path, width: int = 256, tied: bool = True) -> dict[str, np.ndarray[Any, Any]]:
    """A GGUF in bfloat16 as the converter lays it out; its tensors by name."""
    generator = np.random.default_rng(0)
    names = [f"blk.{layer}.{part}.weight" for layer in range(LAYERS) for part in ("attn_v", "attn_q", "ffn_down")]
    names += ["token_embd.weight", *([] if tied else ["output.weight"])]
    tensors = {name: generator.standard_normal((8, width)).astype(np.float32) for name in names}
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_file_type(32)
    writer.add_string("tokenizer.chat_template", "{{ 'kept' }}")
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for name, tensor in tensors.items():
        writer.add_tensor(name, quantize(tensor, BF16), raw_dtype=BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def quantized(tmp_path: Path, mixture: str, **options: Any) -> tuple[GgufHeader, dict[str, np.ndarray[Any, Any]]]:
    tensors = write_gguf(tmp_path / "source.gguf", **options)
    quantize_gguf(tmp_path / "source.gguf", tmp_path / "target.gguf", mixture, Events())
    return read_gguf_header(tmp_path / "target.gguf"), tensors


def types(header: GgufHeader, part: str) -> list[str]:
    return [tensor.type for name, tensor in header.tensors.items() if part in name]


def test_every_third_layer_and_the_ends_get_more_bits() -> None:
    assert [layer for layer in range(32) if gets_more_bits(layer, 32)] == [
        *(0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27),
        *(28, 29, 30, 31),
    ]


@pytest.mark.parametrize(
    ("mixture", "most", "more"), [("q4_k_m", "Q4_K", "Q6_K"), ("q5_k_m", "Q5_K", "Q6_K"), ("q6_k", "Q6_K", "Q6_K")]
)
def test_each_tensor_gets_the_type_that_llama_cpp_gives_it(tmp_path: Path, mixture: str, most: str, more: str) -> None:
    header, _ = quantized(tmp_path, mixture)
    expected = [more if gets_more_bits(layer, LAYERS) else most for layer in range(LAYERS)]
    assert types(header, "attn_v") == types(header, "ffn_down") == expected
    assert types(header, "attn_q") == [most] * LAYERS
    assert types(header, "token_embd") == ["Q6_K"]
    assert types(header, "output_norm") == ["F32"]


def test_an_embedding_with_a_head_beside_it_is_like_any_other(tmp_path: Path) -> None:
    header, _ = quantized(tmp_path, "q4_k_m", tied=False)
    assert types(header, "token_embd") == ["Q4_K"]
    assert types(header, "output.weight") == ["Q6_K"]


def test_rows_that_are_no_multiple_of_256_fall_back_as_in_llama_cpp(tmp_path: Path) -> None:
    header, _ = quantized(tmp_path, "q4_k_m", width=96, tied=False)
    assert set(types(header, "attn_q")) == {"Q5_0"}
    assert set(types(header, "attn_v")) == {"Q5_0", "Q8_0"}
    assert types(header, "output.weight") == ["Q8_0"]


def test_rows_that_fit_no_block_stay_in_sixteen_bits(tmp_path: Path) -> None:
    header, _ = quantized(tmp_path, "q4_k_m", width=20)
    assert set(types(header, "blk")) == {"F16"}


@pytest.mark.parametrize("mixture", ["q4_k_m", "q6_k"])
def test_values_are_the_sources_within_a_few_bits_and_metadata_are_kept(tmp_path: Path, mixture: str) -> None:
    header, tensors = quantized(tmp_path, mixture)
    assert header.file_bytes == header.needed_bytes
    assert header.metadata["tokenizer.chat_template"] == "{{ 'kept' }}"
    assert header.metadata["general.file_type"] == {"q4_k_m": 15, "q6_k": 18}[mixture]
    content = np.fromfile(tmp_path / "target.gguf", np.uint8)
    for name, values in tensors.items():
        tensor = header.tensors[name]
        blocks = content[tensor.start : tensor.end].reshape(8, -1)
        found = dequantize(blocks, GGMLQuantizationType[tensor.type])
        assert float(np.abs(found - values).mean()) < {"Q4_K": 0.08, "Q6_K": 0.02}[tensor.type], name


def test_llama_cpps_q8_0_is_the_converters_bit_by_bit() -> None:
    generator = np.random.default_rng(1)
    values = generator.standard_normal((16, 256)).astype(np.float32)
    values[0] = 0
    values[1, :32] = np.arange(32) * 0.5  # exact halves, where the ways of rounding part
    values[2] *= 1e-30
    expected = quantize(values, GGMLQuantizationType.Q8_0)
    assert np.array_equal(encoded(values, "Q8_0"), expected)


def test_block_sizes_are_those_of_the_official_package() -> None:
    from gguf import GGML_QUANT_SIZES

    assert all(GGML_QUANT_SIZES[GGMLQuantizationType[name]] == size for name, size in BLOCKS.items())
