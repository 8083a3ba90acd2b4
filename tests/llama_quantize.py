"""What `llama-quantize` does, by a libllama that was built with it.

usage: python llama_quantize.py DIRECTORY_OF_LIBLLAMA SOURCE TARGET FILE_TYPE

A program of its own, since a library that does not fit ends its process. The structure is `llama_model_quantize_params`
of llama.h, of which only the first fields are set here; those behind them keep the defaults that the library gives.
"""

import ctypes
import sys
from pathlib import Path


class Parameters(ctypes.Structure):
    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("rest", ctypes.c_char * 120),
    )


def main(directory: str, source: str, target: str, file_type: str) -> int:
    _, backends, llama = (
        ctypes.CDLL(str(Path(directory) / name), ctypes.RTLD_GLOBAL)
        for name in ("libggml-base.so", "libggml.so", "libllama.so")
    )
    backends.ggml_backend_load_all_from_path(directory.encode())
    llama.llama_backend_init()
    llama.llama_model_quantize_default_params.restype = Parameters
    parameters = llama.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype = 1, int(file_type)
    return int(llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
