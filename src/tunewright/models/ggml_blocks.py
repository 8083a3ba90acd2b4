"""Numbers to ggml's blocks, by llama.cpp's own function, called where it was compiled into `xllamacpp`.

In go rows of float32, out come the bytes that a GGUF holds. Nothing of `xllamacpp` is imported; the converter's process
uses this module too.
"""

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunewright.errors import EnvironmentLackError

# llama.cpp's enum ggml_type, and how many numbers a block has and how many bytes.
TYPES = {"F16": 1, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
BLOCKS = {
    "F16": (1, 2),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}


@functools.cache
def encoder() -> Any:
    """`ggml_quantize_chunk`; None where it is not to be had."""
    found = importlib.util.find_spec("xllamacpp")
    for directory in (found.submodule_search_locations or []) if found is not None else []:
        for path in Path(directory).glob("xllamacpp*.so"):
            encode = getattr(ctypes.CDLL(str(path)), "ggml_quantize_chunk", None)
            if encode is not None:
                encode.restype = ctypes.c_size_t
                encode.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
                return encode
    return None


def encoded(values: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """Rows of numbers, float32 [rows, width], as blocks of a type, uint8 [rows, bytes of a row].

    Raises:
        EnvironmentLackError: llama.cpp's function is not on this machine.
    """
    encode = encoder()
    if encode is None:
        raise EnvironmentLackError(
            "xllamacpp", "it has no ggml_quantize_chunk", mend="Install the version that tunewright asks for."
        )
    rows, width = values.shape
    elements, size = BLOCKS[kind]
    source = np.ascontiguousarray(values, dtype=np.float32)
    made = np.empty((rows, width // elements * size), np.uint8)
    written = encode(TYPES[kind], source.ctypes.data, made.ctypes.data, 0, rows, width, None)
    if written != made.nbytes:
        raise EnvironmentLackError("xllamacpp", f"{kind} came out with {written} bytes, expected {made.nbytes}")
    return made
