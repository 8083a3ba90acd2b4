"""A column of numbers on disk, one for each row, that is never held whole."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Column:
    """The numbers of a file, by a slice of rows or by an array of row numbers, which should be few.

    Args:
        path: of the file; it has all its rows.
        dtype: of a number.
    """

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._path = path
        self._dtype = np.dtype(dtype)
        self._size = path.stat().st_size // self._dtype.itemsize

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, rows: slice | NDArray[np.integer[Any]]) -> NDArray[Any]:
        if not isinstance(rows, slice):
            chosen: NDArray[Any] = self._mapped[rows]
            return chosen
        start, stop, _ = rows.indices(self._size)
        return np.fromfile(self._path, self._dtype, max(0, stop - start), offset=start * self._dtype.itemsize)

    @cached_property
    def _mapped(self) -> NDArray[Any]:
        if not self._size:
            return np.zeros(0, self._dtype)
        mapped: NDArray[Any] = np.memmap(self._path, self._dtype, mode="r").view(np.ndarray)
        return mapped
