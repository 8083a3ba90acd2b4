"""Questions that several checks put to the columns of a corpus. Columns are gone through a million rows at a time."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tunewright.data.audit.findings import EXAMPLES_KEPT, Example, Offenders
from tunewright.data.audit.rows import AuditRow
from tunewright.data.groups import Groups, Indices, is_first, pieces

LABEL_CHARACTERS = 40
LABELS_SHARE = 0.95

Mask = NDArray[np.bool_]


class Values(Protocol):
    """The numbers of a column: an array, or `tunewright.data.column.Column`."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


class Corpus(Protocol):
    """What the checks ask of all rows together, see `tunewright.data.corpus.Corpus`."""

    size: int

    def column(self, name: str) -> Values: ...
    def row(self, index: int) -> AuditRow: ...
    def id(self, index: int) -> str: ...
    def is_eval(self) -> Mask: ...
    def first_equal(self, column: str) -> Groups: ...
    def most_frequent(self, column: str) -> tuple[int, int]: ...
    def clusters(self) -> Groups: ...
    def alike(self, left: int, right: int) -> bool: ...


def where(values: Values, test: Callable[[NDArray[Any]], Mask]) -> Mask:
    """Which values of a column pass a test, bool [N]."""
    mask = np.empty(len(values), dtype=np.bool_)
    for piece in pieces(len(values)):
        mask[piece] = test(values[piece])
    return mask


def first_rows(mask: Mask, count: int = EXAMPLES_KEPT) -> list[int]:
    """The first rows that a mask marks."""
    rows: list[int] = []
    for piece in pieces(len(mask)):
        rows.extend((np.flatnonzero(mask[piece])[: count - len(rows)] + piece.start).tolist())
        if len(rows) == count:
            break
    return rows


def offenders(corpus: Corpus, mask: Mask, excerpt: Callable[[int], str]) -> Offenders:
    """The rows that a mask marks; only the examples are read."""
    examples = tuple(Example(corpus.id(row), excerpt(row)) for row in first_rows(mask))
    return Offenders(int(np.count_nonzero(mask)), examples)


def groups_with_differences(groups: Groups, values: Values) -> Mask:
    """Which groups have rows with different values, bool [N], marked at the first row, by which a group is named."""
    mixed = np.zeros(len(groups), dtype=np.bool_)
    first = is_first(groups)
    for piece in pieces(len(groups)):
        others = np.flatnonzero(~first[piece])
        heads = groups[piece][others]
        mixed[heads[values[piece][others] != values[heads]]] = True
    return mixed


def members(groups: Groups, chosen: Mask) -> Mask:
    """The rows of the chosen groups, bool [N]."""
    mask = np.empty(len(groups), dtype=np.bool_)
    for piece in pieces(len(groups)):
        mask[piece] = chosen[groups[piece]]
    return mask


def first_other(groups: Groups, values: Values, row: int) -> int | None:
    """The first row of the same group that has another value."""
    own = values[row : row + 1]
    for piece in pieces(len(groups)):
        found = np.flatnonzero((groups[piece] == groups[row]) & (values[piece] != own))
        if len(found):
            return int(found[0] + piece.start)
    return None


def find_first(values: Values, wanted: NDArray[Any], among: Mask) -> Indices:
    """For each wanted value the first row among the marked ones that has it, -1 if none has."""
    found = np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(wanted, kind="stable")
    ordered = wanted[order]
    for piece in pieces(len(values)):
        rows = np.flatnonzero(among[piece])[::-1]
        own = values[piece][rows]
        places = np.searchsorted(ordered, own)
        places[places == len(ordered)] = 0
        hits = ordered[places] == own if len(ordered) else np.zeros(len(rows), np.bool_)
        _keep_first(found, order, places[hits], rows[hits] + piece.start)
    return _spread(found, wanted, order)


def _keep_first(found: Indices, order: Indices, places: Indices, rows: Indices) -> None:
    """Enter rows, the last of each value winning, where no earlier piece had one."""
    is_new = found[order[places]] < 0
    found[order[places[is_new]]] = rows[is_new]


def _spread(found: Indices, wanted: NDArray[Any], order: Indices) -> Indices:
    """What was entered at the first of several equal values, at each of them."""
    return found[order[np.searchsorted(wanted[order], wanted)]]


def smallest_rows(values: Values, salt: np.uint64, count: int) -> list[int]:
    """The rows with the smallest values, after these were mixed with the salt, in their order."""
    rows, keys = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    for piece in pieces(len(values)):
        rows = np.concatenate([rows, np.arange(piece.start, piece.stop)])
        keys = np.concatenate([keys, values[piece] ^ salt])
        order = np.argsort(keys, kind="stable")[:count]
        rows, keys = rows[order], keys[order]
    return [int(row) for row in rows]


def distinct(corpus: Corpus, column: str) -> int:
    """How many different values the rows have."""
    return int(np.count_nonzero(is_first(corpus.first_equal(column))))


def labels(corpus: Corpus) -> int:
    """How many labels the rows are sorted into; 0 if they are not: most targets are short, and most recur."""
    is_short = where(corpus.column("target_characters"), lambda characters: characters <= LABEL_CHARACTERS)
    if np.count_nonzero(is_short) < LABELS_SHARE * corpus.size:
        return 0
    count = distinct(corpus, "target")
    return count if 2 * count <= corpus.size else 0
