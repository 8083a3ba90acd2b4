"""The files of a run: is each one what it claims to be? Every failure names its cause."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, read_json
from tunewright.errors import TunewrightError
from tunewright.events import Events
from tunewright.evidence import Evidence, equal, failed
from tunewright.models.base import Base, generation_stop_ids, load_tokenizer, stop_token_ids
from tunewright.models.dequantized import base_of_merge
from tunewright.models.gguf_file import check_gguf, first_difference, read_gguf_facts
from tunewright.models.merge_check import check_base, check_merged
from tunewright.models.tensors import tensor_hashes
from tunewright.models.tokenizer_file import TOKENIZER_PROBES
from tunewright.verify.modelfile import check_modelfile


def check_files(run: RunDirectory, base: Base, events: Events) -> list[Evidence]:
    """Evidence on the base, the adapter, the merged checkpoint and each GGUF file, in that order."""
    template = read_json(run / "tokens" / "template.json")
    stop_ids = frozenset(template["stop_ids"])
    recorded = read_json(run / "adapter" / "base.json")
    adapter, merged = run / "adapter", run / "merged"
    evidence = [
        *attempt("base_unchanged", lambda: [check_base(recorded, base.files, tensor_hashes(base.path))]),
        *attempt("adapter_unchanged", lambda: [check_adapter(run)]),
        *attempt("merge_exact", lambda: check_merged(base.path, adapter, merged, events, base_of_merge(run))),
        *attempt("tokenizer_same", lambda: check_tokenizer(base.path, merged, template["chat_template"], stop_ids)),
    ]
    for label, path in run.gguf_files.items():
        for item in attempt(
            "gguf_complete",
            lambda path=path: check_gguf(  # type: ignore[misc]
                path, chat_template=template["chat_template"], stop_ids=stop_ids, merged_directory=merged
            ),
        ):
            evidence.append(Evidence(f"{item.name}_{label}", item.value, item.limit, item.verdict, item.detail))
        evidence += attempt(f"gguf_bos_{label}", lambda path=path, label=label: [check_bos(run, path, label)])  # type: ignore[misc]
    evidence += attempt("modelfile_same", lambda: [check_modelfile(run)])
    return evidence


def attempt(name: str, check: Callable[[], list[Evidence]]) -> list[Evidence]:
    """The evidence of a check; what it could not even read is a failure under `name`."""
    try:
        return check()
    except TunewrightError as error:
        return [failed(name, False, "= True", str(error))]


def check_adapter(run: RunDirectory) -> Evidence:
    """That the adapter is the one that this run trained and recorded its canaries with."""
    manifest = run.require_manifest("train")
    differences = [text for text in run.differences(manifest) if "adapter_" in text]
    detail = "The adapter is the one that this run trained, byte by byte."
    if differences:
        detail = f"This is not the adapter that this run trained: {'; '.join(differences)}."
    return equal("adapter_unchanged", not differences, True, detail)


def check_bos(run: RunDirectory, path: Path, label: str) -> Evidence:
    """That llama.cpp puts no BOS before the prompt that was not trained; one that the template writes it leaves out."""
    gguf = read_gguf_facts(path)
    canaries = read_json(run / "adapter" / "canaries.json")["canaries"]
    trained = bool(canaries) and canaries[0]["prompt_ids"][0] == gguf.bos_id
    good = trained or not gguf.adds_bos or gguf.bos_id is None
    detail = "llama.cpp puts no token before the prompt that was not trained."
    if not good:
        detail = (
            f"the GGUF has llama.cpp put a BOS, {gguf.tokens[gguf.bos_id or 0]}, before each prompt; the model was "
            "trained without. Set add_bos_token to false in the base's tokenizer_config.json and export again."
        )
    return equal(f"gguf_bos_{label}", good, True, detail)


def check_tokenizer(base: Path, merged: Path, chat_template: str, stop_ids: frozenset[int]) -> list[Evidence]:
    """That the merged checkpoint has the base's tokenizer, the trained template, and every stop token."""
    ours, theirs = load_tokenizer(base), load_tokenizer(merged)
    differing = [text for text in TOKENIZER_PROBES if ours.encode(text) != theirs.encode(text)]
    size = len(ours) - len(theirs)
    detail = f"{len(TOKENIZER_PROBES)} texts give the same ids in merged/ as in the base."
    if differing or size:
        detail = (
            f"merged/ has the tokenizer of another model: {len(theirs)} tokens against {len(ours)} of the base; "
            f"{len(differing)} of {len(TOKENIZER_PROBES)} texts give other ids."
        )
    template = str(theirs.chat_template or "")
    stated = generation_stop_ids(merged)
    missing, extra = stop_ids - stated, stated - stop_ids - stop_token_ids(base, ours)
    lacking = name_tokens(ours, missing)
    stop_detail = f"merged/generation_config.json lacks the stop token {lacking}." if missing else ""
    return [
        equal("merged_tokenizer_same", not (differing or size), True, detail),
        equal("merged_chat_template_same", template == chat_template, True, template_detail(template, chat_template)),
        equal("merged_stop_tokens_missing", len(missing), 0, stop_detail),
        equal("merged_stop_tokens_extra", len(extra), 0, f"merged/ also stops at {name_tokens(ours, extra)}."),
    ]


def name_tokens(tokenizer: Any, ids: frozenset[int]) -> str:
    return ", ".join(str(token) for token in tokenizer.convert_ids_to_tokens(sorted(ids))) or "nothing else"


def template_detail(found: str, trained: str) -> str:
    if found == trained:
        return "The chat template is the trained one."
    return f"The chat template is not the trained one: {first_difference(found, trained)}"
