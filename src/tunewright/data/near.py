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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Generic, TypeVar

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
CHARACTERS_AT_A_TIME = 1 << 16
SHINGLES_AT_A_TIME = 1 << 9  # their permuted hashes stay in the cache of a core
HYPHENS = (0x2D, 0x2010, 0x2011)
CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
ALONE = re.compile(rf"[{CJK}]|[^\w\s.,;:!?\"'„“”‘’…()\[\]]")
BETWEEN, LETTER, DIGIT, SIGN, HYPHEN = range(5)

Shingles = NDArray[np.uint32]
Number = TypeVar("Number", np.uint64, np.uint32)


@dataclass(frozen=True)
class Ragged(Generic[Number]):
    """Arrays of different lengths, one after the other.

    Attributes:
        values: of all arrays, [V].
        starts: where each begins, and where the last one ends, int64 [N + 1].
    """

    values: NDArray[Number]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[NDArray[Number]]:
        return (self.values[start:end] for start, end in pairwise(self.starts.tolist()))

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def owners(self) -> NDArray[np.int64]:
        """For each value the number of its array, int64 [V]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def where(self, chosen: NDArray[np.bool_]) -> "Ragged[Number]":
        """The same arrays with the chosen values only."""
        before = np.concatenate([[0], np.cumsum(chosen)])
        return Ragged(self.values[chosen], before[self.starts])


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """For each character of the first plane what it is."""
    characters = [chr(code) for code in range(PLANE)]
    kinds = np.full(PLANE, BETWEEN, dtype=np.uint8)
    kinds[[ALONE.match(character) is not None for character in characters]] = SIGN
    kinds[list(HYPHENS)] = HYPHEN
    kinds[
        [(character == "_" or character.isalnum()) and kinds[ord(character)] == BETWEEN for character in characters]
    ] = DIGIT
    kinds[[character.isalpha() and kinds[ord(character)] == DIGIT for character in characters]] = LETTER
    return kinds


@lru_cache(maxsize=10)
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first powers of an odd number modulo 2^64, and of its inverse."""
    tables = []
    for factor in (int(FACTORS[0]), pow(int(FACTORS[0]), -1, 2**64)):
        table = np.full(count, factor, dtype=np.uint64)
        table[0] = 1
        tables.append(np.cumprod(table, dtype=np.uint64))
    return tables[0], tables[1]


def words_of(texts: Sequence[str]) -> Ragged[np.uint64]:
    """The words of each text as numbers below 2^32; the same in every process.

    Case does not count, nor does punctuation, hyphens between letters among it; signs such as + and CJK characters are
    words by themselves. A word's number is a polynomial in its characters modulo 2^64, taken from the differences of
    running sums.
    """
    folded = [text[:LONGEST].casefold() for text in texts]
    codes = np.frombuffer("\n".join(folded).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = np.zeros(len(codes) + 2, dtype=np.uint8)  # with what is between words before and behind
    kinds[1:-1] = _kinds()[np.minimum(codes, PLANE - 1)]
    kinds[1:-1][codes >= PLANE] = SIGN
    _tell_hyphens(kinds)
    inside = (kinds == LETTER) | (kinds == DIGIT)
    edges = np.diff(inside.view(np.int8))
    alone = np.flatnonzero(kinds == SIGN)
    starts = np.sort(np.concatenate([np.flatnonzero(edges == 1), alone - 1]))
    ends = np.sort(np.concatenate([np.flatnonzero(edges == -1), alone]))
    powers, inverses = _powers(1 << max(12, len(codes).bit_length()))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers[: len(codes)], dtype=np.uint64)])
    numbers = ((sums[ends] - sums[starts]) * inverses[starts] * FACTORS[3]) >> np.uint64(32)
    texts_end = np.cumsum(np.array([len(text) + 1 for text in folded], dtype=np.int64))
    return Ragged(numbers, np.concatenate([[0], np.searchsorted(starts, texts_end)]))


def _tell_hyphens(kinds: NDArray[np.uint8]) -> None:
    """Make of each hyphen what it is: nothing between two letters, a sign elsewhere."""
    places = np.flatnonzero(kinds == HYPHEN)
    joins = (kinds[places - 1] == LETTER) & (kinds[places + 1] == LETTER)
    kinds[places] = np.where(joins, BETWEEN, SIGN)


def shingles_of(words: Ragged[np.uint64]) -> Ragged[np.uint32]:
    """Hashes of each text's word trigrams, sorted, at most `SKETCH_SIZE`; of a shorter text that of all its words."""
    starts = starts_of(np.maximum(words.lengths, 3))
    owners = words.owners()
    numbers = np.zeros(starts[-1], dtype=np.uint64)
    numbers[np.arange(len(owners)) + (starts[:-1] - words.starts[:-1])[owners]] = words.values
    hashes = numbers[:-2] * FACTORS[0] + numbers[1:-1] * FACTORS[1] + numbers[2:] * FACTORS[2]
    hashes ^= hashes >> np.uint64(32)
    hashes *= FACTORS[3]
    counts = np.diff(starts) - 2
    trigrams = np.arange(counts.sum()) + np.repeat(2 * np.arange(len(counts)), counts)
    owners = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    found = np.sort((owners << np.uint64(32)) | (hashes[trigrams] >> np.uint64(32)))
    found = found[np.diff(found, prepend=found[:1] + np.uint64(1)) != 0]
    owners = found >> np.uint64(32)
    all_shingles = Ragged(found.astype(np.uint32), np.searchsorted(owners, np.arange(len(counts) + 1, dtype=np.uint64)))
    ranks = np.arange(len(found)) - np.repeat(all_shingles.starts[:-1], all_shingles.lengths)
    return all_shingles.where(ranks < SKETCH_SIZE)


def shingles_of_text(text: str) -> Shingles:
    """The trigrams of one text, see `shingles_of`."""
    return shingles_of(words_of([text])).values


def in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts put together so that what is computed of a batch stays small."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += min(len(text), LONGEST)
        if characters >= CHARACTERS_AT_A_TIME:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def jaccard(left: Shingles, right: Shingles) -> float:
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared) if shared else 0.0


def common_wording(texts: Iterable[str]) -> Shingles:
    """The trigrams that more than one in ten of the different prompts have, and at least six of them."""
    seen: set[bytes] = set()
    parts = [np.zeros(0, np.uint32)]
    for batch in in_batches(texts):
        words = words_of(batch)
        for own, shingles in zip(words, shingles_of(words), strict=True):
            if (key := own.tobytes()) not in seen:
                seen.add(key)
                parts.append(shingles)
    found, counts = np.unique(np.concatenate(parts), return_counts=True)
    common: Shingles = found[counts > max(COMMON_AT_LEAST, COMMON_SHARE * len(seen))]
    return common


def is_own(shingles: Shingles, common: Shingles) -> NDArray[np.bool_]:
    """Which trigrams are not among the common ones, bool [S]."""
    if not len(common):
        return np.ones(len(shingles), dtype=np.bool_)
    places = np.minimum(np.searchsorted(common, shingles), len(common) - 1)
    own: NDArray[np.bool_] = common[places] != shingles
    return own


def alike(left: Shingles, right: Shingles, common: Shingles) -> bool:
    """Whether two prompts are near duplicates, by their trigrams and the common wording."""
    own = jaccard(left[is_own(left, common)], right[is_own(right, common)])
    return own >= THRESHOLD and jaccard(left, right) >= THRESHOLD


def _constants() -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64]]:
    """Odd factors of the trigram hash, factors and addends of the permutations, factors of the band keys."""
    generator = np.random.default_rng(0)
    wide = generator.integers(0, 2**63, 4 + HASHES_PER_BAND, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    narrow = generator.integers(0, 2**32, (2, BANDS * HASHES_PER_BAND), dtype=np.uint32)
    return wide[:4], narrow[0] | np.uint32(1), narrow[1], wide[4:]


FACTORS, MULTIPLIERS, ADDENDS, BAND_FACTORS = _constants()


def smallest_hashes(shingles: Ragged[np.uint32]) -> NDArray[np.uint32]:
    """The MinHash signature of each set, uint32 [N, BANDS * HASHES_PER_BAND]; no set may be empty."""
    smallest = np.empty((len(shingles), len(MULTIPLIERS)), dtype=np.uint32)
    first = 0
    while first < len(shingles):
        end = int(np.searchsorted(shingles.starts, shingles.starts[first] + SHINGLES_AT_A_TIME, side="right")) - 1
        end = max(end, first + 1)
        start, stop = shingles.starts[first], shingles.starts[end]
        hashes = shingles.values[start:stop, None] * MULTIPLIERS
        hashes += ADDENDS
        np.minimum.reduceat(hashes, shingles.starts[first:end] - start, axis=0, out=smallest[first:end])
        first = end
    return smallest


def band_keys(shingles: Ragged[np.uint32]) -> NDArray[np.uint64]:
    """One key per band for each set, uint64 [N, BANDS]; 0 for an empty set, which is like no other."""
    keys = np.zeros((len(shingles), BANDS), dtype=np.uint64)
    filled = shingles.lengths > 0
    if filled.any():
        sets = Ragged(shingles.values, np.append(shingles.starts[:-1][filled], shingles.starts[-1]))
        signatures = smallest_hashes(sets).astype(np.uint64).reshape(-1, BANDS, HASHES_PER_BAND)
        keys[filled] = np.maximum((signatures * BAND_FACTORS).sum(axis=2, dtype=np.uint64), 1)
    return keys
