"""Near duplicates among prompts: what is compared, and how the pairs worth comparing are found.

Two prompts are near duplicates if the Jaccard similarity of their sets of word trigrams is at least 0.8, both as they
are and without the wording that more than one prompt in ten shares (an instruction that stands in every row makes no
two rows alike). A prompt of more than 256 trigrams is compared by the 256 with the smallest hashes (Broder, On the
resemblance and containment of documents, 1997): of two such prompts of equal length the similarity is estimated with a
standard error of about 0.03; where the lengths differ it is understated, by 0.05 at 0.95 and by 0.13 at 0.8. Beyond
its first 262,144 characters a prompt is not looked at.

Which pairs are compared at all is decided by MinHash in 20 bands of 6 (Leskovec, Rajaraman, Ullman, Mining of Massive
Datasets, section 3.4): a pair of similarity s shares a band with probability 1 - (1 - s^6)^20, so that one of 0.8 is
missed in 2 cases of 1,000 and one of 0.9 in 3 of 10 million. The same prompts give the same answer in every process and
every order.

Trigrams are hashed to 32 bits; a set of them is a sorted array, uint32 [S].
"""

import re
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.8
SKETCH_SIZE = 256
COMMON_SHARE = 0.1
COMMON_AT_LEAST = 5
BANDS = 20
HASHES_PER_BAND = 6
PLANE = 1 << 16
LONGEST = 1 << 18
HYPHENS = np.array([0x2D, 0x2010, 0x2011], dtype=np.uint32)
CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
ALONE = re.compile(rf"[{CJK}]|[^\w\s.,;:!?\"'„“”‘’…()\[\]]")

Shingles = NDArray[np.uint32]


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """For each character of the first plane: 1 within a word, 2 a word by itself, 0 between words."""
    characters = [chr(code) for code in range(PLANE)]
    alone = np.array([ALONE.match(character) is not None for character in characters])
    inside = np.array([character == "_" or character.isalnum() for character in characters])
    return np.where(alone, 2, np.where(inside, 1, 0)).astype(np.uint8)


@lru_cache(maxsize=1)
def _letters() -> NDArray[np.bool_]:
    return np.array([chr(code).isalpha() for code in range(PLANE)])


@lru_cache(maxsize=10)
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first powers of an odd number modulo 2^64, and of its inverse."""
    tables = []
    for factor in (int(FACTORS[0]), pow(int(FACTORS[0]), -1, 2**64)):
        table = np.full(count, factor, dtype=np.uint64)
        table[0] = 1
        tables.append(np.cumprod(table, dtype=np.uint64))
    return tables[0], tables[1]


def numbers_of(text: str) -> NDArray[np.uint64]:
    """The words of a text as numbers below 2^32, uint64 [W]; the same in every process.

    Case does not count, nor does punctuation, hyphens between letters among it; signs such as + and CJK characters are
    words by themselves. A word's number is a polynomial in its characters modulo 2^64, taken from the differences of
    running sums.
    """
    codes = np.frombuffer(text[:LONGEST].casefold().encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    within_plane = np.minimum(codes, PLANE - 1)
    kinds = np.append(_kinds()[within_plane], np.uint8(0))
    kinds[:-1][codes >= PLANE] = 2
    kinds[:-1][_hyphens(codes, within_plane)] = 0
    before = np.concatenate([kinds[-1:], kinds[:-1]])
    starts = np.flatnonzero((kinds == 2) | ((kinds == 1) & (before != 1)))
    ends = np.flatnonzero((before == 2) | ((before == 1) & (kinds != 1)))
    size = 1 << max(12, len(codes).bit_length())
    powers, inverses = _powers(size)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers[: len(codes)], dtype=np.uint64)])
    words: NDArray[np.uint64] = (sums[ends] - sums[starts]) * inverses[starts] * FACTORS[3]
    return np.right_shift(words, 32)


def _hyphens(codes: NDArray[np.uint32], within_plane: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Where a hyphen stands between two letters."""
    places = np.flatnonzero(np.isin(codes[1:-1], HYPHENS)) + 1
    letters = _letters()
    return places[letters[within_plane[places - 1]] & letters[within_plane[places + 1]]]


def shingles_of(numbers: NDArray[np.uint64]) -> Shingles:
    """Hashes of the word trigrams, at most `SKETCH_SIZE`; of a shorter text, the hash of all its words."""
    if len(numbers) < 3:
        numbers = np.concatenate([numbers, np.zeros(3 - len(numbers), dtype=np.uint64)])
    hashes = numbers[:-2] * FACTORS[0] + numbers[1:-1] * FACTORS[1] + numbers[2:] * FACTORS[2]
    hashes ^= hashes >> np.uint64(32)
    hashes *= FACTORS[3]
    return np.unique((hashes >> np.uint64(32)).astype(np.uint32))[:SKETCH_SIZE]


def jaccard(left: Shingles, right: Shingles) -> float:
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared) if shared else 0.0


def common_wording(texts: Iterable[str]) -> Shingles:
    """The trigrams that more than one in ten of the different prompts have, and at least six of them."""
    numbers = {array.tobytes(): array for array in map(numbers_of, texts)}
    limit = max(COMMON_AT_LEAST, COMMON_SHARE * len(numbers))
    shingles: Shingles = np.concatenate([np.zeros(0, np.uint32), *map(shingles_of, numbers.values())])
    found, counts = np.unique(shingles, return_counts=True)
    common: Shingles = found[counts > limit]
    return common


def without(shingles: Shingles, common: Shingles) -> Shingles:
    if not len(common):
        return shingles
    places = np.minimum(np.searchsorted(common, shingles), len(common) - 1)
    own: Shingles = shingles[common[places] != shingles]
    return own


def alike(left: Shingles, right: Shingles, common: Shingles) -> bool:
    """Whether two prompts are near duplicates, by their trigrams and the common wording."""
    own = jaccard(without(left, common), without(right, common))
    return own >= THRESHOLD and jaccard(left, right) >= THRESHOLD


def _constants() -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64]]:
    """Odd factors of the trigram hash, factors and addends of the permutations, factors of the band keys."""
    generator = np.random.default_rng(0)
    wide = generator.integers(0, 2**63, 4 + HASHES_PER_BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    narrow = generator.integers(0, 2**32, (2, BANDS * HASHES_PER_BAND), dtype=np.uint32)
    return wide[:4], narrow[0] | np.uint32(1), narrow[1], wide[4:]


FACTORS, MULTIPLIERS, ADDENDS, BAND_FACTORS = _constants()


def smallest_hashes(shingles: Shingles) -> NDArray[np.uint32]:
    """The MinHash signature, uint32 [BANDS * HASHES_PER_BAND]."""
    smallest: NDArray[np.uint32] = (shingles[:, None] * MULTIPLIERS + ADDENDS).min(axis=0)
    return smallest


def band_keys(shingles: list[Shingles]) -> NDArray[np.uint64]:
    """One key per band for each set, uint64 [N, BANDS]; 0 for an empty set, which is like no other."""
    keys = np.zeros((len(shingles), BANDS), dtype=np.uint64)
    filled = [number for number, found in enumerate(shingles) if len(found)]
    if filled:
        signatures = np.stack([smallest_hashes(shingles[number]) for number in filled]).astype(np.uint64)
        mixed = (signatures.reshape(-1, BANDS, HASHES_PER_BAND) * BAND_FACTORS).sum(axis=2, dtype=np.uint64)
        keys[filled] = np.maximum(mixed, 1)
    return keys
