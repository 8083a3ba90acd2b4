"""The usable conversations of a data set, as columns of numbers, with what stands near what.

Nothing here holds texts: a row is read back from disk where an example is wanted. Memory grows by a few bytes per row.
"""

from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from tunewright.data.audit.rows import AuditRow
from tunewright.data.column import Column
from tunewright.data.groups import Groups, Rows, Unions, equal_rows, first_equal, is_first, most_frequent
from tunewright.data.near import BANDS, Shingles, alike, shingles_of_text
from tunewright.data.spool import Spool

COMPARED_IN_A_BAND = 32
SHINGLES_KEPT = 8_000


def band_name(band: int) -> str:
    return f"band-{band:02}"


class Corpus:
    """The usable conversations, numbered from 0 in the order of the input.

    Attributes:
        size: how many there are.
        common: the trigrams that many prompts share, which make no two of them alike.
    """

    def __init__(self, spool: Spool, common: Shingles) -> None:
        self.size = spool.size
        self.common = common
        self._spool = spool
        self._is_eval = np.zeros(spool.size, dtype=np.bool_)
        self._shingles = lru_cache(SHINGLES_KEPT)(self._read_shingles)

    def column(self, name: str) -> Column:
        """A column in row order; see `tunewright.data.features.COLUMNS`, and `prompt`."""
        return self._spool.column(name)

    def row(self, index: int) -> AuditRow:
        return AuditRow(self._spool.conversation(int(index)))

    def id(self, index: int) -> str:
        return self._spool.conversation(int(index)).id

    def is_eval(self) -> NDArray[np.bool_]:
        """Which rows are held out, bool [N]; none before the split."""
        return self._is_eval

    def hold_out(self, is_eval: NDArray[np.bool_]) -> None:
        self._is_eval = is_eval

    def first_equal(self, column: str) -> Groups:
        """For each row the first row with the same value in that column, int32 [N]; a row without a value is alone."""
        return first_equal(self._spool.path(column))

    def most_frequent(self, column: str) -> tuple[int, int]:
        """The value that most rows have, and how many; (0, 0) if none has any."""
        return most_frequent(self._spool.path(column))

    def alike(self, left: int, right: int) -> bool:
        """Whether two rows have nearly the same prompt."""
        return alike(self._shingles(int(left)), self._shingles(int(right)), self.common)

    def _read_shingles(self, index: int) -> Shingles:
        return shingles_of_text(self.row(index).prompt)

    def clusters(self) -> Groups:
        """For each row the first row whose prompt is the same or nearly, through chains of such rows, int32 [N]."""
        return self._clusters

    @cached_property
    def _clusters(self) -> Groups:
        same = self.first_equal("prompt")
        different = is_first(same)
        groups = Unions(same)
        for band in range(BANDS):
            for rows in equal_rows(self._spool.path(band_name(band)), different):
                self._join_alike(groups, rows)
        return groups.roots()

    def _join_alike(self, groups: Unions, rows: Rows) -> None:
        """Join what is alike among the rows of one bucket.

        Where a bucket holds many groups, each is compared with the first `COMPARED_IN_A_BAND` only, so that the time
        stays linear.
        """
        roots = list(dict.fromkeys(groups.root(row) for row in rows.tolist()))
        for right in roots[1:]:
            for left in roots[:COMPARED_IN_A_BAND]:
                if left >= right or groups.root(left) == groups.root(right):
                    continue
                if self.alike(left, right):
                    groups.join(left, right)
