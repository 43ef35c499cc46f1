"""Elements of all rows one after another: sorting, sums and differences inside each row.

Every step is one over all elements; where all rows have as many of them it is a step over a matrix.
Knows nothing of what the elements are.

N rows, H elements in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs.codec import Spans

__all__ = ["Segments", "cut", "offsets_of", "steps"]

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]


def offsets_of(counts_N: NDArray[Any]) -> I64:
    """Where rows of so many elements begin and end, [N + 1]."""
    offsets = np.zeros(len(counts_N) + 1, np.int64)
    np.cumsum(counts_N, out=offsets[1:])
    return offsets


def steps(bounds: Sequence[int]) -> list[int]:
    """From each bound to the next."""
    return [end - start for start, end in pairwise(bounds)]


def cut(values_N: NDArray[Any], spans: Spans) -> NDArray[Any]:
    """The values of these spans, one after another; of one span in place."""
    parts = [values_N[start:end] for start, end in spans]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Segments:
    """Where elements of each of N rows begin and end. Arrays that are handed over are changed in place."""

    offsets: I64  # [N + 1], from 0, rising
    width: int | None = None  # elements of every row, where it is known that all have as many, and any

    @classmethod
    def of(cls, counts_N: NDArray[Any]) -> "Segments":
        """Rows of so many elements."""
        most = int(counts_N.max(initial=0))
        if most and int(counts_N.min()) == most:
            return cls(np.arange(0, most * len(counts_N) + 1, most), most)
        return cls(offsets_of(counts_N))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def counts_N(self) -> I64:
        """How many elements each row has."""
        return np.diff(self.offsets)

    @property
    def widest(self) -> int:
        """Elements of the row that has most."""
        return self.width or int(self.counts_N.max(initial=0))

    @cached_property
    def _filled(self) -> NDArray[np.bool_]:
        return self.counts_N > 0

    def ends(self, bounds: Sequence[int]) -> list[int]:
        """How many elements come before each of these rows."""
        if self.width is not None:
            return [row * self.width for row in bounds]
        found: list[int] = self.offsets.take(bounds).tolist()
        return found

    def cut(self, spans: Spans) -> "tuple[Segments, list[tuple[int, int]]]":
        """The rows of these spans, one after another, and the spans of their elements."""
        ends = self.ends([row for span in spans for row in span])
        found = list(zip(ends[::2], ends[1::2], strict=True))
        if len(spans) == 1 and spans[0] == (0, len(self)):
            return self, found
        if self.width is not None:
            num_kept = sum(end - start for start, end in found)
            return Segments(np.arange(0, num_kept + 1, self.width), self.width), found
        if len(spans) == 1:
            start, end = spans[0]
            return Segments(self.offsets[start : end + 1] - found[0][0]), found
        return Segments(offsets_of(cut(self.counts_N, spans))), found

    def spread(self, values_N: NDArray[Any]) -> NDArray[Any]:
        """Each row's value at each of its elements, [H]."""
        return np.repeat(values_N, self.counts_N if self.width is None else self.width)

    def add(self, numbers_H: NDArray[Any], values_N: NDArray[Any]) -> None:
        """Adds each row's value to each of its elements."""
        if self.width is not None:
            numbers_NW = numbers_H.reshape(-1, self.width)
            numbers_NW += values_N[:, None]
        else:
            numbers_H += self.spread(values_N)

    def less_than(self, values_N: NDArray[Any], numbers_H: NDArray[Any]) -> None:
        """Puts each row's value, less the element, in the place of each of its elements."""
        if self.width is not None:
            numbers_NW = numbers_H.reshape(-1, self.width)
            np.subtract(values_N[:, None], numbers_NW, out=numbers_NW)
        else:
            np.subtract(self.spread(values_N), numbers_H, out=numbers_H)

    def sort(self, keys_H: U32, bits: int) -> None:
        """Rising inside each row; keys have at most so many bits."""
        if self.width is not None:
            keys_H.reshape(-1, self.width).sort(axis=1)
            return
        # One sort of all, rows above keys. Of four bytes it is three times as fast as of eight.
        narrow = (len(self) << bits) <= 1 << 32
        rows_N: NDArray[Any] = np.arange(len(self)).astype(np.uint32 if narrow else np.uint64)
        keys = self.spread(rows_N << bits)
        keys |= keys_H
        keys.sort()
        keys &= (1 << bits) - 1
        np.copyto(keys_H, keys, casting="same_kind")

    def differences(self, numbers_H: U32) -> U32:
        """Each less the one before it, modulo 2^32; the first of a row as it is."""
        first = self.offsets[:-1][self._filled]
        firsts = numbers_H[first]
        numbers_H[1:] -= numbers_H[:-1].copy()
        numbers_H[first] = firsts
        return numbers_H

    def sums(self, steps_H: I32, out_H: I32) -> tuple[I32, I32]:
        """Running sums through all rows; returned are those before each row, and what each row adds, [N].

        Modulo 2^32, which does not matter to sums of less inside one row.
        """
        # Of i32 and from one array to another it is twice as fast as of u32 or in place.
        np.add.accumulate(steps_H, out=out_H)
        if not len(out_H):
            return np.zeros(len(self), np.int32), np.zeros(len(self), np.int32)
        at = out_H.take(self.offsets - 1, mode="clip")
        at[self.offsets == 0] = 0
        return at[:-1], np.diff(at)

    def totals(self, numbers_H: NDArray[Any]) -> I64:
        """The sum of each row, [N]."""
        sums = np.zeros(len(numbers_H) + 1, np.int64)
        np.cumsum(numbers_H, out=sums[1:])
        return np.diff(sums.take(self.offsets))

    def largest(self, numbers_H: U32) -> U32:
        """The largest of each row, 0 of one without elements, [N]."""
        found_N = np.zeros(len(self), np.uint32)
        if len(numbers_H):
            found_N[self._filled] = np.maximum.reduceat(numbers_H, self.offsets[:-1][self._filled])
        return found_N
