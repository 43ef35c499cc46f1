"""Numbers that are mostly small, as one byte each; larger ones have more bytes in a second stream.

Knows nothing of what is counted. Layout: FORMAT.md, "Numbers".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs.codec import Spans
from distillcache_shards.codecs.segments import steps
from distillcache_shards.codecs.streams import Streams

__all__ = ["LARGEST", "Numbers", "pack_numbers", "pack_pairs", "take_pairs"]

# First bytes below 192 are the number; from 192 on one more byte follows, from 240 on two more.
TWO, THREE = 192, 240
FROM_THREE = TWO + ((THREE - TWO) << 8)
LARGEST = FROM_THREE + ((256 - THREE) << 16) - 1  # above 2^20, so any id fits
# Of each first byte, the smallest number it stands for.
SMALLEST = np.concatenate(
    [
        np.arange(TWO),
        TWO + (np.arange(THREE - TWO) << 8),
        FROM_THREE + (np.arange(256 - THREE) << 16),
    ]
).astype(np.int32)
NO_NUMBERS = np.zeros(0, np.int32)

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]


def pack_numbers(numbers: U32) -> tuple[U8, U8]:
    """First bytes, one a number; and more: the next byte of all larger ones, then the last of the largest."""
    assert numbers.max(initial=0) <= LARGEST
    first = numbers.astype(np.uint8)
    large = np.flatnonzero(numbers >= TWO)
    values = numbers[large]
    is_three = values >= FROM_THREE
    values -= np.where(is_three, np.uint32(FROM_THREE), np.uint32(TWO))
    first[large] = np.where(is_three, THREE + (values >> 16), TWO + (values >> 8))
    return first, np.concatenate([values & 255, (values[is_three] >> 8) & 255]).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Numbers:
    """Numbers that were packed, not yet spread out."""

    first: U8
    large_at: NDArray[np.int64]  # where the larger ones stand, rising
    large: NDArray[np.int32]

    @classmethod
    def of(cls, streams: Streams, counts: Sequence[int], *, backwards: bool = False) -> "Numbers":
        """The next `counts` numbers of each block; of the last block first if they are written `backwards`.

        Raises CorruptError if there are fewer bytes than they ask for.
        """
        first = streams.take(counts, backwards=backwards)
        large_at = np.flatnonzero(first >= TWO)
        if not len(large_at):
            return cls(first, large_at, NO_NUMBERS)
        bounds = [0, *accumulate(counts[::-1] if backwards else counts)]

        def of_each(at: NDArray[np.int64]) -> list[int]:
            """How many there are in each block."""
            ends = at.searchsorted(bounds).tolist() if len(counts) > 1 else [0, len(at)]
            found = steps(ends)
            return found[::-1] if backwards else found

        heads = first.take(large_at)
        large = SMALLEST.take(heads)
        large += streams.take(of_each(large_at), backwards=backwards)
        three = np.flatnonzero(heads >= THREE)
        if len(three):
            more = streams.take(of_each(large_at.take(three)), backwards=backwards)
            large[three] += more.astype(np.int32) << 8
        return cls(first, large_at, large)

    def spread(self, spans: Spans, out: NDArray[Any]) -> NDArray[Any]:
        """Writes the numbers from here to there, for each span, and returns them."""
        # Four bytes either way; to convert them would take longer than to write them.
        large = self.large.view(out.dtype)
        if len(spans) == 1 and spans[0] == (0, len(self.first)):
            np.copyto(out, self.first)
            out[self.large_at] = large
            return out
        place = 0
        for start, end in spans:
            np.copyto(out[place : place + end - start], self.first[start:end])
            a, b = self.large_at.searchsorted((start, end)).tolist()
            out[self.large_at[a:b] + (place - start)] = large[a:b]
            place += end - start
        return out

    def all(self) -> U32:
        """All of them."""
        return self.spread([(0, len(self.first))], np.empty(len(self.first), np.uint32))


def pack_pairs(numbers: NDArray[Any]) -> U8:
    """Numbers below 2^16: all lower bytes, then all upper ones."""
    return np.concatenate([numbers & 255, numbers >> 8]).astype(np.uint8)


def take_pairs(streams: Streams, counts: Sequence[int]) -> U32:
    """`pack_pairs` undone, for the next numbers of each block. Raises CorruptError if there are fewer."""
    lower = streams.take(counts).astype(np.uint32)
    return lower | (streams.take(counts).astype(np.uint32) << np.uint32(8))
