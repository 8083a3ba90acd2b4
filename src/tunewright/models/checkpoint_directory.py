"""The files of a 16-bit checkpoint beside its weights: configuration, generation settings, tokenizer, chat template.

In goes a base's directory; out come files that transformers 4 and 5, vLLM, TGI and llama.cpp's converter read. Always:
what describes the tokens is the base's own; only in `tokenizer_config.json` are keys put as older readers need them
(`tokenizer_class`, `additional_special_tokens`, `chat_template`).
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from tunewright.artifacts import read_json, write_json, write_text
from tunewright.evidence import Evidence
from tunewright.models.base import load_tokenizer, stop_token_ids
from tunewright.models.tokenizer_file import KNOWN_TOKENIZER_CLASS, check_tokenizer_file

COPIED = (
    *("tokenizer*", "*.jinja", "chat_template.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.py", "preprocessor_config.json", "processor_config.json", "LICENSE*"),
)
TEMPLATE_FILE = "chat_template.jinja"
# What transformers 5 calls a tokenizer that is nothing but its tokenizer.json.
NEW_TOKENIZER_CLASS = "TokenizersBackend"


def write_configuration(
    base_path: Path,
    directory: Path,
    dtype: torch.dtype,
    settings: dict[str, Any],
    stop_ids: frozenset[int] = frozenset(),
) -> None:
    """All files of a merged checkpoint but its weights.

    Args:
        settings: keys of `config.json` that are no longer the base's; they are set where the base has them.
        stop_ids: ids that end a turn, beside those that the base states.
    """
    copy_tokenizer(base_path, directory)
    config = merged_config(read_json(base_path / "config.json"), dtype, settings)
    write_json(directory / "config.json", with_older_names(config))
    write_tokenizer_config(directory)
    generation = base_path / "generation_config.json"
    found = read_json(generation) if generation.is_file() else {}
    stops = sorted(stop_token_ids(base_path, load_tokenizer(base_path)) | stop_ids)
    found["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    write_json(directory / "generation_config.json", found)


def copy_tokenizer(base_path: Path, directory: Path) -> None:
    """What describes tokens and chats."""
    for pattern in COPIED:
        for file in sorted(base_path.glob(pattern)):
            shutil.copyfile(file, directory / file.name)


def check_merged_tokenizer(base_path: Path) -> Evidence:
    """That transformers will build, from a merged checkpoint, the tokenizer that the base's `tokenizer.json` says."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        copy_tokenizer(base_path, directory)
        shutil.copyfile(base_path / "config.json", directory / "config.json")
        write_tokenizer_config(directory)
        return check_tokenizer_file(directory)


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


def with_older_names(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which transformers 4 finds what transformers 5 has renamed; nothing that is there changes.

    Without a word, 4 takes its own default for what it does not find: another base frequency, say.
    """
    named = {key: with_older_names(value) if isinstance(value, dict) else value for key, value in config.items()}
    for key, value in (older_aliases(config) | older_rotary_names(config.get("rope_parameters"))).items():
        named.setdefault(key, value)
    return named


def older_aliases(config: dict[str, Any]) -> dict[str, Any]:
    """The settings under their other names, from transformers' own table for this kind of model."""
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    aliases: dict[str, str] = CONFIG_MAPPING[kind].attribute_map if kind in CONFIG_MAPPING else {}
    return {alias: config[name] for alias, name in aliases.items() if name in config}


def older_rotary_names(rope: Any) -> dict[str, Any]:
    """What transformers 5 writes as `rope_parameters`. Where layers have frequencies of two kinds, 4 has two names."""
    if not isinstance(rope, dict):
        return {}
    named = {}
    local = rope.get("sliding_attention")
    if isinstance(local, dict) and "rope_theta" in local:
        named["rope_local_base_freq"] = local["rope_theta"]
    rope = rope.get("full_attention") or rope
    own = ("rope_theta", "partial_rotary_factor")
    named |= {key: rope[key] for key in own if rope.get(key) is not None}
    scaling = {key: value for key, value in rope.items() if key not in own}
    return named if scaling.get("rope_type", "default") == "default" else {**named, "rope_scaling": scaling}


def write_tokenizer_config(directory: Path) -> None:
    """Let `tokenizer_config.json` be read by older readers, and give the chat template both as a file and inline.

    Where transformers would build another tokenizer than `tokenizer.json` describes, it is told to take that.
    """
    path = directory / "tokenizer_config.json"
    before = read_json(path) if path.is_file() else {}
    settings = dict(before)
    if settings.get("tokenizer_class", NEW_TOKENIZER_CLASS) == NEW_TOKENIZER_CLASS:
        settings["tokenizer_class"] = KNOWN_TOKENIZER_CLASS
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    template_file = directory / TEMPLATE_FILE
    if template_file.is_file():
        settings["chat_template"] = template_file.read_text(encoding="utf-8")
    elif isinstance(settings.get("chat_template"), str):
        write_text(template_file, settings["chat_template"])
    if settings != before:
        write_json(path, settings)
    if check_tokenizer_file(directory).verdict == "fail":
        write_json(path, {**settings, "tokenizer_class": KNOWN_TOKENIZER_CLASS})


def write_chat_template(directory: Path, source: str) -> None:
    """Make `source` the one chat template of a checkpoint, wherever a reader looks for it."""
    for file in (*directory.glob("*.jinja"), directory / "chat_template.json"):
        file.unlink(missing_ok=True)
    write_text(directory / TEMPLATE_FILE, source)
    write_tokenizer_config(directory)
