"""Near duplicates among prompts: exact search over word trigrams, for long prompts over a sample of them.

Two prompts are near duplicates if the Jaccard similarity of their sets of word trigrams is at least 0.8, both as they
are and without the wording that more than one prompt in ten shares (an instruction that stands in every row makes no
two rows alike). A prompt of more than 256 trigrams is compared by the 256 with the smallest hashes (Broder, On the
resemblance and containment of documents, 1997): of two such prompts of equal length the similarity is estimated with a
standard error of about 0.03; where the lengths differ it is understated, by 0.05 at 0.95 and by 0.13 at 0.8.

Candidates are found by prefix filtering (Chaudhuri, Ganti, Kaushik, A primitive operator for similarity joins, 2006):
sets sorted by rarity with similarity >= t share a member of their first |x| - ceil(t |x|) + 1. So no pair is missed,
and time grows about linearly with the rows.
"""

import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

THRESHOLD = 0.8
SKETCH_SIZE = 256
COMMON_SHARE = 0.1
COMMON_AT_LEAST = 5
CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+|[^\w\s.,;:!?\"'„“”‘’…()\[\]]")


def words_of(text: str) -> tuple[str, ...]:
    """Words in lower case; punctuation left out, signs such as + kept; a CJK character is a word."""
    return tuple(WORD.findall(text.casefold()))


@lru_cache(maxsize=200_000)
def _number_of(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", errors="surrogatepass"))


def shingles_of(words: Sequence[str]) -> frozenset[int]:
    """Hashes of the word trigrams, at most `SKETCH_SIZE`; the same in every process."""
    numbers = [_number_of(word) for word in words]
    if len(numbers) < 3:
        return frozenset([hash(tuple(numbers))])
    shingles = set(map(hash, zip(numbers, numbers[1:], numbers[2:], strict=False)))
    return frozenset(sorted(shingles)[:SKETCH_SIZE])


def jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared) if shared else 0.0


class PromptIndex:
    """Prompts by their near duplicates.

    Args:
        prompts: the texts; those with the same words are one, and `groups` has the group of each text.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        numbers: dict[tuple[str, ...], int] = {}
        self.groups = [numbers.setdefault(words_of(text), len(numbers)) for text in prompts]
        self.whole = [shingles_of(words) for words in numbers]
        frequency = Counter(shingle for shingles in self.whole for shingle in shingles)
        common = max(COMMON_AT_LEAST, COMMON_SHARE * len(self.whole))
        self.own = [frozenset(s for s in shingles if frequency[s] <= common) for shingles in self.whole]
        self.prefixes = [self._prefix(shingles, frequency) for shingles in self.own]
        self.places: dict[int, list[int]] = defaultdict(list)
        for group, prefix in enumerate(self.prefixes):
            for shingle in prefix:
                self.places[shingle].append(group)

    @staticmethod
    def _prefix(shingles: frozenset[int], frequency: Counter[int]) -> list[int]:
        length = len(shingles) - math.ceil(THRESHOLD * len(shingles)) + 1
        return sorted(shingles, key=lambda shingle: (frequency[shingle], shingle))[:length] if shingles else []

    def matches(self, group: int, wanted: Callable[[int], bool] = lambda other: True) -> Iterator[int]:
        """The near duplicates of a group among those that are wanted, itself left out."""
        seen = {group}
        for shingle in self.prefixes[group]:
            for other in self.places[shingle]:
                if other not in seen and wanted(other):
                    seen.add(other)
                    if self._alike(group, other):
                        yield other

    def _alike(self, group: int, other: int) -> bool:
        own = jaccard(self.own[group], self.own[other])
        return own >= THRESHOLD and jaccard(self.whole[group], self.whole[other]) >= THRESHOLD

    def clusters(self) -> list[int]:
        """For each group the smallest group that it is connected with through near duplicates."""
        parents = list(range(len(self.own)))

        def root_of(group: int) -> int:
            while parents[group] != group:
                parents[group] = parents[parents[group]]
                group = parents[group]
            return group

        for group in range(len(parents)):
            for other in self.matches(group, lambda other, group=group: root_of(other) != root_of(group)):  # type: ignore[misc]
                low, high = sorted((root_of(group), root_of(other)))
                parents[high] = low
        return [root_of(group) for group in range(len(parents))]
