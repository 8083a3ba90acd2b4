"""Is a directory a 16-bit checkpoint, and will transformers 4 and 5, vLLM, TGI and llama.cpp load it for what it is?

In goes any directory in Hugging Face's layout; out comes evidence. Nothing is loaded as a model: headers, small files,
and every number once, to see that it is finite.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tunewright.artifacts import read_json
from tunewright.errors import ArtifactError, ModelError
from tunewright.evidence import Evidence, equal, fact, failed
from tunewright.models.base import generation_stop_ids, load_tokenizer
from tunewright.models.checkpoint_directory import TEMPLATE_FILE, with_older_names
from tunewright.models.merge_check import check_config, is_finite
from tunewright.models.merge_plan import BLOCK_ELEMENTS, QUANTIZED_NAMES
from tunewright.models.outline import read_outline
from tunewright.models.safetensors_file import StoredTensor, TensorReader, stored_tensors
from tunewright.models.tensors import INDEX_FILE
from tunewright.models.tokenizer_file import KNOWN_TOKENIZER_CLASS, check_tokenizer_file

HALVES = (torch.bfloat16, torch.float16)
MERGE_AGAIN = "Write the directory again with `tunewright merge`."


def check_checkpoint(
    directory: Path, turn_ends: Callable[[Any], frozenset[int]] = lambda tokenizer: frozenset()
) -> list[Evidence]:
    """Evidence on a checkpoint directory.

    Args:
        turn_ends: gives, for a tokenizer with a chat template, the ids on which the template ends a turn.
    """
    try:
        stored = stored_tensors(directory)
        tokenizer = load_tokenizer(directory)
    except (ArtifactError, ModelError) as error:
        return [failed("checkpoint_readable", False, "= True", str(error))]
    except (OSError, ValueError) as error:
        reason = f"{directory}: its tokenizer cannot be read ({str(error).splitlines()[0]})."
        return [failed("checkpoint_readable", False, "= True", reason)]
    return [
        fact("tensors", len(stored)),
        check_index(directory),
        *check_tensors(stored),
        *check_config(directory),
        *check_model(directory, stored, len(tokenizer)),
        check_tokenizer_file(directory),
        equal("chat_template_present", bool(tokenizer.chat_template), True),
        *check_readers(directory, turn_ends(tokenizer)),
    ]


def check_index(directory: Path) -> Evidence:
    """That every file of weights is in the index, and each tensor in the file that the index says."""
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    index = directory / INDEX_FILE
    if not index.is_file():
        detail = f"{', '.join(files)} without {INDEX_FILE}." if len(files) > 1 else ""
        return equal("index_complete", len(files) <= 1, True, detail)
    strays = sorted(set(files) - set(read_json(index)["weight_map"].values()))
    detail = f"{', '.join(strays[:3])} stand beside the index, which does not name them." if strays else ""
    return equal("index_complete", not strays, True, detail)


def check_tensors(stored: dict[str, StoredTensor]) -> list[Evidence]:
    wide = [name for name, tensor in stored.items() if tensor.dtype not in HALVES]
    left_over = [name for name in stored if "lora_" in name or name.endswith((*QUANTIZED_NAMES, ".quant_state"))]
    with TensorReader() as reader:
        not_finite = [name for name, tensor in stored.items() if not all_finite(reader, tensor)]
    return [
        equal("tensors_not_16_bit", len(wide), 0, ", ".join(wide[:3])),
        equal("tensors_not_finite", len(not_finite), 0, ", ".join(not_finite[:3])),
        equal("tensors_left_over", len(left_over), 0, ", ".join(left_over[:3])),
    ]


def all_finite(reader: TensorReader, tensor: StoredTensor) -> bool:
    step = max(BLOCK_ELEMENTS // max(tensor.row_elements, 1), 1)
    blocks = range(0, tensor.rows, step)
    return all(is_finite(reader.read(tensor, first, min(first + step, tensor.rows))) for first in blocks)


def check_model(directory: Path, stored: dict[str, StoredTensor], tokens: int) -> list[Evidence]:
    """That the tensors are those of the architecture that `config.json` names, and hold its vocabulary."""
    try:
        outline = read_outline(directory, list(stored))
    except ModelError as error:
        return [Evidence("architecture_known", False, "= True", "warn", str(error))]
    stated = read_json(directory / "config.json").get("architectures") or []
    right = type(outline.model).__name__ in stated
    detail = "" if right else f"config.json says {stated}; the weights are of a {type(outline.model).__name__}."
    shapes = {name: tuple(tensor.shape) for name, tensor in outline.model.named_parameters()}
    reached = {place.parameter for place in outline.places.values()}
    missing = sorted(set(shapes) - reached - ({outline.head or ""} if outline.tied else set()))
    other = [
        name
        for name, place in outline.places.items()
        if place.expert is None and not place.unknown and shapes.get(place.parameter, ()) != stored[name].shape
    ]
    rows = shapes[outline.embedding][0] if outline.embedding in shapes else tokens
    return [
        equal("architecture_right", right, True, detail),
        equal("tensors_missing", len(missing), 0, ", ".join(missing[:3])),
        equal("tensors_of_another_shape", len(other), 0, ", ".join(other[:3])),
        equal("vocabulary_fits", tokens <= rows, True, f"{tokens} tokens, {rows} rows in the embedding."),
    ]


def check_readers(directory: Path, turn_ends: frozenset[int] = frozenset()) -> list[Evidence]:
    """That older readers take it for what newer ones do, and that generation ends where a turn ends."""
    faults = older_reader_faults(directory)
    stops = generation_stop_ids(directory)
    missing = sorted(turn_ends - stops)
    detail = "eos_token_id in generation_config.json."
    if missing:
        detail = f"generation_config.json lacks {missing}, on which the chat template ends a turn: it would not stop."
    return [
        equal("older_readers", len(faults), 0, " ".join([*faults, MERGE_AGAIN]) if faults else ""),
        equal("stop_tokens_present", bool(stops) and not missing, True, detail),
    ]


def older_reader_faults(directory: Path) -> list[str]:
    """What transformers 4 would refuse or, worse, take for something else."""
    faults = []
    tokenizer = read_settings(directory / "tokenizer_config.json")
    name = str(tokenizer.get("tokenizer_class", "none"))
    if not name.endswith(("Tokenizer", "TokenizerFast")):
        faults.append(f"tokenizer_class {name} is not known to them; {KNOWN_TOKENIZER_CLASS} is.")
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        faults.append("extra_special_tokens is a list; they take additional_special_tokens.")
    template = directory / TEMPLATE_FILE
    if template.is_file() and tokenizer.get("chat_template") != template.read_text(encoding="utf-8"):
        faults.append(f"the chat template in tokenizer_config.json is not that of {TEMPLATE_FILE}.")
    config = read_settings(directory / "config.json")
    unnamed = sorted(set(with_older_names(config)) - set(config))
    if unnamed:
        faults.append(f"config.json lacks {', '.join(unnamed)}: they would take their own default.")
    if "torch_dtype" not in config:
        faults.append("torch_dtype is missing: they would load 32 bits.")
    return faults


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is missing."""
    found: dict[str, Any] = read_json(path) if path.is_file() else {}
    return found
