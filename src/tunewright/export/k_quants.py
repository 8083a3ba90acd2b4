"""A 16-bit GGUF to one of llama.cpp's mixtures of K-quants: q4_k_m, q5_k_m or q6_k.

In goes a GGUF that the converter wrote in bf16 or f16; out comes what `llama-quantize` makes of it. Every block is
encoded by llama.cpp's own function. Which tensor gets which type follows `llama_tensor_get_type` in its
`llama-quant.cpp`, which `tests/test_k_quants_real.py` asks itself; its exception for models of 70B is left out. Where a
head's rows fit no block, llama.cpp refuses the model; here that head stays in sixteen bits.
Always: metadata stay byte by byte, but for `general.file_type`; what the converter keeps in float32 stays so.
"""

import struct
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from tunewright.errors import ExportError
from tunewright.events import Events
from tunewright.models.ggml_blocks import BLOCKS, encoded
from tunewright.models.gguf_header import DEFAULT_ALIGNMENT, GgufHeader, GgufTensor, read_gguf_header
from tunewright.parallel import threads_for_blocks

# llama.cpp's enum llama_ftype, and the type that most tensors get.
MIXTURES = {"q4_k_m": (15, "Q4_K"), "q5_k_m": (17, "Q5_K"), "q6_k": (18, "Q6_K")}
# Where a row is no multiple of 256: what llama.cpp takes instead.
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
HALVES = ("BF16", "F16")
# llama.cpp gives the attention of a model with exactly so many experts more bits.
EXPERTS_BESIDE_A_SMALL_ATTENTION = 8
NUMBERS_AT_A_TIME = 1 << 20
FILE_TYPE_KEY = b"general.file_type"
UINT32 = 4


def quantize_gguf(source: Path, target: Path, mixture: str, events: Events) -> None:
    """Write `target`, the GGUF `source` in one of `MIXTURES`.

    Raises:
        ExportError: the source is not what the converter writes.
        EnvironmentLackError: llama.cpp's encoder is not on this machine.
    """
    header = read_gguf_header(source)
    kinds = {name: kind_of(tensor, mixture, header) for name, tensor in header.tensors.items()}
    beginning = metadata_bytes(header, MIXTURES[mixture][0]) + tensor_infos(header, kinds)
    progress = events.progress("tensors", len(kinds))
    with target.open("wb") as file, ThreadPoolExecutor(threads_for_blocks()) as crew:
        file.write(beginning)
        pad(file)
        for name, tensor in header.tensors.items():
            for part in parts_in_order(header.path, tensor, kinds[name], crew):
                file.write(part.data)
            pad(file)
            progress.advance()


def kind_of(tensor: GgufTensor, mixture: str, header: GgufHeader) -> str:
    """The type that a tensor gets."""
    if tensor.type not in HALVES or len(tensor.shape) < 2 or not tensor.name.endswith("weight"):
        return tensor.type
    kind = preferred_kind(tensor.name, mixture, header)
    width = tensor.shape[-1]
    if width % BLOCKS[kind][0]:
        # The head does not fall back to what its type asks for, but to eight bits.
        kind = "Q8_0" if is_head(tensor.name, header) else FALLBACKS[kind]
    return kind if width % BLOCKS[kind][0] == 0 else "F16"


def preferred_kind(name: str, mixture: str, header: GgufHeader) -> str:
    most = MIXTURES[mixture][1]
    is_falcon = header.metadata["general.architecture"] == "falcon"
    if is_head(name, header):
        return "Q8_0" if is_falcon else "Q6_K"
    if expert_count(header) == EXPERTS_BESIDE_A_SMALL_ATTENTION and (kind := small_attention_kind(name, mixture)):
        return kind
    if mixture == "q6_k":
        return most
    if "attn_qkv.weight" in name:
        return {"Q4_K": "Q5_K", "Q5_K": "Q6_K"}[most]
    if "attn_v.weight" in name:
        values = sorted(block_number(other) for other in header.tensors if "attn_v.weight" in other)
        return "Q6_K" if gets_more_bits(values.index(block_number(name)), attention_layers(header)) else most
    if "ffn_down" in name:
        layer, layers = block_number(name), block_count(header)
        more = "Q5_K" if is_falcon and mixture == "q4_k_m" and layer >= layers // 16 else "Q6_K"
        return more if gets_more_bits(layer, layers) else most
    return most


def small_attention_kind(name: str, mixture: str) -> str | None:
    """What the attention gets where most of the weights are experts', so that eight bits hardly make a difference."""
    if "attn_k.weight" in name or "attn_v.weight" in name:
        return "Q8_0"
    return "Q5_K" if "attn_output.weight" in name and mixture == "q4_k_m" else None


def is_head(name: str, header: GgufHeader) -> bool:
    """Whether a tensor is the output head, or the embedding that serves as one."""
    return name == "output.weight" or (name == "token_embd.weight" and "output.weight" not in header.tensors)


def gets_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first and the last eighth, and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def attention_layers(header: GgufHeader) -> int:
    names = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
    return sum(any(part in name for part in names) for name in header.tensors)


def block_count(header: GgufHeader) -> int:
    return int(header.metadata[f"{header.metadata['general.architecture']}.block_count"])


def expert_count(header: GgufHeader) -> int:
    return int(header.metadata.get(f"{header.metadata['general.architecture']}.expert_count", 0))


def block_number(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdecimal()), 0)


def metadata_bytes(header: GgufHeader, file_type: int) -> bytes:
    """The file up to its list of tensors, with another `general.file_type`."""
    with header.path.open("rb") as file:
        content = bytearray(file.read(header.metadata_end))
    key = struct.pack("<Q", len(FILE_TYPE_KEY)) + FILE_TYPE_KEY + struct.pack("<I", UINT32)
    if content.count(key) != 1:
        raise ExportError(str(header.path), "it does not say of which file type it is", mend="Convert it again.")
    place = content.index(key) + len(key)
    content[place : place + 4] = struct.pack("<I", file_type)
    return bytes(content)


def tensor_infos(header: GgufHeader, kinds: dict[str, str]) -> bytes:
    """The list of tensors: names, shapes, types and where each begins."""
    from gguf import GGMLQuantizationType

    infos, offset = bytearray(), 0
    for name, tensor in header.tensors.items():
        text = name.encode()
        axes = tuple(reversed(tensor.shape))
        infos += struct.pack("<Q", len(text)) + text + struct.pack(f"<I{len(axes)}Q", len(axes), *axes)
        infos += struct.pack("<IQ", int(GGMLQuantizationType[kinds[name]]), offset)
        offset += padded(tensor_bytes(tensor, kinds[name]))
    return bytes(infos)


def tensor_bytes(tensor: GgufTensor, kind: str) -> int:
    if kind == tensor.type:
        return tensor.bytes
    elements, size = BLOCKS[kind]
    return int(np.prod(tensor.shape)) // elements * size


def padded(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def pad(file: BinaryIO) -> None:
    file.write(bytes(padded(file.tell()) - file.tell()))


def parts_in_order(path: Path, tensor: GgufTensor, kind: str, crew: ThreadPoolExecutor) -> Iterator[NDArray[np.uint8]]:
    """The tensor's bytes, some rows at a time, made by all threads of the crew."""
    if kind == tensor.type:
        yield np.memmap(path, np.uint8, "r", tensor.start, (tensor.bytes,))
        return
    width = tensor.shape[-1]
    rows = int(np.prod(tensor.shape)) // width
    data = np.memmap(path, np.uint16, "r", tensor.start, (rows, width))
    step = max(NUMBERS_AT_A_TIME // width, 1)
    under_way: deque[Future[NDArray[np.uint8]]] = deque()
    for first in range(0, rows, step):
        under_way.append(crew.submit(made, data[first : first + step], tensor.type, kind))
        if len(under_way) > 2 * threads_for_blocks():
            yield under_way.popleft().result()
    for future in under_way:
        yield future.result()


def made(halves: NDArray[np.uint16], stored: str, kind: str) -> NDArray[np.uint8]:
    """Rows of 16-bit numbers as blocks of a type."""
    if stored == "BF16":
        values = (halves.astype(np.uint32) << 16).view(np.float32)
    else:
        values = halves.view(np.float16).astype(np.float32)
    return encoded(values, kind)
