"""A model behind a server against the recorded canaries: counts of prompts, text, and probabilities where shown.

In go a `TextEngine` and canaries; out comes what it answered, and where each answer departs from the recorded one.
Always: a departure is clear only where the recorded first choice was clearly ahead, since rounding turns near ties; and
positions behind a departure say nothing, since they answer another text.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tunewright.chat.prompt import Prompt
from tunewright.engines.canaries import CLEAR_LEAD, Canary, common_prefix, kl_divergence
from tunewright.engines.interface import ShownAnswer, ShownToken, TextEngine, TopLogprobs
from tunewright.errors import EngineError

TOP_SHOWN = 5  # What nearly every server that shows probabilities allows.
TOKENS_BEYOND = 8  # Asked for behind a recorded end, to see that the answer ends there.
OTHER_SEEDS = (1, 2)
NOT_DECODED = "\ufffd"
NEVER = -100.0  # the logarithm of as good as nothing

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Served:
    """What a server answered to one canary.

    Attributes:
        tokens: of the prompt.
        text: the greedy answer, asked for a little beyond the recorded end.
        again: the same with other seeds, which must not matter.
        shown: an answer token by token, None where that is not offered.
        refusal: why there is no answer; empty where there is one.
    """

    canary: Canary
    tokens: int = 0
    text: str = ""
    again: tuple[str, ...] = ()
    shown: ShownAnswer | None = None
    refusal: str = ""


def ask(engine: TextEngine, canary: Canary) -> Served:
    """What the server makes of a canary; a refusal of this one prompt is an answer too."""
    length = len(canary.answer_ids)
    try:
        shown = engine.shown_answer(canary.prompt, length, TOP_SHOWN)
        return Served(
            canary,
            engine.prompt_tokens(canary.prompt),
            engine.answer(canary.prompt, length + TOKENS_BEYOND),
            tuple(engine.answer(canary.prompt, length + TOKENS_BEYOND, seed) for seed in OTHER_SEEDS),
            shown,
        )
    except EngineError as error:
        return Served(canary, refusal=str(error))


def count_or_none(engine: TextEngine, prompt: Prompt) -> int | None:
    """The tokens of a prompt, None where the server refuses it."""
    try:
        return engine.prompt_tokens(prompt)
    except EngineError:
        return None


@dataclass(frozen=True)
class Departure:
    """Where a served answer leaves the recorded one.

    Attributes:
        position: of the first recorded token that was not given; as many as there are where none was missed.
        clear: whether the recorded first choice was clearly ahead there.
        runs_on: whether every recorded token was given but the stop token.
    """

    position: int
    clear: bool = False
    runs_on: bool = False


def departure_of(canary: Canary, text: str, decode: Decode, stop_ids: frozenset[int]) -> Departure:
    """Where `text` leaves the canary's answer. What follows an answer that was only cut off is no departure."""
    recorded = canary.answer.rstrip(NOT_DECODED)
    if not recorded.startswith(" "):
        text = text.removeprefix(" ")  # the mark of a word's begin, which some servers write out
    agreeing = common_prefix(text, recorded)
    last = len(canary.answer_ids) - 1
    stopped = canary.answer_ids[last] in stop_ids
    if agreeing == len(recorded):
        runs_on = stopped and len(text) > agreeing
        return Departure(last, is_clear(canary, last), True) if runs_on else Departure(last + 1)
    ends = (common_prefix(decode(canary.answer_ids[: n + 1]), recorded) for n in range(last + 1))
    position = next((n for n, end in enumerate(ends) if end > agreeing), last)
    return Departure(position, is_clear(canary, position))


def is_clear(canary: Canary, position: int) -> bool:
    return canary.top[position].lead >= CLEAR_LEAD


def divergences(
    canary: Canary, shown: ShownAnswer, departure: Departure, text_of: Callable[[int], str]
) -> list[float] | None:
    """KL(recorded || shown) in nats at each position that answers the recorded text, over the tokens that are shown.

    Tokens are told apart by their texts without spaces around them, since servers write those in different ways: what
    looks alike is one outcome on both sides, which can only lessen the divergence. None where the server writes tokens
    otherwise than as texts.

    Args:
        departure: where the text of `shown` leaves the recorded one.
        text_of: the text of a token; empty for one that is no text of its own.
    """
    if not is_spelled_out(shown):
        return None
    positions = zip(canary.top[: departure.position + 1], shown.tokens, strict=False)
    return [kl_divergence(*as_outcomes(recorded, position, text_of)) for recorded, position in positions]


def is_spelled_out(shown: ShownAnswer) -> bool:
    """Whether the shown tokens are the pieces of the answer's text; behind it there may be the one that ended it."""
    joined = "".join(token.text for token in shown.tokens).strip()
    text = shown.text.strip()
    return bool(text) and (joined.startswith(text) or NOT_DECODED in joined)


def as_outcomes(
    recorded: TopLogprobs, shown: ShownToken, text_of: Callable[[int], str]
) -> tuple[TopLogprobs, TopLogprobs]:
    """Both distributions over the same outcomes: the texts that are likely enough to be listed by the server."""
    floor = min(shown.logprobs)
    pairs = zip(recorded.ids, recorded.logprobs, strict=True)
    wanted = joined_by_text((text_of(token), logprob) for token, logprob in pairs if logprob >= floor)
    found = joined_by_text(zip(shown.top, shown.logprobs, strict=True))
    texts = [text for text in wanted if text]
    outcomes = tuple(range(len(texts) + 1))  # and one that never happens, so that there is always one
    return (
        TopLogprobs(outcomes, (*(wanted[text] for text in texts), NEVER)),
        TopLogprobs(outcomes, (*(found.get(text, floor) for text in texts), NEVER)),
    )


def joined_by_text(tokens: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The log-probability of each text without the spaces around it."""
    joined: dict[str, float] = {}
    for text, logprob in tokens:
        key = text.strip()
        joined[key] = math.log(math.exp(joined[key]) + math.exp(logprob)) if key in joined else logprob
    return joined


def differs_clearly(served: Served, text: str, decode: Decode, stop_ids: frozenset[int]) -> bool:
    """Whether an answer to another seed departs from the first one, other than at a near tie."""
    first, other = (departure_of(served.canary, each, decode, stop_ids) for each in (served.text, text))
    if text == served.text or first.position == other.position == len(served.canary.answer_ids):
        return False
    earlier = min(first, other, key=lambda departure: departure.position)
    return first.position == other.position or earlier.clear
