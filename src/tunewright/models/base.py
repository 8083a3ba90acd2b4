"""The base model: find it, hash it, load it, and see that what was loaded is what was asked for."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunewright.artifacts import read_json, sha256_of_file, sha256_of_json, write_json
from tunewright.errors import ArtifactError, EnvironmentLackError, ModelError, ModelNotFoundError, RecipeError
from tunewright.events import Events
from tunewright.models.tokenizer_file import load_tokenizer_as_stated
from tunewright.recipe import Bits, ModelKeys
from tunewright.wheels import cache_directory

IDENTITY_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
NOT_IDENTITY = {"tunewright.json"}


@dataclass(frozen=True)
class Base:
    """A base model on disk.

    Attributes:
        name: as the recipe says it.
        path: a directory in Hugging Face's layout, weights in safetensors.
        files: SHA-256 of each file that makes it what it is (weights, configuration, tokenizer), by name.
    """

    name: str
    path: Path
    files: dict[str, str]

    @property
    def identity(self) -> str:
        return sha256_of_json(self.files)


def find_base(keys: ModelKeys, events: Events | None = None) -> Base:
    """The base that the recipe names: embedded, a local directory, or a hub id.

    Raises:
        ModelNotFoundError: there is no such model.
        EnvironmentLackError: it has to be fetched and there is no network.
    """
    name = keys.model
    if name.startswith("embedded:"):
        path = _embedded(name, events)
    elif Path(name).expanduser().is_dir():
        path = Path(name).expanduser().resolve()
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelNotFoundError(
            name,
            "there is no such base model",
            expected="embedded:smollm2-135m-instruct, a directory, or a hub id such as Qwen/Qwen3-1.7B",
        )
    else:
        path = _fetch_from_hub(name, keys.model_revision)
    _validate_checkpoint(name, path)
    return Base(name, path, identity_files(path))


def _embedded(name: str, events: Events | None) -> Path:
    from tunewright.models.embedded import EMBEDDED_NAME, embedded_base_path

    if name != EMBEDDED_NAME:
        raise ModelNotFoundError(name, "there is no such embedded base", expected=EMBEDDED_NAME)
    return embedded_base_path(events)


def _fetch_from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        settings = Path(snapshot_download(name, revision=revision, allow_patterns=["*.json"]))
        if (settings / "config.json").is_file():
            _validate_config(settings)
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(IDENTITY_PATTERNS)))
    except GatedRepoError:
        raise ModelNotFoundError(
            name, "the hub asks for its licence to be accepted", mend="Accept it on the model's page and set HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        raise ModelNotFoundError(name, "the hub has no such model, or it is private", mend="Check the id.") from None
    except (LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentLackError(
            name,
            f"the base is not on this machine and the hub cannot be reached ({reason})",
            mend="Check the network, or name a local directory or embedded:smollm2-135m-instruct.",
        ) from None


def _validate_checkpoint(name: str, path: Path) -> None:
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(name, f"{path} has no config.json", expected="a directory in Hugging Face's layout")
    if not list(path.glob("*.safetensors")):
        raise ModelNotFoundError(
            name,
            f"{path} has no weights in safetensors",
            expected="*.safetensors",
            mend="Convert the checkpoint first; weights in pickle files are not loaded.",
        )
    _validate_config(path)


def _validate_config(path: Path) -> None:
    """Raise `ModelError` if `config.json` says what training cannot work with; weights need not be there yet."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "unknown")
        raise ModelError(
            f"{path}/config.json",
            f"the base is already quantized ({method})",
            expected="the 16-bit original",
            mend="Name the original checkpoint: merging into a quantized base damages it.",
        )
    for section in (config, config.get("text_config") or {}):
        _validate_rope(f"{path}/config.json", section.get("rope_scaling"))


def _validate_rope(where: str, scaling: Any) -> None:
    """Raise `ModelError` if `rope_scaling` does not say of which kind it is; older files call the kind `type`."""
    if scaling is None:
        return
    stated = scaling if isinstance(scaling, dict) else {}
    kinds = {str(stated[key]) for key in ("rope_type", "type") if key in stated}
    if len(kinds) != 1 and not _is_by_layer(stated):
        found = " and ".join(sorted(kinds)) or "none"
        raise ModelError(
            where,
            f"rope_scaling names not one kind but {found}",
            expected='one, such as {"rope_type": "linear", "factor": 2.0}',
            mend="Correct it as the model's page says, or set it to null where the context was never stretched.",
        )


def _is_by_layer(scaling: dict[str, Any]) -> bool:
    """Whether each kind of layer has settings of its own."""
    return bool(scaling) and all(isinstance(each, dict) for each in scaling.values())


def identity_files(path: Path) -> dict[str, str]:
    """SHA-256 of each file that makes a checkpoint what it is, by name."""
    found = sorted({file for pattern in IDENTITY_PATTERNS for file in path.glob(pattern)})
    return {file.name: _cached_sha256(file) for file in found if file.name not in NOT_IDENTITY}


def _cached_sha256(path: Path) -> str:
    """The hash of a file of a base, remembered by path, size and time of change: bases are large and rarely change."""
    status = path.stat()
    key = sha256_of_json([str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino])
    record = cache_directory() / "hashes" / f"{key}.json"
    if record.is_file():
        return str(json.loads(record.read_text(encoding="utf-8")))
    digest = sha256_of_file(path)
    write_json(record, digest)
    return digest


def load_config(path: Path) -> Any:
    """The configuration of a checkpoint directory.

    Raises:
        ModelError: transformers does not take it.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path}/config.json", f"transformers does not take it ({reason})") from None


def load_tokenizer(path: Path) -> Any:
    """The fast tokenizer of a checkpoint directory."""
    tokenizer = load_tokenizer_as_stated(path)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            str(path), "its tokenizer gives no character offsets", expected="a tokenizer.json (a fast tokenizer)"
        )
    return tokenizer


def load_model(
    path: Path, dtype: Any, device: str = "cpu", trust_remote_code: bool = False, bits: Bits | None = None
) -> Any:
    """The causal language model of a checkpoint directory, every weight in `dtype` (a torch dtype).

    Args:
        bits: of the linear layers, where they are to be packed while loading; they compute in `dtype`.

    Raises:
        ModelError: the checkpoint cannot be loaded, or weights are missing, or it came out in another dtype.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from tunewright.models.quantized import compute_unpacked, quantization_config, validate_quantized

    logging.disable_progress_bar()
    packing = {"quantization_config": quantization_config(bits, dtype), "device_map": {"": device}} if bits else {}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **packing,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(str(path), f"the model does not load ({str(error).splitlines()[0]})") from None
    missing = [name for name in info["missing_keys"] if "lm_head" not in name or not model.config.tie_word_embeddings]
    if missing or info["mismatched_keys"]:
        raise ModelError(
            str(path),
            f"weights are missing or have other shapes: {[*missing, *info['mismatched_keys']][:5]}",
            mend="The directory and its config.json do not belong together; fetch the base again.",
        )
    if bits:
        validate_quantized(str(path), model, bits)
        compute_unpacked(model, dtype)
    found = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point() or not bits}
    if wrong := sorted(str(other) for other in found - {dtype}):
        raise ModelError(str(path), f"weights came out in {', '.join(wrong)}", expected=str(dtype))
    return (model if bits else model.to(device)).eval()


@contextmanager
def peft_warnings_silenced() -> Iterator[None]:
    """peft asks the model for checkpointing by a name that transformers calls deprecated; the user cannot mend that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        yield


def with_adapter(model: Any, lora: Any, **options: Any) -> Any:
    """`model` with the adapter that a peft LoraConfig describes; `options` go to peft.

    Raises:
        RecipeError: no module of the model has one of the names in `lora_target_modules`.
    """
    from peft import get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    try:
        with peft_warnings_silenced():
            return get_peft_model(model, lora, **options)
    except (ValueError, NoMatchingPeftModuleError) as error:
        raise RecipeError(
            "lora_target_modules", str(error).splitlines()[0], mend="Use `all-linear`, or names of linear modules."
        ) from None


def decoder_layers(model: Any) -> list[Any]:
    """The modules of which the body is a stack: those that transformers names as not to be split.

    Raises:
        ModelError: the architecture names none.
    """
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError("fsdp", "the base does not tell which modules are its layers", mend="Leave fsdp out.")
    return layers


def load_adapted(base: Path, adapter: Path, dtype: Any, device: str, bits: Bits | None = None) -> Any:
    """The base of a directory with what was trained in another: an adapter as peft loads it, or every weight."""
    from peft import PeftModel

    from tunewright.models.adapter import ADAPTER_FILE, CONFIG_FILE
    from tunewright.models.whole import is_whole, read_whole_weights

    if is_whole(read_json(adapter / CONFIG_FILE)):
        model = load_model(base, dtype, device)
        read_whole_weights(adapter / ADAPTER_FILE, model)
        return model
    with peft_warnings_silenced():
        return PeftModel.from_pretrained(load_model(base, dtype, device, bits=bits), str(adapter)).eval()


def stop_token_ids(path: Path, tokenizer: Any) -> frozenset[int]:
    """The ids on which generation stops: those of `generation_config.json` and the tokenizer's EOS.

    Raises:
        ModelError: there is none.
    """
    ids = generation_stop_ids(path)
    if tokenizer.eos_token_id is not None:
        ids |= {int(tokenizer.eos_token_id)}
    if not ids:
        raise ModelError(str(path), "no stop token is defined", expected="eos_token_id in generation_config.json")
    return ids


def generation_stop_ids(path: Path) -> frozenset[int]:
    """`eos_token_id` of a checkpoint's `generation_config.json`; empty where there is none."""
    config = path / "generation_config.json"
    value = json.loads(config.read_text(encoding="utf-8")).get("eos_token_id") if config.is_file() else None
    return frozenset([value] if isinstance(value, int) else value or [])


def compute_device() -> Literal["cpu", "cuda"]:
    """`cuda` where a GPU is there, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def whole_device(path: Path) -> Literal["cpu", "cuda"]:
    """`cuda` where a GPU has room for a checkpoint's 16-bit weights and a fifth more, else `cpu`."""
    import torch

    stored = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return "cuda" if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 1.2 * stored else "cpu"


def validate_same_base(base: Base, recorded: dict[str, str]) -> None:
    """Raise `ArtifactError` naming the first file of the base that is not the one that was recorded."""
    for name in sorted({*base.files, *recorded}):
        if base.files.get(name) != recorded.get(name):
            raise ArtifactError(
                f"{base.path}/{name}",
                "the base is not the one that was trained on",
                expected=f"SHA-256 {recorded.get(name, 'of a file that was not there')[:16]}",
                mend="Put the original base back, or train again.",
            )
