"""Elements of all rows one after another: sorting, sums and differences inside each row.

Every step is one over all elements; where all rows have as many of them it is a step over a matrix.
Knows nothing of what the elements are.

N rows, H elements in all.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Segments"]

I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Segments:
    """How many elements each of N rows has. Arrays of elements that are handed over are changed in place."""

    counts_N: NDArray[Any]

    @cached_property
    def offsets(self) -> I64:
        """Where rows begin and end, [N + 1]."""
        offsets = np.zeros(len(self.counts_N) + 1, np.int64)
        np.cumsum(self.counts_N, out=offsets[1:])
        return offsets

    @cached_property
    def _width(self) -> int | None:
        """Elements of every row, if all have as many, and any."""
        width = int(self.counts_N[0]) if len(self.counts_N) else 0
        return width if width and bool((self.counts_N == width).all()) else None

    @cached_property
    def _filled(self) -> NDArray[np.bool_]:
        return self.counts_N > 0

    def spread(self, values_N: NDArray[Any]) -> NDArray[Any]:
        """Each row's value at each of its elements, [H]."""
        return np.repeat(values_N, self.counts_N if self._width is None else self._width)

    def sort(self, keys_H: U32) -> U32:
        """Rising inside each row."""
        if self._width is not None:
            keys_H.reshape(-1, self._width).sort(axis=1)
            return keys_H
        rows_N = np.arange(len(self.counts_N), dtype=np.uint64) << np.uint64(32)
        keys = self.spread(rows_N) | keys_H
        keys.sort()
        return keys.astype(np.uint32)

    def differences(self, numbers_H: U32) -> U32:
        """Each less the one before it, modulo 2^32; the first of a row as it is."""
        first = self.offsets[:-1][self._filled]
        firsts = numbers_H[first]
        numbers_H[1:] -= numbers_H[:-1].copy()
        numbers_H[first] = firsts
        return numbers_H

    def sums(self, numbers_H: U32) -> U32:
        """Running sums of each row, modulo 2^32: `differences` undone."""
        np.cumsum(numbers_H, dtype=np.uint32, out=numbers_H)
        # That was one sum through all rows: less what it was where a row began.
        before_N = np.zeros(len(self.counts_N), np.uint32)
        later = self.offsets[:-1] > 0
        before_N[later] = numbers_H[self.offsets[:-1][later] - 1]
        numbers_H -= self.spread(before_N)
        return numbers_H

    def totals(self, numbers_H: NDArray[Any]) -> I64:
        """The sum of each row, [N]."""
        sums = np.zeros(len(numbers_H) + 1, np.int64)
        np.cumsum(numbers_H, out=sums[1:])
        return np.diff(sums.take(self.offsets))

    def largest(self, numbers_H: U32) -> U32:
        """The largest of each row, 0 of one without elements, [N]."""
        found_N = np.zeros(len(self.counts_N), np.uint32)
        if len(numbers_H):
            found_N[self._filled] = np.maximum.reduceat(numbers_H, self.offsets[:-1][self._filled])
        return found_N
