"""Served models that are played: where answers leave the recorded ones, and what a verdict on them is."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tunewright.artifacts import RunDirectory, read_json, write_json
from tunewright.chat.conversation import Message
from tunewright.chat.prompt import Prompt
from tunewright.chat.supervise import Supervisor
from tunewright.chat.trained import trained_template
from tunewright.endpoints import ollama_name, verify_endpoint, with_path
from tunewright.engines.canaries import Canary, canary_from_json
from tunewright.engines.hf import open_supervisor
from tunewright.engines.interface import ShownAnswer, ShownToken, TopLogprobs
from tunewright.engines.served import Served, departure_of, differs_clearly, divergences
from tunewright.errors import ArtifactError, EngineError, UsageError
from tunewright.events import Events
from tunewright.evidence import as_verdict
from tunewright.recipe import VerifyKeys, read_recipe
from tunewright.verify.endpoint import Answers, check_endpoint

STOP = 9
CLEAR, NEAR = TopLogprobs((1, 2), (-0.1, -3.0)), TopLogprobs((1, 2), (-0.6, -0.8))


def spelled(ids: Sequence[int]) -> str:
    return "".join("abcdefgh"[number] for number in ids if number != STOP)


def canary_of(ids: Sequence[int], *tops: TopLogprobs) -> Canary:
    tops = tops or (CLEAR,) * len(ids)
    return Canary("c", Prompt((Message("user", "?"),)), (5, 6), tuple(ids), spelled(ids), tops)


def departure(canary: Canary, text: str) -> tuple[int, bool, bool]:
    found = departure_of(canary, text, spelled, frozenset([STOP]))
    return found.position, found.clear, found.runs_on


@pytest.mark.parametrize(
    ("ids", "text", "expected"),
    [
        ((0, 1, 2, STOP), "abc", (4, False, False)),
        ((0, 1, 2, STOP), " abc", (4, False, False)),
        ((0, 1, 2, STOP), "abcd", (3, True, True)),
        ((0, 1, 2), "abcd", (3, False, False)),
        ((0, 1, 2, STOP), "abd", (2, True, False)),
        ((0, 1, 2, STOP), "ab", (2, True, False)),
        ((0, 1, 2, STOP), "", (0, True, False)),
    ],
)
def test_an_answer_departs_at_the_first_token_that_was_not_given(
    ids: tuple[int, ...], text: str, expected: tuple[int, bool, bool]
) -> None:
    assert departure(canary_of(ids), text) == expected


def test_a_near_tie_is_no_clear_departure() -> None:
    assert departure(canary_of((0, 1), CLEAR, NEAR), "ac") == (1, False, False)


def test_probabilities_are_compared_up_to_the_departure_and_by_text() -> None:
    same = ShownToken("b", ("b", " c"), CLEAR.logprobs)
    canary = canary_of((0, 1, 2))
    shown = ShownAnswer("bx", (same, replace(same, text="x"), same))
    end = departure_of(canary, "ax", spelled, frozenset())
    letters = "abcdefgh"
    assert divergences(canary, shown, end, letters.__getitem__) == pytest.approx([0, 0])
    other = ShownAnswer("b", (ShownToken("b", ("c", "b"), CLEAR.logprobs),))
    (kl,) = divergences(canary, other, end, letters.__getitem__) or [0.0]
    assert kl > 1


def test_probabilities_are_those_of_the_answer_they_were_shown_with() -> None:
    """A server may round otherwise when it is asked again, and take another of two tokens that are as likely."""
    canary = canary_of((0, 1, 2), CLEAR, NEAR, CLEAR)
    tokens = tuple(ShownToken(text, (text, "f"), CLEAR.logprobs) for text in "abc")
    served = Served(canary, text="aff", shown=ShownAnswer("abc", tokens))
    supervisor: Any = SimpleNamespace(decode=spelled, stop_ids=frozenset([STOP]), tokenizer=Letters())
    assert len(Answers(Played(supervisor, [canary]), supervisor, (served,)).divergences) == 3


def test_tokens_that_are_not_shown_as_texts_are_not_compared() -> None:
    shown = ShownAnswer("ab", (ShownToken("token_id:17", ("token_id:17",), (-0.1,)),))
    canary = canary_of((0, 1))
    assert divergences(canary, shown, departure_of(canary, "ab", spelled, frozenset()), str) is None


def test_answers_that_part_at_a_near_tie_do_not_vary_clearly() -> None:
    served = Served(canary_of((0, 1, 2), CLEAR, NEAR, CLEAR), text="abc")
    assert not differs_clearly(served, "abc", spelled, frozenset())
    assert not differs_clearly(served, "aff", spelled, frozenset())
    assert differs_clearly(served, "fff", spelled, frozenset())
    assert differs_clearly(replace(served, text="abd"), "abe", spelled, frozenset())


@pytest.mark.parametrize(
    ("ends", "texts", "unstopped", "choices"),
    [
        ((CLEAR, CLEAR, NEAR), ("abd", "abd", "abd"), 3, ((9, 9), (8, 8))),  # the server does not stop
        ((CLEAR, CLEAR, CLEAR), ("abd", "ab", "ab"), 0, ((8, 9), (8, 9))),  # one model's choice
        ((NEAR, NEAR, NEAR), ("abd", "abd", "ab"), 0, ((7, 9), (6, 6))),  # near ties
        ((NEAR, NEAR, NEAR), ("b", "ac", "ab"), 0, ((4, 6), (3, 5))),  # behind a departure nothing is compared
    ],
)
def test_a_server_that_does_not_stop_goes_on_behind_most_answers(
    ends: tuple[TopLogprobs, ...], texts: tuple[str, ...], unstopped: int, choices: tuple[tuple[int, int], ...]
) -> None:
    supervisor: Any = SimpleNamespace(decode=spelled, stop_ids=frozenset([STOP]))
    canaries = [replace(canary_of((0, 1, STOP), CLEAR, CLEAR, end), id=str(number)) for number, end in enumerate(ends)]
    served = tuple(Served(canary, text=text) for canary, text in zip(canaries, texts, strict=True))
    answers = Answers(Played(supervisor, canaries), supervisor, served)
    assert len(answers.unstopped) == unstopped
    assert answers.choices == choices


class Letters:
    """A tokenizer whose tokens are letters."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return spelled(ids)


class Played:
    """A server that counts as the trained template does and answers what was recorded; `added` is put to counts."""

    name = "played"

    def __init__(self, supervisor: Supervisor, canaries: list[Canary], added: int = 0, most: int = 10**6) -> None:
        self.supervisor, self.added, self.most = supervisor, added, most
        self.answers = {canary.prompt: canary.answer for canary in canaries}
        self.more = ""

    def prompt_tokens(self, prompt: Prompt) -> int:
        return min(len(self.supervisor.prompt_ids(prompt)) + self.added, self.most)

    def answer(self, prompt: Prompt, max_new_tokens: int, seed: int = 0) -> str:
        return self.answers[prompt] + self.more

    def shown_answer(self, prompt: Prompt, max_new_tokens: int, top_k: int) -> None:
        return None

    def close(self) -> None:
        pass


class Deaf(Played):
    def prompt_tokens(self, prompt: Prompt) -> int:
        raise EngineError(self.name, "it answered 404: no such model")


@pytest.fixture(scope="module")
def scene(finished_run: Path) -> tuple[RunDirectory, VerifyKeys, Supervisor, list[Canary]]:
    run = RunDirectory(finished_run)
    supervisor = open_supervisor(run / "merged", "merged", trained_template(run))
    canaries = [canary_from_json(item) for item in read_json(run / "adapter/canaries.json")["canaries"]]
    return run, read_recipe(run / "recipe.yaml", {}).section(VerifyKeys), supervisor, canaries


Scene = tuple[RunDirectory, VerifyKeys, Supervisor, list[Canary]]


def cause_of(scene: Scene, engine: Played) -> str:
    run, config, _, _ = scene
    return str(as_verdict(check_endpoint(config, run, engine, Events()))["cause"])


def test_what_was_recorded_passes(scene: Scene) -> None:
    assert cause_of(scene, Played(*scene[2:])) == ""


def test_one_token_more_in_each_prompt_is_a_bos(scene: Scene) -> None:
    assert "and so has every other +1, however many turns: the BOS <|im_start|> is doubled" in cause_of(
        scene, Played(*scene[2:], added=1)
    )


def test_three_tokens_more_in_each_prompt_are_another_template(scene: Scene) -> None:
    assert "every other +3, however many turns: another chat template" in cause_of(scene, Played(*scene[2:], added=3))


def test_long_prompts_that_are_cut_are_a_context_that_was_cut(scene: Scene) -> None:
    assert "while a short one arrives whole: the context is cut to 60 tokens" in cause_of(
        scene, Played(*scene[2:], most=60)
    )


def test_a_server_that_answers_nothing_is_an_error_and_no_verdict(scene: Scene) -> None:
    with pytest.raises(EngineError, match=r"it answers nothing \(played: it answered 404: no such model"):
        cause_of(scene, Deaf(*scene[2:]))


def test_answers_that_do_not_stop_name_the_stop_token(scene: Scene) -> None:
    run, config, supervisor, canaries = scene
    engine = Played(supervisor, canaries)
    engine.more = " and more"
    ended = any(canary.answer_ids[-1] in supervisor.stop_ids for canary in canaries)
    cause = str(as_verdict(check_endpoint(config, run, engine, Events()))["cause"])
    assert ("does not stop at <|im_end|>" in cause) == ended


def test_canaries_that_were_edited_are_refused(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    path = tmp_path / "run/adapter/canaries.json"
    write_json(path, {**read_json(path), "top_k": 1})
    with pytest.raises(ArtifactError, match=r"adapter/canaries\.json"):
        verify_endpoint(tmp_path / "run", "http://127.0.0.1:1/v1", "m", "openai", None, Events())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host:1", "http://host:1/v1"),
        ("http://host:1/", "http://host:1/v1"),
        ("https://host/v1", "https://host/v1"),
        ("https://host/openai/v2", "https://host/openai/v2"),
    ],
)
def test_v1_is_added_to_an_address_without_a_path(url: str, expected: str) -> None:
    assert with_path(url) == expected


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="expected an address"):
        with_path("localhost:8080")


@pytest.mark.parametrize(
    ("run", "expected"), [("Support Triage", "support-triage"), ("a.b_c", "a.b_c"), ("ü", "tunewright")]
)
def test_a_runs_name_becomes_one_that_ollama_takes(run: str, expected: str) -> None:
    assert ollama_name(run) == expected
