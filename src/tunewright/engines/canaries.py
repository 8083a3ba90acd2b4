"""Canaries: what the trained model said while it was still in memory, and how another engine compares with it.

A canary is a held-out conversation with the trained model's own prompt ids, its greedy answer, and the likeliest next
tokens at each position of that answer. Every later artifact has to reproduce it. Where the base was packed in fewer
bits for training, the trained model's canaries are `QUANTIZED_CANARIES`, which the adapter has to reproduce over these
bits; `CANARIES` are those of the same adapter over the base as it is stored. The later artifacts are held to those of
the base that the adapter was merged into.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunewright.artifacts import RunDirectory, write_json
from tunewright.chat.prompt import Prompt, prompt_from_json
from tunewright.engines.interface import Engine, TopLogprobs
from tunewright.errors import TrainingError
from tunewright.recipe import Bits

CANARIES = "canaries.json"
QUANTIZED_CANARIES = "canaries_quantized.json"
CLEAR_LEAD = math.log(1.5)
CANARY_BATCH = 8  # The same wherever canaries are answered: padding can turn the last bit of a near tie.
TOP_K = 32
ASKED_OF_OTHERS = 128  # More than TOP_K, so that nearly every recorded token is among those that an engine returns.


def held_to(run: RunDirectory) -> Path:
    """The file of the canaries that everything merged, exported and served is held to."""
    merged = run.manifest("merge")
    into = merged.facts.get("merged_into") if merged is not None else None
    return run / "adapter" / (QUANTIZED_CANARIES if into == "dequantized" else CANARIES)


@dataclass(frozen=True)
class Canary:
    """One recorded conversation.

    Attributes:
        id: the conversation's id.
        prompt: what was asked.
        prompt_ids, answer_ids: token ids; the answer has its stop token if one ended it.
        answer: the answer's text.
        top: for each position of the answer, the TOP_K likeliest tokens with their log-probabilities.
    """

    id: str
    prompt: Prompt
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str
    top: tuple[TopLogprobs, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            **self.prompt.as_json(),
            "prompt_ids": self.prompt_ids,
            "answer_ids": self.answer_ids,
            "answer": self.answer,
            "top_ids": [position.ids for position in self.top],
            "top_logprobs": [position.logprobs for position in self.top],
        }


def canary_from_json(data: dict[str, Any]) -> Canary:
    return Canary(
        data["id"],
        prompt_from_json(data),
        tuple(data["prompt_ids"]),
        tuple(data["answer_ids"]),
        data["answer"],
        tuple(
            TopLogprobs(tuple(ids), tuple(logprobs))
            for ids, logprobs in zip(data["top_ids"], data["top_logprobs"], strict=True)
        ),
    )


def record_canaries(engine: Engine, prompts: Mapping[str, Prompt], max_new_tokens: int) -> list[Canary]:
    """What `engine` answers to each prompt, by the id of its conversation; empty answers make no canary."""
    ids = [engine.prompt_ids(prompt) for prompt in prompts.values()]
    answers = engine.greedy(ids, max_new_tokens)
    return [
        Canary(
            conversation,
            prompt,
            tuple(prompt_ids),
            tuple(answer_ids),
            engine.decode(answer_ids),
            tuple(engine.score(prompt_ids, answer_ids, TOP_K)),
        )
        for (conversation, prompt), prompt_ids, answer_ids in zip(prompts.items(), ids, answers, strict=True)
        if answer_ids
    ]


def write_canaries(path: Path, canaries: list[Canary], dtype: str, bits: Bits | None) -> None:
    """Write what was said over a base in `dtype`, of which the linear layers were kept in `bits`, if in fewer."""
    if not canaries:
        raise TrainingError("canaries", "no held-out conversation gave an answer")
    entries = [canary.as_json() for canary in canaries]
    write_json(path, {"top_k": TOP_K, "dtype": dtype, "bits": bits, "canaries": entries})


@dataclass(frozen=True)
class Parity:
    """How an engine compares with the recorded canaries.

    Attributes:
        engine: its name.
        prompt_ids_equal: share of canaries whose prompt ids are the recorded ones.
        top1_agreement: share of answer positions at which the likeliest token is the recorded one.
        clear_top1_agreement: the same over the positions that were clear: the recorded first choice was at least 1.5
            times as likely as the second. Elsewhere, rounding alone may turn the order of two near equals.
        positions: how many answer positions there are.
        clear_positions: how many of them were clear.
        mean_kl: mean over positions of KL(recorded || engine) in nats, over the recorded tokens and one more outcome
            that stands for all the others.
        greedy_agreement: mean share of the recorded answer's tokens before the engine's own greedy answer departs.
        answers: the engine's greedy answers by canary id.
    """

    engine: str
    prompt_ids_equal: float
    top1_agreement: float
    clear_top1_agreement: float
    positions: int
    clear_positions: int
    mean_kl: float
    greedy_agreement: float
    answers: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def compare_with_canaries(engine: Engine, canaries: Sequence[Canary]) -> Parity:
    """Score the recorded answers with `engine` and let it answer by itself."""
    equal_prompts, kl, agreement = 0, 0.0, 0.0
    same: list[bool] = []
    clear: list[bool] = []
    answers = {}
    longest = max(len(canary.answer_ids) for canary in canaries)
    greedy = engine.greedy([canary.prompt_ids for canary in canaries], longest)
    for canary, found_ids in zip(canaries, greedy, strict=True):
        equal_prompts += tuple(engine.prompt_ids(canary.prompt)) == canary.prompt_ids
        scored = engine.score(canary.prompt_ids, canary.answer_ids, ASKED_OF_OTHERS)
        same += [recorded.ids[0] == found.ids[0] for recorded, found in zip(canary.top, scored, strict=True)]
        clear += [recorded.lead >= CLEAR_LEAD for recorded in canary.top]
        kl += sum(kl_divergence(recorded, found) for recorded, found in zip(canary.top, scored, strict=True))
        agreement += common_prefix(found_ids, canary.answer_ids) / len(canary.answer_ids)
        answers[canary.id] = engine.decode(found_ids)
    agreeing = [is_same for is_same, is_clear in zip(same, clear, strict=True) if is_clear]
    return Parity(
        engine=engine.name,
        prompt_ids_equal=equal_prompts / len(canaries),
        top1_agreement=sum(same) / len(same),
        clear_top1_agreement=sum(agreeing) / len(agreeing) if agreeing else 1.0,
        positions=len(same),
        clear_positions=len(agreeing),
        mean_kl=kl / len(same),
        greedy_agreement=agreement / len(canaries),
        answers=answers,
    )


def kl_divergence(recorded: TopLogprobs, found: TopLogprobs) -> float:
    """KL(recorded || found) in nats over the recorded tokens and one outcome for all others.

    A recorded token that `found` does not list gets the smallest probability that `found` lists, an upper bound of what
    it can have.
    """
    listed = dict(zip(found.ids, found.logprobs, strict=True))
    floor = min(found.logprobs)
    p = [math.exp(logprob) for logprob in recorded.logprobs]
    q = [math.exp(listed.get(token, floor)) for token in recorded.ids]
    tiny = 1e-12
    p_rest, q_rest = max(1 - sum(p), tiny), max(1 - sum(q), tiny)
    divergence = sum(a * math.log(a / max(b, tiny)) for a, b in zip(p, q, strict=True) if a > 0)
    return max(divergence + p_rest * math.log(p_rest / q_rest), 0.0)


def common_prefix(left: Sequence[Any], right: Sequence[Any]) -> int:
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
