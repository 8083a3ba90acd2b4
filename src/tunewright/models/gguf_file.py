"""A GGUF file: what it says of itself, and the proof that it is the merged model.

In go a path and what was trained (template, stop tokens, merged checkpoint); out come facts and evidence. Nothing of
llama.cpp is run here: the file is read and compared.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.errors import ArtifactError
from tunewright.evidence import Evidence, equal, failed
from tunewright.models.gguf_header import GgufHeader, read_gguf_header
from tunewright.models.gguf_settings import check_settings
from tunewright.models.gguf_tensors import check_gguf_tensors

# llama.cpp's enum llama_token_type.
NORMAL_TOKEN = 1
SPACE = "▁"
OTHER_TOKENIZER = "The tokenizer is another model's"


@dataclass(frozen=True)
class GgufFacts:
    """What a GGUF says of itself.

    Attributes:
        tensor_types: how many tensors there are of each ggml type.
        adds_bos: whether llama.cpp puts a BOS before a prompt; where the file is silent, by its kind of tokenizer.
        tokens: the vocabulary in order of ids.
    """

    header: GgufHeader
    architecture: str
    tensor_count: int
    tensor_types: dict[str, int]
    context_length: int | None
    chat_template: str | None
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    adds_bos: bool
    tokens: list[str]


def read_gguf_facts(path: Path) -> GgufFacts:
    """The facts of the GGUF at `path`.

    Raises:
        ArtifactError: the file is missing, is no GGUF, was cut off, or its header makes no sense.
    """
    header = read_gguf_header(path)
    data = header.metadata
    architecture = str(data.get("general.architecture", ""))
    # llama.cpp adds a BOS to SentencePiece vocabularies unless told otherwise, and to no others.
    default_bos = data.get("tokenizer.ggml.model") == "llama"
    return GgufFacts(
        header=header,
        architecture=architecture,
        tensor_count=len(header.tensors),
        tensor_types=dict(Counter(tensor.type for tensor in header.tensors.values())),
        context_length=data.get(f"{architecture}.context_length"),
        chat_template=data.get("tokenizer.chat_template"),
        bos_id=data.get("tokenizer.ggml.bos_token_id"),
        eos_id=data.get("tokenizer.ggml.eos_token_id"),
        eot_id=data.get("tokenizer.ggml.eot_token_id"),
        adds_bos=bool(data.get("tokenizer.ggml.add_bos_token", default_bos)),
        tokens=list(data.get("tokenizer.ggml.tokens", [])),
    )


def check_gguf(
    path: Path, *, chat_template: str, stop_ids: frozenset[int], merged_directory: Path | None
) -> list[Evidence]:
    """Evidence that the GGUF at `path` is whole and is what was trained.

    Args:
        chat_template: the Jinja text that the rows were rendered with.
        stop_ids: the ids on which generation stops.
        merged_directory: the checkpoint it was converted from; without it weights and vocabulary are not compared.

    Returns:
        `gguf_complete`, `gguf_chat_template`, `gguf_stop_token`, `gguf_settings`, `gguf_tensors` and `gguf_tokenizer`;
        only the first, as a failure, where the file cannot be read.

    Raises:
        ArtifactError: the merged checkpoint is missing or damaged.
    """
    try:
        facts = read_gguf_facts(path)
    except ArtifactError as error:
        return [failed("gguf_complete", False, "a whole GGUF file", str(error))]
    evidence = [
        check_complete(facts),
        check_chat_template(facts, chat_template),
        check_stop_token(facts, stop_ids),
    ]
    if merged_directory is not None:
        evidence.append(check_settings(facts.header, merged_directory))
        evidence.append(check_gguf_tensors(facts.header, merged_directory))
        evidence.append(check_tokenizer(facts, merged_directory))
    return evidence


def check_complete(facts: GgufFacts) -> Evidence:
    header = facts.header
    types = ", ".join(f"{count} {name}" for name, count in sorted(facts.tensor_types.items()))
    detail = f"{facts.tensor_count} tensors ({types})."
    if header.file_bytes != header.needed_bytes:
        detail = (
            f"the file has {header.file_bytes} bytes, its tensors end at byte {header.needed_bytes}. "
            "The end was cut off or something was added: export again."
        )
    return equal("gguf_complete", header.file_bytes, header.needed_bytes, detail)


def check_chat_template(facts: GgufFacts, expected: str) -> Evidence:
    found = facts.chat_template
    detail = f"The GGUF holds the template that was trained, {len(expected)} characters."
    if found is None:
        detail = "the GGUF has no chat template. Export again from a checkpoint with chat_template.jinja."
    elif found != expected:
        detail = f"{first_difference(found, expected)}. What is served would not be what was trained: export again."
    return equal("gguf_chat_template", found == expected, True, detail)


def first_difference(found: str, expected: str) -> str:
    """Where two different texts part, with what follows in each."""
    pairs = zip(found, expected, strict=False)
    at = next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))
    return f"at character {at} found {found[at : at + 40]!r}, expected {expected[at : at + 40]!r}"


def check_stop_token(facts: GgufFacts, stop_ids: frozenset[int]) -> Evidence:
    """The GGUF's own end token must be one that was trained; llama.cpp stops there without being told."""
    ends = [number for number in (facts.eos_id, facts.eot_id) if number is not None]
    names = [facts.tokens[number] if number < len(facts.tokens) else f"id {number}" for number in ends]
    detail = f"llama.cpp stops at {' and '.join(names)}."
    good = any(number in stop_ids for number in ends)
    if not good:
        wanted = [facts.tokens[number] for number in sorted(stop_ids) if number < len(facts.tokens)]
        detail = (
            f"the GGUF ends turns with {' and '.join(names) or 'no token'}, the rows were trained to end with "
            f"{' or '.join(wanted)}: answers would not stop. Set eos_token_id in the base's config.json."
        )
    return equal("gguf_stop_token", good, True, detail)


def check_tokenizer(facts: GgufFacts, merged_directory: Path) -> Evidence:
    """The vocabulary must be the checkpoint's, token by token, and must say in which order llama.cpp merges."""
    from tunewright.models.base import load_tokenizer

    tokenizer = load_tokenizer(merged_directory)
    expected = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    wrong = [
        index
        for index, token in enumerate(expected)
        if index >= len(facts.tokens) or not is_same_token(facts.tokens[index], token)
    ]
    detail = f"{len(expected)} tokens, all as in the checkpoint's tokenizer."
    if wrong:
        found = facts.tokens[wrong[0]] if wrong[0] < len(facts.tokens) else None
        cause = "The vocabulary is shifted by one" if is_shifted(facts.tokens, expected) else OTHER_TOKENIZER
        told = f"token {wrong[0]} is {found!r} in the GGUF and {expected[wrong[0]]!r} in the checkpoint."
        detail = f"{told} {cause}: export again."
    elif lacks_merge_order(facts.header.metadata):
        wrong = list(range(len(expected)))
        detail = (
            "all tokens have the same score, so that llama.cpp would split text differently from the checkpoint's "
            "tokenizer. The converter needs the base's tokenizer.model: put it into the merged directory."
        )
    return equal("gguf_tokenizer", len(wrong), 0, detail)


def is_shifted(found: list[str], expected: list[str | None]) -> bool:
    """Whether nearly every token stands one place further, or one place nearer, than it should."""
    down = zip(found[1:], expected, strict=False)
    up = zip(found, expected[1:], strict=False)
    most = 0.9 * len(expected)
    return any(sum(is_same_token(a, b) for a, b in pairs) > most for pairs in (down, up))


def is_same_token(found: str, expected: str | None) -> bool:
    # The converter writes added tokens with real spaces, and names ids that the tokenizer leaves empty.
    return expected is None or found in (expected, expected.replace(SPACE, " "))


def lacks_merge_order(metadata: dict[str, Any]) -> bool:
    """Whether a SentencePiece vocabulary has one score for all its ordinary tokens (converted from tokenizer.json)."""
    if metadata.get("tokenizer.ggml.model") != "llama":
        return False
    scores = metadata.get("tokenizer.ggml.scores", [])
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    ordinary = {score for score, kind in zip(scores, kinds, strict=False) if kind == NORMAL_TOKEN}
    return len(ordinary) < 2
