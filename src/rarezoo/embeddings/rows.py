"""Arrays on disk that are read some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import h5py
import numpy as np
from numpy.typing import NDArray

# What is read at a time: little beside the arrays that are made of it, and enough to keep a disk busy.
PIECE_BYTES = 2**24
# A text lies on disk as a reference of 16 bytes, and is an object of some 60 in memory.
_TEXT_BYTES = 80


class Rows:
    """A dataset on disk that gives any of its rows without holding the others in memory.

    Parameters
    ----------
    dataset : HDF5 dataset (N, ...) of numbers or of text

    Attributes
    ----------
    shape : of the dataset
    dtype : of the rows that are read; object for text
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        self._dataset = dataset.asstr() if is_text else dataset
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype = np.dtype(object) if is_text else dataset.dtype
        self._row_bytes = math.prod(self.shape[1:]) * (_TEXT_BYTES if is_text else self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | int | NDArray) -> NDArray:
        """Rows by slice, number, array of numbers or mask, as numpy does; HDF5's own look-up of many rows is slow."""
        if not isinstance(rows, np.ndarray):
            found: NDArray = self._dataset[rows]
            return found
        # numpy's own rules for masks, and for numbers that are negative or out of range.
        numbers = np.arange(len(self))[rows]
        order = np.argsort(numbers, kind="stable")
        ascending = numbers[order]
        picked = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        for span in self.spans():
            first, last = np.searchsorted(ascending, [span.start, span.stop])
            if last > first:
                start = ascending[first]
                piece = self._dataset[start : ascending[last - 1] + 1]
                picked[order[first:last]] = piece[ascending[first:last] - start]
        return picked

    def spans(self) -> Iterator[slice]:
        """Slices that divide the rows into pieces of `PIECE_BYTES` or, where a row is larger, of one row."""
        step = max(1, PIECE_BYTES // max(1, self._row_bytes))
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def pieces(self) -> Iterator[NDArray]:
        """All rows in their order, piece by piece."""
        for span in self.spans():
            yield self._dataset[span]
