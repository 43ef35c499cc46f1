"""Numbers that are mostly small, as one byte each; larger ones have more bytes in a second stream.

Knows nothing of what is counted. Layout: FORMAT.md, "Numbers".
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.errors import CorruptError

__all__ = ["pack_numbers", "pack_pairs", "unpack_numbers", "unpack_pairs"]

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
).astype(np.uint32)

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]


def pack_numbers(numbers: U32) -> tuple[U8, U8]:
    """First bytes, one a number; and more: of those of two, then lower, then upper of those of three."""
    assert numbers.max(initial=0) <= LARGEST
    first = numbers.astype(np.uint8)
    large = np.flatnonzero(numbers >= TWO)
    values = numbers[large]
    is_two = values < FROM_THREE
    two, three = values[is_two] - np.uint32(TWO), values[~is_two] - np.uint32(FROM_THREE)
    first[large[is_two]] = TWO + (two >> 8)
    first[large[~is_two]] = THREE + (three >> 16)
    return first, np.concatenate([two & 255, three & 255, (three >> 8) & 255]).astype(np.uint8)


def unpack_numbers(first: U8, more: U8) -> U32:
    """The numbers. Raises CorruptError if there are more or fewer bytes than the first ones ask for."""
    numbers = first.astype(np.uint32)
    large = np.flatnonzero(first >= TWO)
    heads = first[large]
    is_three = heads >= THREE
    num_three = int(np.count_nonzero(is_three))
    num_two = len(large) - num_three
    if len(more) != num_two + 2 * num_three:
        raise CorruptError(f"lacks bytes of its numbers, {num_two + 2 * num_three}; found {len(more)}")
    values = SMALLEST.take(heads)
    lower = more[: len(large)]
    if num_three:
        values[~is_three] += lower[:num_two]
        values[is_three] += lower[num_two:] + (more[len(large) :].astype(np.uint32) << np.uint32(8))
    else:
        values += lower
    numbers[large] = values
    return numbers


def pack_pairs(numbers: NDArray[Any]) -> U8:
    """Numbers below 2^16: all lower bytes, then all upper ones."""
    return np.concatenate([numbers & 255, numbers >> 8]).astype(np.uint8)


def unpack_pairs(pairs: U8) -> U32:
    """`pack_pairs` undone."""
    numbers = pairs.astype(np.uint32)
    return numbers[: len(pairs) // 2] | (numbers[len(pairs) // 2 :] << np.uint32(8))
