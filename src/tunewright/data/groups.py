"""Equal values in a column that is too long to sort in memory, and groups that grow together.

A column is a file of uint64, one value for each row in order; 0 means that the row has none. It is read once for each
range of values, so that about a million different ones are held at any time. Rows are numbered from 0, in 32 bits: what
is held of every row has four bytes, so that ten million rows take 40 MB of it.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROWS_AT_A_TIME = 1 << 18
LARGEST = 2**64 - 1

MOST_ROWS = 2**31 - 1

Indices = NDArray[np.int64]
Rows = NDArray[np.int32]
Groups = NDArray[np.int32]
"""For each row the first row of its group, by which the group is named."""
Values = NDArray[np.uint64]


def read_values(path: Path) -> Iterator[tuple[int, Values]]:
    """The column in pieces, each with the number of its first row."""
    start = 0
    with path.open("rb") as file:
        while len(values := np.fromfile(file, dtype=np.uint64, count=ROWS_AT_A_TIME)):
            yield start, values
            start += len(values)


def ranges(rows: int) -> list[tuple[np.uint64, np.uint64]]:
    """The values from 1 on in ranges, first and last, each of which holds about `ROWS_AT_A_TIME` different ones."""
    count = max(1, -(-rows // ROWS_AT_A_TIME))
    edges = [number * (LARGEST // count) for number in range(count)] + [LARGEST]
    return [(np.uint64(low + 1), np.uint64(high)) for low, high in pairwise(edges)]


class FirstRows:
    """The first row of each value so far: values [V], sorted, and rows, int32 [V]."""

    def __init__(self) -> None:
        self._values, self._rows = np.zeros(0, np.uint64), np.zeros(0, np.int32)

    def of(self, values: Values, rows: Rows) -> Rows:
        """The first row that had each of the values, which follow those that were seen; int32."""
        different, places, numbers = np.unique(values, return_index=True, return_inverse=True)
        firsts = rows[places]
        at = np.searchsorted(self._values, different)
        known = np.flatnonzero(at < len(self._values))
        known = known[self._values[at[known]] == different[known]]
        firsts[known] = self._rows[at[known]]
        new = np.ones(len(different), dtype=np.bool_)
        new[known] = False
        self._values = np.insert(self._values, at[new], different[new])
        self._rows = np.insert(self._rows, at[new], firsts[new])
        return firsts[numbers]


def first_equal(path: Path) -> Groups:
    """For each row the first row with the same value, int32 [N]; a row without a value is alone.

    Memory is bounded by the different values of a range, however often one of them comes.
    """
    first = np.arange(path.stat().st_size // 8, dtype=np.int32)
    for low, high in ranges(len(first)):
        seen = FirstRows()
        for start, values in read_values(path):
            rows = np.flatnonzero((values >= low) & (values <= high))
            first[rows + start] = seen.of(values[rows], (rows + start).astype(np.int32))
    return first


def is_first(groups: Groups) -> NDArray[np.bool_]:
    """Which rows are the first of their group, bool [N]."""
    mask = np.empty(len(groups), dtype=np.bool_)
    for piece in pieces(len(groups)):
        mask[piece] = groups[piece] == np.arange(piece.start, piece.stop)
    return mask


def most_frequent(path: Path) -> tuple[int, int]:
    """The value that most rows have and how many have it, the smallest of several; (0, 0) if no row has any."""
    sizes = group_sizes(first_equal(path))
    most, best = 0, 0
    for start, values in read_values(path):
        counts = np.where(values == 0, 0, sizes[start : start + len(values)])
        count = int(counts.max())
        if count and count >= most:
            value = int(values[counts == count].min())
            most, best = count, value if count > most else min(value, best)
    return best, most


def equal_rows(path: Path, among: NDArray[np.bool_]) -> Iterator[Rows]:
    """The rows of every value that several of the marked rows have, ascending."""
    for low, high in ranges(len(among)):
        rows, values = _rows_between(path, low, high, among)
        order = np.argsort(values, kind="stable")
        values = values[order]
        starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(values)])
        ends = np.append(starts, len(values))[1:]
        for number in np.flatnonzero(ends - starts > 1):
            yield rows[order[starts[number] : ends[number]]]


def _rows_between(path: Path, low: np.uint64, high: np.uint64, among: NDArray[np.bool_]) -> tuple[Rows, Values]:
    """The marked rows with values from `low` to `high`, and their values."""
    found, parts = [np.zeros(0, np.int32)], [np.zeros(0, np.uint64)]
    for start, values in read_values(path):
        rows = np.flatnonzero((values >= low) & (values <= high) & among[start : start + len(values)])
        found.append((rows + start).astype(np.int32))
        parts.append(values[rows])
    return np.concatenate(found), np.concatenate(parts)


def pieces(size: int) -> Iterator[slice]:
    """Rows from 0 to `size`, about a million at a time."""
    return (slice(start, min(start + ROWS_AT_A_TIME, size)) for start in range(0, size, ROWS_AT_A_TIME))


def group_sizes(groups: Groups) -> NDArray[np.uint32]:
    """How many rows each group has, at its first row, uint32 [N]; 0 at all other rows."""
    sizes = np.zeros(len(groups), dtype=np.uint32)
    for piece in pieces(len(groups)):
        np.add.at(sizes, groups[piece], 1)
    return sizes


class Unions:
    """Rows in groups that only ever grow together; a group is named by its first row.

    Args:
        first: for each row the first row that it belongs with from the start, int32 [N]. It is taken over.
    """

    def __init__(self, first: Groups) -> None:
        self._parents = first

    def root(self, row: int) -> int:
        parents = self._parents
        while (parent := int(parents[row])) != row:
            parents[row] = parents[parent]
            row = parent
        return row

    def join(self, left: int, right: int) -> None:
        low, high = sorted((self.root(left), self.root(right)))
        self._parents[high] = low

    def join_all(self, first: Groups) -> None:
        """Join each row with the row that `first` names for it."""
        for piece in pieces(len(first)):
            for row in np.flatnonzero(first[piece] != np.arange(piece.start, piece.stop)) + piece.start:
                self.join(int(first[row]), int(row))

    def roots(self) -> Groups:
        """For each row the first row of its group, int32 [N]."""
        # A parent never comes after its row, so what stands before a piece is flat already.
        for piece in pieces(len(self._parents)):
            while not np.array_equal(self._parents[piece], flatter := self._parents[self._parents[piece]]):
                self._parents[piece] = flatter
        return self._parents
