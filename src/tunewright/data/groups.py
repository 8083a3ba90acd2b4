"""Equal values in a column that is too long to sort in memory, and groups that grow together.

A column is a file of uint64, one value for each row in order; 0 means that the row has none. At any time only a part of
it is held: rows whose values have the same first bits, about a million of them. Rows are numbered from 0, in 32 bits:
what is held of every row has four bytes, so that ten million rows take 40 MB of it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROWS_AT_A_TIME = 1 << 20
LARGEST = 2**64 - 1

MOST_ROWS = 2**31 - 1

Indices = NDArray[np.int64]
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


def parts_of(path: Path) -> Iterator[tuple[Indices, Values]]:
    """Rows that have a value, in order, in parts of about `ROWS_AT_A_TIME`; equal values are always in one part."""
    rows = path.stat().st_size // 8
    parts = max(1, -(-rows // ROWS_AT_A_TIME))
    width = np.uint64(LARGEST // parts)
    for part in range(parts):
        indices, values = [], []
        for start, piece in read_values(path):
            chosen = np.flatnonzero((piece != 0) & (np.minimum(piece // width, parts - 1) == part))
            indices.append(chosen + start)
            values.append(piece[chosen])
        yield np.concatenate(indices or [np.zeros(0, np.int64)]), np.concatenate(values or [np.zeros(0, np.uint64)])


def runs_of(values: Values) -> tuple[Indices, Indices]:
    """The order that sorts `values`, equal ones staying in order, and where each run of equal values begins in it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return order, np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])


def first_equal(path: Path) -> Groups:
    """For each row the first row with the same value, int32 [N]; a row without a value is alone."""
    first = np.arange(path.stat().st_size // 8, dtype=np.int32)
    for indices, values in parts_of(path):
        order, starts = runs_of(values)
        lengths = np.diff(np.append(starts, len(order)))
        first[indices[order]] = np.repeat(indices[order[starts]], lengths)
    return first


def most_frequent(path: Path) -> tuple[int, int]:
    """The value that most rows have and how many have it, the smallest of several; (0, 0) if no row has any."""
    best = (0, 0)
    for _, values in parts_of(path):
        found, counts = np.unique(values, return_counts=True)
        if len(found) and counts.max() > best[1]:
            best = int(found[counts.argmax()]), int(counts.max())
    return best


def equal_rows(path: Path) -> Iterator[Indices]:
    """The rows of every value that several rows have, ascending."""
    for indices, values in parts_of(path):
        order, starts = runs_of(values)
        ends = np.append(starts, len(order))[1:]
        for number in np.flatnonzero(ends - starts > 1):
            yield indices[order[starts[number] : ends[number]]]


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
