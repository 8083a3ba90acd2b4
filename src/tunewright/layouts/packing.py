"""Rows laid end to end in one packed row, each run of tokens that several rows begin with standing there once.

In: token rows. Out: a `Pack`: ids, positions, which keys each run of tokens may see, and which packed position predicts
each supervised token. Rows are the leaves of a tree whose shared beginnings are inner segments; a segment stands in the
pack right before everything that continues it. Always: along each row's own path the pack has the row's ids and
positions, so that attention over the path's segments computes what the row alone would.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tunewright.chat.rows import TokenRow, common_start

LEAST_SHARED = 16  # Fewer common tokens do not pay for one more part of the attention.


@dataclass(frozen=True)
class Segment:
    """A run of tokens that some rows have in common, or that one row has alone.

    Attributes:
        start, end: in the pack.
        reach: where everything that continues it ends; `end` if nothing does.
        ancestors: what stands before it in its rows, from the first segment on, each as (start, end) in the pack.
    """

    start: int
    end: int
    reach: int
    ancestors: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Pack:
    """Rows in one packed row of T tokens.

    Attributes:
        ids, positions: int64 [T].
        segments: in the order of the pack; together they are all of it.
        sources: int64 [N], the packed position that predicts each supervised token.
        targets: int64 [N], the supervised tokens, row by row.
        row_tokens: tokens of the rows by themselves.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: tuple[Segment, ...]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    row_tokens: int

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass
class _Builder:
    rows: Sequence[TokenRow]
    skipped: int
    sharing: bool
    ids: list[NDArray[np.int32]] = field(default_factory=list)
    positions: list[NDArray[np.int64]] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    paths: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    length: int = 0

    def add(self, members: Sequence[int], depth: int, ancestors: tuple[tuple[int, int], ...]) -> None:
        """Lay out rows that have their first `depth` tokens in common, which stand in `ancestors`."""
        for cluster in self._clusters(members, depth):
            end = self._common_end(cluster)
            if end > depth:
                self._add_cluster(cluster, depth, end, ancestors)
            else:  # Rows that are wholly within what they share.
                for row in cluster:
                    self.paths[row] = list(ancestors)

    def _add_cluster(
        self, cluster: Sequence[int], depth: int, end: int, ancestors: tuple[tuple[int, int], ...]
    ) -> None:
        start, number = self.length, len(self.segments)
        self.ids.append(self.rows[cluster[0]].ids[depth:end])
        self.positions.append(np.arange(depth, end))
        self.length += end - depth
        own = (start, self.length)
        self.segments.append(Segment(*own, self.length, ancestors))
        longer = [row for row in cluster if len(self.rows[row].ids) > end]
        self.paths |= {row: [*ancestors, own] for row in cluster if len(self.rows[row].ids) == end}
        if longer:
            self.add(longer, end, (*ancestors, own))
            self.segments[number] = Segment(*own, self.length, ancestors)

    def _clusters(self, members: Sequence[int], depth: int) -> Iterator[list[int]]:
        """Neighbours in lexicographic order that have enough in common beyond `depth`."""
        cluster = [members[0]]
        for before, row in pairwise(members):
            if self.sharing and self._common(before, row) - depth >= LEAST_SHARED:
                cluster.append(row)
            else:
                yield cluster
                cluster = [row]
        yield cluster

    def _common_end(self, cluster: Sequence[int]) -> int:
        """Where what all rows of the cluster have in common ends: rows in order differ most between first and last."""
        return self._common(cluster[0], cluster[-1])

    def _common(self, left: int, right: int) -> int:
        return len(common_start(self.rows[left].ids, self.rows[right].ids))


def pack(rows: Sequence[TokenRow], skipped: int = 0, sharing: bool = True) -> Pack:
    """Pack `rows` without their first `skipped` tokens, which all of them have in common and none is trained on.

    Args:
        sharing: whether common beginnings stand in the pack once; else every row is a segment of its own.
    """
    builder = _Builder(rows, skipped, sharing)
    order = sorted(range(len(rows)), key=lambda index: rows[index].ids.tolist())
    builder.add(order, skipped, ())
    sources, targets = [], []
    for index, row in enumerate(rows):
        path = np.concatenate([np.arange(start, end) for start, end in builder.paths[index]])
        supervised = np.flatnonzero(row.mask[skipped:])
        sources.append(path[supervised - 1])
        targets.append(row.ids[skipped:][supervised])
    return Pack(
        np.concatenate(builder.ids).astype(np.int64),
        np.concatenate(builder.positions),
        tuple(builder.segments),
        np.concatenate(sources),
        np.concatenate(targets).astype(np.int64),
        sum(len(row.ids) for row in rows),
    )


def plan_packs(rows: Sequence[TokenRow], budget: int, skipped: int = 0, sharing: bool = True) -> list[list[TokenRow]]:
    """Rows in packs of at most `budget` tokens each, as far as single rows allow; rows that share most stand together.

    The pack's tokens are counted as if every common beginning were shared, in lexicographic order.
    """
    ordered = sorted(rows, key=lambda row: row.ids.tolist())
    packs: list[list[TokenRow]] = []
    taken = 0
    for row in ordered:
        own = len(row.ids) - skipped
        added = own
        if packs and sharing:
            common = len(common_start(packs[-1][-1].ids, row.ids)) - skipped
            added = own - (common if common >= LEAST_SHARED else 0)
        if packs and taken + added <= budget:
            packs[-1].append(row)
            taken += added
        else:
            packs.append([row])
            taken = own
    return packs
