"""What of a run goes to a hub: in go a run and what is wanted of it, out come files with their hashes.

Always: nothing but what stands on the list below; no row of the data, no canary, no checkpoint, no log; no path of this
machine; every file is byte by byte what its stage wrote, or made here from what it wrote.
"""

import hashlib
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args

from tunewright.artifacts import FileRecord, RunDirectory, read_json, sha256_of_json
from tunewright.certificate import CERTIFICATE_NAME, Certificate
from tunewright.errors import ArtifactError, UsageError
from tunewright.push.hub import Sent
from tunewright.report.card import CARD_NAME, Place, card_text, is_local
from tunewright.report.contents import Contents

What = Literal["merged", "adapter", "gguf", "all"]
STAGES = {"merged": ("merge",), "adapter": ("train",), "gguf": ("export",), "all": ("train", "merge", "export")}
MERGED = (
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja"),
)
GGUF = ("model-*.gguf", "Modelfile")
ADAPTER = ("adapter_model.safetensors",)
# These name the base as the recipe does, which may be a path of this machine.
NAMING_THE_BASE = {"adapter_config.json": "base_model_name_or_path", "base.json": "name"}


def validate_what(what: str) -> What:
    for known in get_args(What):
        if what == known:
            return known  # type: ignore[no-any-return]
    raise UsageError("--what", f"found {what!r}", " | ".join(get_args(What)))


def files_to_send(contents: Contents, what: What, repo_id: str) -> list[Sent]:
    """The files of a push, the card made for them among them.

    Raises:
        ArtifactError: a stage that is needed has not finished, or a file is not what its stage wrote.
    """
    files = [*(artifacts(contents.run, what)), made(CERTIFICATE_NAME, as_published(contents.certificate))]
    records = {file.path: FileRecord(file.bytes, file.sha256) for file in files}
    card = card_text(contents, Place(records, repo_id))
    return [*files, sent_bytes(CARD_NAME, card.encode())]


def artifacts(run: RunDirectory, what: What) -> Iterator[Sent]:
    """Beside a merged checkpoint an adapter has a folder of its own, or transformers would take it for the model."""
    if what in ("merged", "all"):
        yield from of_stage(run, "merge", "merged", MERGED)
    if what in ("gguf", "all"):
        yield from of_stage(run, "export", "export", GGUF)
    if what in ("adapter", "all"):
        folder = "adapter/" if what == "all" else ""
        yield from of_stage(run, "train", "adapter", ADAPTER, folder)
        for name, key in NAMING_THE_BASE.items():
            yield made(folder + name, with_public_base(run, name, key))


def of_stage(
    run: RunDirectory, stage: str, directory: str, patterns: tuple[str, ...], folder: str = ""
) -> Iterator[Sent]:
    """The files of a stage that the patterns name, as they were written."""
    manifest = run.require_manifest(stage)
    for path, record in manifest.files.items():
        name = path.removeprefix(f"{directory}/")
        if name != path and any(fnmatch(name, pattern) for pattern in patterns):
            yield Sent(folder + name, run / path, record.bytes, record.sha256)


def validate_unchanged(run: RunDirectory, what: What) -> None:
    """Raise `ArtifactError` if a stage's files, of which some are to be sent, are no longer what it wrote."""
    for stage in STAGES[what]:
        if changed := run.differences(run.require_manifest(stage)):
            raise ArtifactError(str(run.path), changed[0], mend="Run `tunewright run` again: it makes it anew.")


def with_public_base(run: RunDirectory, name: str, key: str) -> dict[str, Any]:
    data = dict(read_json(run / "adapter" / name))
    return {**data, key: public_name(str(data.get(key) or ""))}


def public_name(base: str) -> str:
    """A base's name; of a directory its last part, since its path says where it lies here."""
    return Path(base).name if is_local(base) else base


def as_published(certificate: Certificate) -> Certificate:
    """The certificate without details, which may quote rows; it names the hash of the whole one."""
    stages = [
        {**stage, "evidence": [{**item, "detail": ""} for item in stage["evidence"]]} for stage in certificate["stages"]
    ]
    train = certificate["facts"].get("train", {})
    facts = {
        **certificate["facts"],
        **({"train": {**train, "base": public_name(train["base"])}} if "base" in train else {}),
    }
    content = {key: value for key, value in certificate.items() if key != "certificate_sha256"}
    content |= {"stages": stages, "facts": facts, "without_details_of": certificate["certificate_sha256"]}
    return {**content, "certificate_sha256": sha256_of_json(content)}


def made(path: str, data: dict[str, Any]) -> Sent:
    return sent_bytes(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def sent_bytes(path: str, content: bytes) -> Sent:
    return Sent(path, content, len(content), hashlib.sha256(content).hexdigest())
