"""The files of a 16-bit checkpoint beside its weights: configuration, generation settings, tokenizer, chat template.

In goes a base's directory; out come files that transformers 4 and 5, vLLM, TGI and llama.cpp's converter read. Always:
what describes the tokens is the base's own, byte by byte, except the two keys that older readers need
(`tokenizer_class`, `chat_template`).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tunewright.artifacts import read_json, write_json, write_text
from tunewright.models.base import load_tokenizer, stop_token_ids

COPIED = (
    *("tokenizer*", "*.jinja", "chat_template.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.py", "preprocessor_config.json", "processor_config.json", "LICENSE*"),
)
TEMPLATE_FILE = "chat_template.jinja"
# What transformers 5 calls a tokenizer that is nothing but its tokenizer.json, and what every version calls it.
NEW_TOKENIZER_CLASS = "TokenizersBackend"
KNOWN_TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def write_configuration(base_path: Path, directory: Path, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    """All files of a merged checkpoint but its weights.

    Args:
        settings: keys of `config.json` that are no longer the base's; they are set where the base has them.
    """
    for pattern in COPIED:
        for file in sorted(base_path.glob(pattern)):
            shutil.copyfile(file, directory / file.name)
    write_json(directory / "config.json", merged_config(read_json(base_path / "config.json"), dtype, settings))
    write_tokenizer_config(directory)
    generation = base_path / "generation_config.json"
    found = read_json(generation) if generation.is_file() else {}
    stops = sorted(stop_token_ids(base_path, load_tokenizer(base_path)))
    found["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    write_json(directory / "generation_config.json", found)


def merged_config(config: dict[str, Any], dtype: torch.dtype, settings: dict[str, Any]) -> dict[str, Any]:
    """`config.json` with the dtype under the names of old and new readers, and the changed settings."""
    name = str(dtype).removeprefix("torch.")
    merged = {**config, "torch_dtype": name, "dtype": name}
    text = merged.get("text_config")
    if isinstance(text, dict):
        merged["text_config"] = {**text, **{key: value for key, value in settings.items() if key in text}}
    for key, value in settings.items():
        if key in config or not isinstance(text, dict) or key == "tie_word_embeddings":
            merged[key] = value
    return merged


def write_tokenizer_config(directory: Path) -> None:
    """Name a tokenizer class that every reader knows, and give the chat template both as a file and inline."""
    path = directory / "tokenizer_config.json"
    before = read_json(path) if path.is_file() else {}
    settings = dict(before)
    if settings.get("tokenizer_class", NEW_TOKENIZER_CLASS) == NEW_TOKENIZER_CLASS:
        settings["tokenizer_class"] = KNOWN_TOKENIZER_CLASS
    template_file = directory / TEMPLATE_FILE
    if template_file.is_file():
        settings["chat_template"] = template_file.read_text(encoding="utf-8")
    elif isinstance(settings.get("chat_template"), str):
        write_text(template_file, settings["chat_template"])
    if settings != before:
        write_json(path, settings)


def write_chat_template(directory: Path, source: str) -> None:
    """Make `source` the one chat template of a checkpoint, wherever a reader looks for it."""
    for file in (*directory.glob("*.jinja"), directory / "chat_template.json"):
        file.unlink(missing_ok=True)
    write_text(directory / TEMPLATE_FILE, source)
    write_tokenizer_config(directory)


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is missing."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
