"""Every tensor of a GGUF file against the 16-bit checkpoint that it was converted from.

In go a GGUF header and a checkpoint directory; out comes one Evidence. A value may differ from the checkpoint's by what
rounding to its type costs, and by no more. Tensors are compared one at a time and rows in chunks: memory is bound by
the largest tensor in 16 bits. What is not compared is named.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunewright.artifacts import read_json
from tunewright.errors import ArtifactError
from tunewright.evidence import Evidence
from tunewright.models.ggml_blocks import BLOCKS, encoded, encoder
from tunewright.models.gguf_diagnosis import diagnose_values
from tunewright.models.gguf_header import GgufHeader, GgufTensor

# How llama.cpp's converter changes values on the way, by the class named in config.json (conversion/*.py).
ROTARY_ROWS_INTERLEAVED = {"LlamaForCausalLM", "MistralForCausalLM", "GraniteForCausalLM", "SmolLM3ForCausalLM"}
VALUES_UNCHANGED = {"Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM"}
NOT_CONVERTED = (".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")
ADDED_BY_CONVERTER = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
DIAGNOSED = 3  # As many faults as are shown; each is looked at whole.
ELEMENTS_AT_A_TIME = 1 << 23

Floats = NDArray[np.float32]


@dataclass
class Comparison:
    """What came of comparing a GGUF with its checkpoint.

    Attributes:
        agreeing: tensors whose every value is within the bound.
        largest_error: the largest difference found, as a multiple of its bound, over all compared tensors.
        faults: one sentence for each tensor that is missing, has another shape or other values.
        not_compared: tensors whose values could not be compared, with the reason.
    """

    agreeing: int = 0
    largest_error: float = 0.0
    faults: list[str] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)


def check_gguf_tensors(header: GgufHeader, merged_directory: Path) -> Evidence:
    """Evidence `gguf_tensors`: how many of the checkpoint's tensors are in the GGUF with the values they should have.

    Raises:
        ArtifactError: the checkpoint's own files are missing or damaged.
    """
    config = read_json(merged_directory / "config.json")
    architecture = (config.get("architectures") or ["unknown"])[0]
    files = checkpoint_tensor_files(merged_directory)
    limit = f"= {len(files)}"
    if architecture not in ROTARY_ROWS_INTERLEAVED | VALUES_UNCHANGED:
        detail = (
            f"Values not compared: how the converter changes those of {architecture} is not known here. The GGUF has "
            f"{len(header.tensors)} tensors, the checkpoint {len(files)}."
        )
        return Evidence("gguf_tensors", 0, limit, "warn", detail)
    result = compare_tensors(header, files, architecture, config.get("text_config", config))
    if result.faults:
        shown = "; ".join(result.faults[:3])
        more = f" and {len(result.faults) - 3} more" if len(result.faults) > 3 else ""
        detail = f"{shown}{more}. The GGUF was not made from this checkpoint, or was changed: export again."
        return Evidence("gguf_tensors", result.agreeing, limit, "fail", detail)
    detail = f"Largest difference: {result.largest_error:.3f} of what rounding to the tensor's type may cost."
    if result.not_compared:
        detail += f" Not compared: {', '.join(result.not_compared)}."
    return Evidence("gguf_tensors", result.agreeing, limit, "pass" if result.agreeing == len(files) else "warn", detail)


def checkpoint_tensor_files(directory: Path) -> dict[str, Path]:
    """The safetensors file that holds each tensor of a checkpoint, without those that no GGUF holds."""
    from safetensors import safe_open

    index = directory / "model.safetensors.index.json"
    if index.is_file():
        files = {name: directory / file for name, file in read_json(index)["weight_map"].items()}
    else:
        path = directory / "model.safetensors"
        if not path.is_file():
            raise ArtifactError(str(path), "the file is missing", mend="Run `tunewright merge` again.")
        with safe_open(str(path), framework="pt") as tensors:
            files = dict.fromkeys(tensors.keys(), path)
    return {name: files[name] for name in sorted(files) if not name.endswith(NOT_CONVERTED)}


def compare_tensors(
    header: GgufHeader, files: dict[str, Path], architecture: str, config: dict[str, Any]
) -> Comparison:
    result = Comparison()
    names = gguf_names(header, list(files))
    for name in files:
        tensor = header.tensors.get(names.get(name, ""))
        if tensor is None:
            result.faults.append(f"{name} is not in the GGUF")
            continue
        heads = rotary_heads(name, config) if architecture in ROTARY_ROWS_INTERLEAVED else None
        compare_tensor(header.path, tensor, name, files[name], heads, result)
    extra = sorted(set(header.tensors) - set(names.values()) - ADDED_BY_CONVERTER)
    result.faults.extend(f"{name} is in the GGUF and not in the checkpoint" for name in extra)
    result.not_compared.extend(sorted(ADDED_BY_CONVERTER & set(header.tensors)))
    return result


def gguf_names(header: GgufHeader, names: list[str]) -> dict[str, str]:
    """llama.cpp's name for each checkpoint name that it knows, by the official package's map."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = header.metadata.get("general.architecture", "")
    known = {text: arch for arch, text in MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        return {}
    name_map = get_tensor_name_map(known[architecture], int(header.metadata.get(f"{architecture}.block_count", 0)))
    found = {name: name_map.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}
    return {name: text for name, text in found.items() if text is not None}


def rotary_heads(name: str, config: dict[str, Any]) -> int | None:
    """The number of heads whose rows the converter interleaves in this tensor; None where it leaves the rows alone."""
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        return int(config["num_attention_heads"])
    if name.endswith(("k_proj.weight", "k_proj.bias")):
        return int(config.get("num_key_value_heads") or config["num_attention_heads"])
    return None


def interleaved_rows(rows: int, heads: int) -> NDArray[np.intp]:
    """int [rows]: which checkpoint row stands in each row of the GGUF.

    llama.cpp rotates neighbouring rows where transformers rotates the two halves of a head (`LlamaModel.permute` in
    the converter).
    """
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def compare_tensor(
    gguf_path: Path, tensor: GgufTensor, name: str, file: Path, heads: int | None, result: Comparison
) -> None:
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as tensors:
        expected = tensors.get_tensor(name)
    if tuple(expected.shape) != tensor.shape:
        result.faults.append(f"{tensor.name} has the shape {list(tensor.shape)}, {name} has {list(expected.shape)}")
        return
    if tensor.type in BLOCKS and tensor.type not in BOUNDS:
        compare_blocks(gguf_path, tensor, name, expected, heads, result)
        return
    if tensor.type not in BOUNDS:
        result.not_compared.append(f"{tensor.name} (type {tensor.type})")
        return
    worst = 0.0
    for rows, values in dequantized_rows(gguf_path, tensor):
        chosen = expected[rows] if heads is None else expected[interleaved_rows(len(expected), heads)[rows]]
        worst = max(worst, worst_error(chosen.float().numpy(), values, tensor.type))
    result.largest_error = max(result.largest_error, worst)
    if worst <= 1:
        result.agreeing += 1
        return
    told = f"{tensor.name} differs from {name} by {worst:.4g} times what rounding to {tensor.type} costs"
    known = len(result.faults) < DIAGNOSED and explain_values(gguf_path, tensor, expected.float().numpy(), heads)
    result.faults.append(f"{told}: {known}" if known else told)


def explain_values(gguf_path: Path, tensor: GgufTensor, expected: Floats, heads: int | None) -> str:
    found = np.concatenate([values for _, values in dequantized_rows(gguf_path, tensor)])
    ordered = expected if heads is None else expected[interleaved_rows(len(expected), heads)]

    def agree(wanted: Floats, there: Floats) -> bool:
        return worst_error(wanted, there, tensor.type) <= 1

    return diagnose_values(ordered, found, None if heads is None else expected, agree)


def compare_blocks(
    gguf_path: Path, tensor: GgufTensor, name: str, expected: Any, heads: int | None, result: Comparison
) -> None:
    """Encode the checkpoint's tensor as llama.cpp does and compare byte by byte: a mixture has no simple bound."""
    if encoder() is None:
        result.not_compared.append(f"{tensor.name} (type {tensor.type})")
        return
    different = 0
    for rows, found in stored_rows(gguf_path, tensor):
        chosen = expected[rows] if heads is None else expected[interleaved_rows(len(expected), heads)[rows]]
        values = chosen.float().numpy()
        blocks = encoded(values.reshape(-1, values.shape[-1]), tensor.type).reshape(len(values), -1)
        different += int((blocks != found).any(axis=1).sum())
    if different:
        result.faults.append(
            f"{tensor.name}: {different} of {len(expected)} rows are not {name} encoded as {tensor.type}"
        )
    else:
        result.agreeing += 1


def dequantized_rows(path: Path, tensor: GgufTensor) -> Iterator[tuple[slice, Floats]]:
    """The tensor as float32 in chunks along its first axis, each with the rows that it holds."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    for rows, chunk in stored_rows(path, tensor):
        values = dequantize(chunk, GGMLQuantizationType[tensor.type]).astype(np.float32)
        yield rows, values.reshape(chunk.shape[0], *tensor.shape[1:])


def stored_rows(path: Path, tensor: GgufTensor) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """The tensor's bytes in chunks along its first axis, uint8 [rows, bytes of a row], each with the rows it holds."""
    count = tensor.shape[0]
    row_bytes = tensor.bytes // count
    rows_at_a_time = max(1, ELEMENTS_AT_A_TIME * count // max(1, int(np.prod(tensor.shape))))
    data = np.memmap(path, dtype=np.uint8, mode="r", offset=tensor.start, shape=(count, row_bytes))
    for start in range(0, count, rows_at_a_time):
        rows = slice(start, min(start + rows_at_a_time, count))
        yield rows, np.ascontiguousarray(data[rows])


def worst_error(expected: Floats, found: Floats, kind: str) -> float:
    """The largest `|expected - found| / bound`; infinite where a value is not a number or differs though it may not."""
    difference = np.abs(expected.astype(np.float64) - found)
    bound = BOUNDS[kind](expected.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(difference == 0, 0.0, difference / bound)
    return float(np.nan_to_num(ratio, nan=np.inf, posinf=np.inf).max(initial=0.0))


def bound_f32(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.zeros_like(expected)


def bound_f16(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half a unit in the last place: 11 significant bits, and the smallest step 2^-24."""
    return np.maximum(np.abs(expected) * 2.0**-11, 2.0**-25)


def bound_bf16(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half a unit in the last place: 8 significant bits."""
    return np.maximum(np.abs(expected) * 2.0**-8, 2.0**-134)


def bound_q8_0(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Blocks of 32 values are whole multiples, up to 127, of a scale: half a step, and what the scale loses in fp16.

    A twentieth of a percent is added for the float32 arithmetic of whoever quantized.
    """
    blocks = expected.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
    bound = scale / 2 + 127 * np.maximum(scale * 2.0**-11, 2.0**-25)
    return np.broadcast_to(bound * 1.0005, blocks.shape).reshape(expected.shape)


BOUNDS = {"F32": bound_f32, "F16": bound_f16, "BF16": bound_bf16, "Q8_0": bound_q8_0}
