"""Engines: the same ids, scores and greedy text, one prompt at a time or many, in Hugging Face and in llama.cpp."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from damage_scene import base_of
from served_models import weights_of, write_with_weights
from tiny_model import BYTES, CHARACTERS, tiny_vocabulary
from tunewright.chat.conversation import Message
from tunewright.chat.prompt import Prompt
from tunewright.engines.canaries import canary_from_json, compare_with_canaries, kl_divergence
from tunewright.engines.hf import HFEngine, open_hf_engine
from tunewright.engines.interface import TopLogprobs
from tunewright.engines.llama_cpp import LlamaCppEngine
from tunewright.engines.openai_api import OpenAIEngine

SYSTEM = "You are a careful clerk who answers with one word and nothing else, and does so in order."
QUESTIONS = ("Where is the hammer?", "Who?", "Do we need two old tents and the stone in the shed?", "No?")


@pytest.fixture(scope="module")
def engine(finished_run: Path) -> HFEngine:
    return open_hf_engine(finished_run / "merged", "merged", dtype=torch.float32)


@pytest.fixture(scope="module")
def llama_cpp(finished_run: Path) -> Iterator[LlamaCppEngine]:
    opened = LlamaCppEngine(finished_run / "export" / "model-q8_0.gguf", "q8_0", n_ctx=512)
    yield opened
    opened.close()


@pytest.fixture
def asked() -> list[Prompt]:
    return [Prompt((Message("system", SYSTEM), Message("user", question))) for question in QUESTIONS]


def test_greedy_answers_of_a_batch_are_those_of_single_prompts(engine: HFEngine, asked: list[Prompt]) -> None:
    prompts = [engine.prompt_ids(prompt) for prompt in asked]
    engine.batch_size = 1
    single = engine.greedy(prompts, 10)
    engine.batch_size = 4
    assert engine.greedy(prompts, 10) == single


def test_a_batch_computes_the_prefix_that_its_prompts_share_once(engine: HFEngine, asked: list[Prompt]) -> None:
    prompts = [engine.prompt_ids(prompt) for prompt in asked]
    shared = engine._shared_prefix(prompts)
    assert shared >= 16
    assert len({tuple(prompt[:shared]) for prompt in prompts}) == 1
    assert len({prompt[shared] for prompt in prompts}) > 1
    assert engine._shared_prefix(prompts[:1]) == 0


def test_scores_are_log_probabilities_of_the_whole_vocabulary(engine: HFEngine, asked: list[Prompt]) -> None:
    prompt = engine.prompt_ids(asked[0])
    (answer,) = engine.greedy([prompt], 4)
    scored = engine.score(prompt, answer, 300)
    assert [position.ids[0] for position in scored] == answer
    assert all(sum(map(math.exp, position.logprobs)) <= 1 + 1e-4 for position in scored)


def test_llama_cpp_renders_and_tokenizes_the_same_prompt(
    engine: HFEngine, llama_cpp: LlamaCppEngine, asked: list[Prompt]
) -> None:
    for prompt in [*asked, Prompt((Message("user", "without a system prompt"),))]:
        assert llama_cpp.prompt_ids(prompt) == engine.prompt_ids(prompt)


def test_an_endpoint_counts_and_answers_like_the_engine_behind_it(
    engine: HFEngine, llama_cpp: LlamaCppEngine, asked: list[Prompt]
) -> None:
    endpoint = OpenAIEngine(f"{llama_cpp.url}/v1", "tunewright", "llama.cpp, /v1")
    ids = [engine.prompt_ids(prompt) for prompt in asked]
    assert [endpoint.prompt_tokens(prompt) for prompt in asked] == [len(each) for each in ids]
    assert [endpoint.answer(prompt, 6) for prompt in asked] == [llama_cpp.decode(a) for a in llama_cpp.greedy(ids, 6)]
    shown = endpoint.shown_answer(asked[0], 2, 3)
    assert shown is not None
    assert [(len(token.top), token.is_likeliest) for token in shown.tokens] == [(3, True), (3, True)]
    endpoint.close()


def test_llama_cpp_scores_like_hugging_face(engine: HFEngine, llama_cpp: LlamaCppEngine, asked: list[Prompt]) -> None:
    prompt = engine.prompt_ids(asked[0])
    (answer,) = engine.greedy([prompt], 6)
    pairs = zip(engine.score(prompt, answer, 32), llama_cpp.score(prompt, answer, 128), strict=True)
    assert max(kl_divergence(ours, theirs) for ours, theirs in pairs) < 0.01


def test_llama_cpp_scores_where_the_likeliest_token_is_part_of_a_character(finished_run: Path, tmp_path: Path) -> None:
    """Where it is, llama.cpp holds its probabilities back; a random base likes such bytes as much as anything."""
    base, merged = base_of(finished_run), finished_run / "merged"
    gguf = finished_run / "export" / "model-q8_0.gguf"
    theirs = LlamaCppEngine(write_with_weights(gguf, merged, weights_of(base), tmp_path / "base.gguf"), "base", 512)
    tokens = tiny_vocabulary()
    asked = [tokens.index(character) for character in CHARACTERS[:60]]
    ours = open_hf_engine(base, "base", dtype=torch.float32).score(asked[:1], asked[1:], 32)
    parts = [tokens[position.ids[0]] in BYTES[0x80:] for position in ours]
    found = theirs.score(asked[:1], asked[1:], 128)
    theirs.close()
    assert 5 < sum(parts) < len(parts)
    assert max(kl_divergence(one, other) for one, other in zip(ours, found, strict=True)) < 0.01


def test_kl_divergence_is_zero_for_the_same_distribution_and_grows_with_the_difference() -> None:
    recorded = TopLogprobs((1, 2), (math.log(0.6), math.log(0.3)))
    near = TopLogprobs((1, 2), (math.log(0.55), math.log(0.35)))
    swapped = TopLogprobs((2, 1), (math.log(0.6), math.log(0.3)))
    assert kl_divergence(recorded, recorded) == 0
    assert kl_divergence(recorded, near) == pytest.approx(
        0.6 * math.log(0.6 / 0.55) + 0.3 * math.log(0.3 / 0.35), abs=1e-9
    )
    assert kl_divergence(recorded, swapped) > kl_divergence(recorded, near)


def test_kl_divergence_takes_an_unlisted_token_at_the_smallest_listed_probability() -> None:
    recorded = TopLogprobs((1, 2), (math.log(0.6), math.log(0.3)))
    without = TopLogprobs((1, 3), (math.log(0.6), math.log(0.1)))
    assert kl_divergence(recorded, without) >= 0.3 * math.log(0.3 / 0.1) - 0.2


def test_a_canary_recorded_by_an_engine_is_reproduced_by_it(finished_run: Path, engine: HFEngine) -> None:
    from tunewright.artifacts import read_json

    data = read_json(finished_run / "adapter" / "canaries.json")
    canaries = [canary_from_json(item) for item in data["canaries"]]
    parity = compare_with_canaries(engine, canaries)
    assert parity.prompt_ids_equal == 1.0
    assert parity.mean_kl < 1e-3
    changed = [canary_from_json({**item, "prompt_ids": item["prompt_ids"][1:]}) for item in data["canaries"]]
    assert compare_with_canaries(engine, changed).prompt_ids_equal == 0.0
