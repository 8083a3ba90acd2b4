import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tunewright.data.near import (
    BANDS,
    CHARACTERS_AT_A_TIME,
    LONGEST,
    SHINGLES_AT_A_TIME,
    Ragged,
    Shingles,
    alike,
    band_keys,
    common_wording,
    in_batches,
    is_own,
    jaccard,
    shingles_of,
    shingles_of_text,
    starts_of,
    words_of,
)

NOTHING = np.zeros(0, dtype=np.uint32)


def numbers_of(text: str) -> NDArray[np.uint64]:
    return words_of([text]).values


def together(*sets: Shingles) -> Ragged[np.uint32]:
    return Ragged(np.concatenate(sets), starts_of(np.array([len(found) for found in sets])))


def test_similarity_of_trigrams_is_exact() -> None:
    left, right = (shingles_of_text(text) for text in ("a b c d e f g", "a b c d e f x"))
    assert jaccard(left, right) == pytest.approx(4 / 6)


def test_words_keep_signs_and_drop_punctuation() -> None:
    one_by_one = [
        numbers_of(word).tolist() for word in ("was", "IST", "3", "-", "4", "grösse", "東", "京", "😀", "a_b")
    ]
    assert all(len(numbers) == 1 for numbers in one_by_one)
    assert numbers_of("Was ist 3-4? „Größe“, 東京.😀 (a_b)").tolist() == [number for (number,) in one_by_one]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("my top-up failed", "my top up failed", True),
        ("e\u2010mail", "e mail", True),
        ("up -5", "up 5", False),
        ("5-3", "5 3", False),
        ("-", "", False),
        ("a-", "a", False),
        ("-a-b", "- a b", True),
    ],
)
def test_a_hyphen_between_letters_is_punctuation_and_any_other_a_sign(left: str, right: str, same: bool) -> None:
    assert np.array_equal(numbers_of(left), numbers_of(right)) is same


@given(st.lists(st.text(st.sampled_from("abcXYZ09_é"), min_size=1), max_size=30))
def test_a_word_has_the_same_number_wherever_it_stands(words: list[str]) -> None:
    assert numbers_of(" ".join(words)).tolist() == [number for word in words for number in numbers_of(word).tolist()]


@given(st.lists(st.text(st.sampled_from("ab-‐ 東😀?_9\ud800\n"), max_size=40), min_size=1, max_size=8))
def test_texts_taken_together_give_what_each_gives_alone(texts: list[str]) -> None:
    words = words_of(texts)
    shingles = shingles_of(words)
    keys = band_keys(shingles)
    assert len(words) == len(shingles) == len(keys) == len(texts)
    for number, (text, own_words, own) in enumerate(zip(texts, words, shingles, strict=True)):
        alone = words_of([text])
        assert own_words.tolist() == alone.values.tolist()
        assert own.tolist() == shingles_of(alone).values.tolist()
        assert keys[number].tolist() == band_keys(shingles_of(alone))[0].tolist()


def test_a_signature_is_the_same_however_many_sets_are_computed_together() -> None:
    texts = [" ".join(f"w{n * k}" for k in range(n % 90)) for n in range(200)]
    shingles = shingles_of(words_of(texts))
    assert shingles.starts[-1] > SHINGLES_AT_A_TIME
    alone = [band_keys(together(own))[0] for own in shingles]
    assert np.array_equal(band_keys(shingles), alone)


def test_batches_keep_texts_in_order_and_stay_small() -> None:
    texts = ["a" * length for length in (10, CHARACTERS_AT_A_TIME, 3, 4, 2 * LONGEST, 1)]
    assert [list(map(len, batch)) for batch in in_batches(texts)] == [
        [10, CHARACTERS_AT_A_TIME],
        [3, 4, 2 * LONGEST],
        [1],
    ]


@pytest.mark.parametrize(("left", "right", "same"), [("", "?!", True), ("a", "A.", True), ("a", "b", False)])
def test_texts_of_fewer_than_three_words_are_compared_as_wholes(left: str, right: str, same: bool) -> None:
    assert alike(shingles_of_text(left), shingles_of_text(right), NOTHING) is same


def test_wording_that_many_prompts_share_makes_none_alike() -> None:
    shared = " ".join(f"word{number}" for number in range(200))
    prompts = [f"{shared} {number} {number * 7} {number * 13}" for number in range(30)]
    common = common_wording(prompts)
    sets = [shingles_of_text(prompt) for prompt in prompts]
    assert jaccard(sets[0], sets[1]) > 0.8
    assert not any(alike(sets[0], other, common) for other in sets[1:])
    assert is_own(sets[0], common).sum() == 3


def test_what_only_a_few_prompts_share_is_not_common() -> None:
    assert not len(common_wording([f"the same three words {number}" for number in range(5)]))
    assert len(common_wording([f"the same three words {number}" for number in range(6)])) == 2


def test_a_text_of_nothing_but_common_wording_shares_no_band() -> None:
    assert band_keys(together(NOTHING)).tolist() == [[0] * BANDS]


@pytest.mark.parametrize(("similarity", "least", "most"), [(0.9, 1.0, 1.0), (0.8, 0.98, 1.0), (0.3, 0.0, 0.06)])
def test_pairs_share_a_band_as_often_as_the_formula_says(similarity: float, least: float, most: float) -> None:
    """At 0.8 the formula gives 0.998, at 0.3 it gives 0.014; the limits leave room for chance."""
    generator = np.random.default_rng(1)
    shared = round(200 * similarity / (1 + similarity))
    found = 0
    for _ in range(200):
        pool = np.unique(generator.integers(0, 2**32, 400, dtype=np.uint32))
        generator.shuffle(pool)
        left = np.sort(pool[:100])
        right = np.sort(np.concatenate([pool[:shared], pool[100 : 200 - shared]]))
        keys = band_keys(together(left, right))
        found += bool((keys[0] == keys[1]).any())
    assert least <= found / 200 <= most


def test_the_same_text_has_the_same_keys_everywhere() -> None:
    rng = random.Random(0)  # noqa: S311
    text = " ".join(rng.choice(["ferry", "bridge", "Größe", "東京"]) for _ in range(30))
    assert band_keys(shingles_of(words_of([text])))[0, :2].tolist() == [10710728670217916819, 3578241939204502918]
