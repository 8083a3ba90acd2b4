"""What llama.cpp has to be told to cut a text as a `tokenizer.json` does, most of it if that stands alone.

llama.cpp's SentencePiece tokenizer merges the pair whose text has the highest score. A `tokenizer.json` lists merges in
their order instead, and the converter, which does not read them, gives every token the same score, takes added tokens
for ordinary ones, and does not say whether a text begins with a space: then other ids come out than in training. The
space it leaves unsaid for some architectures (Qwen3) even where a `tokenizer.model` is beside it, and llama.cpp puts
one. In: the parsed file. Out: what the GGUF has to say. The converter's process uses this module too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# What no merge gives is not made of others: the converter's own placeholder, or less.
UNMERGED = -1000.0
FIRST_SPACE = "▁"
# How the converter's process is told that no engine is to put a BOS before a prompt, or that nothing is said of it.
NO_BOS, USUAL_BOS = "none", "-"


def merge_scores(tokenizer: Mapping[str, Any]) -> dict[str, float]:
    """The score of each token that merges give: the negative place of the first merge that gives it."""
    scores: dict[str, float] = {}
    for place, merge in enumerate(tokenizer["model"]["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(place))
    return scores


def lowest_score(tokenizer: Mapping[str, Any]) -> float:
    """The score of a token that no merge gives, below all others."""
    return min(UNMERGED, -float(len(tokenizer["model"]["merges"])))


def adds_first_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the tokenizer puts a space before each text that follows a special token.

    One that puts it before the very first text alone does not count: prompts begin with a special token, and llama.cpp
    does not tell the first text from later ones.
    """
    parts = (tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer"))
    found = (step for part in parts for step in steps(part))
    return any(step.get("prepend") == FIRST_SPACE or step.get("prepend_scheme") == "always" for step in found)


def steps(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A normalizer's or pre-tokenizer's steps, whether it is a sequence or a single one."""
    if part is None:
        return
    inner = part.get("normalizers") or part.get("pretokenizers")
    if inner is None:
        yield part
    for each in inner or ():
        yield from steps(each)


def added_tokens(tokenizer: Mapping[str, Any]) -> dict[int, bool]:
    """The ids of added tokens, and whether each is special."""
    return {token["id"]: token["special"] for token in tokenizer["added_tokens"]}


def takes_following_space(tokenizer: Mapping[str, Any]) -> bool:
    """Whether an added token takes in the whitespace behind it."""
    return any(token["rstrip"] for token in tokenizer["added_tokens"])
