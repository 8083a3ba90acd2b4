"""A served model against what was trained: is it this run's, asked as it was trained, and answering as it learned?

In go a finished run and an endpoint; out comes evidence. Always: a failure names the likeliest cause, found by asking
again, by counting, and by letting the base answer. What cannot be seen from outside is not claimed: a template that
gives other text in as many tokens looks like other weights, and a difference smaller than a near tie like rounding.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from tunewright.artifacts import RunDirectory, read_json
from tunewright.chat.conversation import Message
from tunewright.chat.supervise import Supervisor
from tunewright.chat.trained import trained_template
from tunewright.engines.canaries import CANARY_BATCH, CLEAR_LEAD, Canary, canary_from_json, held_to, record_canaries
from tunewright.engines.hf import open_hf_engine, open_supervisor
from tunewright.engines.interface import TextEngine, TopLogprobs
from tunewright.engines.served import (
    NOT_DECODED,
    Departure,
    Served,
    ask,
    departure_of,
    differs_clearly,
    divergences,
)
from tunewright.errors import ArtifactError, EngineError
from tunewright.events import Events
from tunewright.evidence import Evidence, at_least, at_most, equal, fact, failed
from tunewright.models.base import find_base
from tunewright.recipe import VerifyKeys
from tunewright.verify.limits import SERVED_FEW_BITS, over_positions, served_limits, with_near_ties
from tunewright.verify.prompt_counts import explain_counts

MOST = 0.5  # of the answers
MUCH_NEARER = 10.0  # mean KL to one against that to the other


class Share(NamedTuple):
    """How many of a number."""

    part: int
    whole: int

    @property
    def value(self) -> float:
        return self.part / self.whole if self.whole else 1.0


class Choices(NamedTuple):
    """Shares of tokens that are the recorded ones, at all positions that were compared and at the clear ones."""

    top1: Share
    clear_top1: Share


@dataclass(frozen=True)
class Answers:
    """What an endpoint said to every canary, beside what was recorded."""

    engine: TextEngine
    supervisor: Supervisor
    served: tuple[Served, ...]

    @property
    def heard(self) -> tuple[Served, ...]:
        return tuple(served for served in self.served if not served.refusal)

    @cached_property
    def departures(self) -> tuple[Departure, ...]:
        return tuple(self.departure(served.canary, served.text) for served in self.heard)

    def departure(self, canary: Canary, text: str) -> Departure:
        return departure_of(canary, text, self.supervisor.decode, self.supervisor.stop_ids)

    @cached_property
    def divergences(self) -> list[float]:
        """KL in nats at each position that a shown answer has in common with the recorded one."""
        pairs = [(served.canary, served.shown) for served in self.heard if served.shown]
        found = [
            divergences(canary, shown, self.departure(canary, shown.text), self.text_of) for canary, shown in pairs
        ]
        return [value for values in found for value in values or ()]

    def text_of(self, token: int) -> str:
        """A token's own text; empty for special tokens and parts of characters, which servers write as they like."""
        text = self.supervisor.tokenizer.decode([token], skip_special_tokens=True)
        return "" if NOT_DECODED in text else str(text)

    @cached_property
    def pairs(self) -> tuple[tuple[Served, Departure], ...]:
        return tuple(zip(self.heard, self.departures, strict=True))

    @cached_property
    def unstopped(self) -> tuple[Served, ...]:
        """Answers that go on behind a token at which the server does not stop.

        It goes on behind most answers that were recorded with that end, and behind one that ended clearly. If fewer go
        on, the model chose so.
        """
        ends: dict[int, list[tuple[Served, Departure]]] = {}
        for served, departure in self.pairs:
            ends.setdefault(served.canary.answer_ids[-1], []).append((served, departure))
        found: list[Served] = []
        for pairs in ends.values():
            on = [(served, departure) for served, departure in pairs if departure.runs_on]
            if 2 * len(on) > len(pairs) and any(departure.clear for _, departure in on):
                found += [served for served, _ in on]
        return tuple(found)

    @property
    def share_begun(self) -> float:
        """The share of answers that begin as the recorded ones."""
        return sum(departure.position > 0 for departure in self.departures) / len(self.departures)

    def has_left(self, served: Served, departure: Departure) -> bool:
        """Whether an answer leaves the recorded one by a token; a server that stops at none is another matter."""
        return departure.position < len(served.canary.answer_ids) and served not in self.unstopped

    @cached_property
    def compared(self) -> tuple[TopLogprobs, ...]:
        """What was recorded at the positions that answer the recorded text: up to and with the one that departs."""
        return tuple(
            position
            for served, departure in self.pairs
            for position in served.canary.top[: departure.position + 1 if self.has_left(served, departure) else None]
        )

    @cached_property
    def choices(self) -> Choices:
        """Of the positions that answer the recorded text, how many have the recorded token; only the last may not."""
        left = [departure for served, departure in self.pairs if self.has_left(served, departure)]
        all_, clear = len(self.compared), sum(position.lead >= CLEAR_LEAD for position in self.compared)
        left_clearly = sum(departure.clear for departure in left)
        return Choices(Share(all_ - len(left), all_), Share(clear - left_clearly, clear))


def check_endpoint(config: VerifyKeys, run: RunDirectory, engine: TextEngine, events: Events) -> list[Evidence]:
    """Evidence on a served model, in the order in which causes lie: answers at all, prompts, sampling, weights.

    Raises:
        EngineError: it answers nothing at all.
    """
    validate_recorded(run)
    answers = ask_all(run, config, engine, events)
    evidence = [check_heard(answers)]
    if answers.heard:
        evidence += [check_counts(answers), check_repeats(answers), *check_answers(config, run, answers, events)]
    return evidence


def validate_recorded(run: RunDirectory) -> None:
    """Raise `ArtifactError` if the canaries or the template are not what the run recorded."""
    for stage, name in (("train", f"adapter/{held_to(run).name}"), ("render", "tokens/template.json")):
        changed = [text for text in run.differences(run.require_manifest(stage)) if text.startswith(f"{name} ")]
        if changed:
            raise ArtifactError(str(run / name), changed[0], mend="Without what was recorded nothing can be compared.")


def ask_all(run: RunDirectory, config: VerifyKeys, engine: TextEngine, events: Events) -> Answers:
    base = find_base(config, events)
    supervisor = open_supervisor(base.path, base.name, trained_template(run))
    canaries = [canary_from_json(item) for item in read_json(held_to(run))["canaries"]]
    progress = events.progress("canaries", len(canaries))
    served = []
    for canary in canaries:
        served.append(ask(engine, canary))
        progress.advance()
    if all(each.refusal for each in served):
        explain_silence(engine, canaries[0], served[0])
    return Answers(engine, supervisor, tuple(served))


def explain_silence(engine: TextEngine, canary: Canary, served: Served) -> None:
    """Raise the endpoint's error unless it takes a shorter prompt, which makes the refusal a finding."""
    last = canary.prompt.messages[-1:]
    try:
        engine.prompt_tokens(type(canary.prompt)(last))
    except EngineError:
        raise EngineError(engine.name, f"it answers nothing ({served.refusal})") from None


def check_heard(answers: Answers) -> Evidence:
    refused = [served for served in answers.served if served.refusal]
    detail = f"It answered all {len(answers.served)} recorded prompts."
    if refused:
        longest = max(len(served.canary.prompt_ids) for served in refused)
        detail = (
            f"It refuses {len(refused)} of {len(answers.served)} recorded prompts, the longest of {longest} tokens, "
            f"while it takes shorter ones: its context is cut short. {refused[0].refusal}"
        )
    return equal("endpoint_refusals", len(refused), 0, detail)


def check_counts(answers: Answers) -> Evidence:
    """That each prompt has as many tokens as was trained; else what was done to it."""
    wrong = [served for served in answers.heard if served.tokens != len(served.canary.prompt_ids)]
    detail = f"All {len(answers.heard)} prompts have as many tokens as were trained."
    if wrong:
        detail = explain_counts(answers.engine, answers.supervisor, [(s.canary, s.tokens) for s in answers.heard])
    return equal("endpoint_prompt_tokens_other", len(wrong), 0, detail)


def check_repeats(answers: Answers) -> Evidence:
    """That a greedy answer does not depend on the seed."""
    supervisor = answers.supervisor
    clear = [
        served
        for served in answers.heard
        if any(differs_clearly(served, text, supervisor.decode, supervisor.stop_ids) for text in served.again)
    ]
    varying = [served for served in answers.heard if set(served.again) - {served.text}]
    other = clear or (varying if len(varying) > MOST * len(answers.heard) else [])
    detail = f"{len(answers.heard)} answers are the same for every seed, asked at temperature 0."
    if other:
        pair = next(text for text in other[0].again if text != other[0].text)
        detail = (
            f"Asked at temperature 0, it answers differently from one seed to the next: {shortened(other[0].text)}, "
            f"then {shortened(pair)}. The server forces a temperature: let it take the client's."
        )
    return equal("endpoint_answers_that_vary", len(other), 0, detail)


def check_answers(config: VerifyKeys, run: RunDirectory, answers: Answers, events: Events) -> list[Evidence]:
    """What it says, against what the trained model said."""
    choices, kl = answers.choices, mean(answers.divergences)
    limits = with_near_ties(served_limits(config, run), answers.compared, math.inf if kl is None else kl)
    limits = over_positions(limits, choices.top1.whole, choices.clear_top1.whole)
    said = "positions that answer the recorded text have the recorded token"
    clear = f"Of {choices.clear_top1.whole} {said}, where that was clearly ahead."
    evidence = [
        at_least("endpoint_clear_top1_agreement", choices.clear_top1.value, limits["clear_top1_agreement"], clear),
        at_least(
            "endpoint_top1_agreement", choices.top1.value, limits["top1_agreement"], f"Of {choices.top1.whole} {said}."
        ),
        divergence_evidence(answers, kl, limits["mean_kl"]),
    ]
    if any(item.verdict == "fail" for item in evidence):
        cause = explain_answers(config, answers, kl, limits["mean_kl"], events)
        evidence = [with_cause(item, cause) for item in evidence]
    return [check_ends(answers), *evidence]


def divergence_evidence(answers: Answers, kl: float | None, limit: float) -> Evidence:
    if kl is None:
        said = "The endpoint shows no log-probabilities: text and counts are all that was compared."
        return fact("endpoint_mean_kl", "not offered", said)
    return at_most("endpoint_mean_kl", kl, limit, f"In nats, over {len(answers.divergences)} positions.")


def with_cause(item: Evidence, cause: str) -> Evidence:
    return replace(item, detail=cause) if item.verdict == "fail" else item


def check_ends(answers: Answers) -> Evidence:
    """That the server ends answers where the trained model did."""
    on = answers.unstopped
    if not on:
        return equal("endpoint_answers_that_run_on", 0, 0, "The server stops where the trained model ended its turn.")
    more = on[0].text[len(on[0].canary.answer) :]
    stops = ", ".join(answers.supervisor.tokenizer.convert_ids_to_tokens(sorted(answers.supervisor.stop_ids)))
    detail = (
        f"{len(on)} answers go on where the trained model ended its turn, with {shortened(more)}. "
        f"The server does not stop at {stops}: give it that stop token."
    )
    return failed("endpoint_answers_that_run_on", len(on), "= 0", detail)


def explain_answers(config: VerifyKeys, answers: Answers, kl: float | None, kl_limit: float, events: Events) -> str:
    """Why does it say something else, though it was asked the same?"""
    if kl is not None and kl <= kl_limit:
        return "Its probabilities are the trained model's, its choices are not: sampling settings change the answers."
    if unlikely := unlikely_choices(answers):
        return f"It took {unlikely} tokens although it shows likelier ones: sampling settings change the answers."
    if answers_as_base(config, answers, kl, events):
        return "It answers as the base does: the endpoint serves the base, not the model that was trained."
    return (
        "It answers neither as the trained model nor as its base: the endpoint serves another adapter or another "
        "model, or these weights damaged."
    )


def unlikely_choices(answers: Answers) -> int:
    shown = [token for served in answers.heard if served.shown for token in served.shown.tokens]
    return sum(not token.is_likeliest for token in shown)


def answers_as_base(config: VerifyKeys, answers: Answers, kl: float | None, events: Events) -> bool:
    """Whether the base's own answers fit: how they begin, then its probabilities, or its choices if none are shown.

    Probabilities alone do not tell: where many tokens are as likely, the few that a server shows differ little.
    """
    said = {canary.id: canary for canary in base_canaries(config, answers, events)}
    served = tuple(replace(each, canary=said[each.canary.id]) for each in answers.heard if each.canary.id in said)
    as_base = replace(answers, served=served)
    if not served or as_base.share_begun < MOST:
        return False
    kl_of_base = mean(as_base.divergences)
    if kl is not None and kl_of_base is not None:
        return kl_of_base < kl / MUCH_NEARER
    return as_base.choices.top1.value >= max(SERVED_FEW_BITS["top1_agreement"], answers.choices.top1.value)


def base_canaries(config: VerifyKeys, answers: Answers, events: Events) -> list[Canary]:
    """What the untuned base says to the same prompts."""
    events.note("Asking the base the same")
    base = find_base(config, events)
    engine = open_hf_engine(base.path, "base", CANARY_BATCH, template=answers.supervisor.template)
    longest = max(len(served.canary.answer_ids) for served in answers.heard)
    prompts = {served.canary.id: served.canary.prompt for served in answers.heard}
    try:
        return record_canaries(engine, prompts, longest)
    finally:
        engine.close()


def check_system_prompt_given(
    config: VerifyKeys, run: RunDirectory, engine: TextEngine, system: str | None
) -> list[Evidence]:
    """That a chat without a system message gets the trained one from the server."""
    base = find_base(config)
    supervisor = open_supervisor(base.path, base.name, trained_template(run))
    first = canary_from_json(read_json(held_to(run))["canaries"][0])
    rest = tuple(message for message in first.prompt.messages if message.role != "system")
    if system is None or rest == first.prompt.messages:
        return []
    trained = replace(first.prompt, messages=(Message("system", system), *rest))
    wanted, found = len(supervisor.prompt_ids(trained)), engine.prompt_tokens(replace(first.prompt, messages=rest))
    detail = f"A chat without a system message has {found} tokens, {wanted} with the trained one put in front."
    return [equal("endpoint_gives_system_prompt", found, wanted, detail)]


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
