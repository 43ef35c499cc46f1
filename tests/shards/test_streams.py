"""Claims about the parts of compact codecs: numbers, the streams that hold them, rows as segments of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillcache_shards.codecs import PackedBlock
from distillcache_shards.codecs.numbers import LARGEST, Numbers, pack_numbers
from distillcache_shards.codecs.segments import Segments
from distillcache_shards.codecs.streams import Streams, pack_streams
from distillcache_shards.errors import CorruptError


def _streams(blocks: list[list[np.ndarray]]) -> Streams:
    """What a reader meets of blocks with these streams."""
    packed = [pack_streams(each) for each in blocks]
    return Streams(
        [PackedBlock(np.frombuffer(each.data, np.uint8), 0, each.expanded_bytes) for each in packed]
    )


@given(st.lists(st.lists(st.integers(0, LARGEST), max_size=20), min_size=1, max_size=4), st.booleans())
def test_numbers_come_back(blocks: list[list[int]], backwards: bool) -> None:
    """Every number an id can be, in one, two or three bytes, of one block or of several, from either end."""
    numbers = [np.array(each, np.uint32) for each in blocks]
    streams = _streams([[*pack_numbers(each), np.array([7], np.uint8)] for each in numbers])
    found = Numbers.of(streams, [len(each) for each in numbers], backwards=backwards)
    wanted = np.concatenate(numbers[::-1] if backwards else numbers)
    np.testing.assert_array_equal(found.all(), wanted)
    assert streams.take([1] * len(numbers)).tolist() == [7] * len(numbers)
    streams.end()
    for start in range(len(wanted) + 1):
        spans = [(start, len(wanted)), (0, start)]
        out = found.spread(spans, np.empty(len(wanted), np.int32))
        np.testing.assert_array_equal(out, np.concatenate([wanted[start:], wanted[:start]]))


def test_numbers_of_all_sizes_take_the_bytes_that_they_should() -> None:
    """The first and the last of each size."""
    numbers = np.array([0, 191, 192, 12_479, 12_480, LARGEST], np.uint32)
    first, more = pack_numbers(numbers)
    assert first.tolist() == [0, 191, 192, 239, 240, 255]
    # The second bytes of four numbers, then the third ones of the last two.
    assert more.tolist() == [0, 255, 0, 255, 0, 255]
    for wrong in (more[:-1], more[:3]):
        with pytest.raises(CorruptError, match="is shorter than its rows"):
            Numbers.of(_streams([[first, wrong]]), [6])
    streams = _streams([[first, more, more[:1]]])
    assert Numbers.of(streams, [6]).all().tolist() == numbers.tolist()
    with pytest.raises(CorruptError, match="is longer than its rows"):
        streams.end()


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=5), max_size=8), st.integers(0, 3))
def test_steps_inside_rows_are_those_of_each_row(lists: list[list[int]], width: int) -> None:
    """Sorting, sums, differences, totals and the largest, against one row at a time, also of equal widths."""
    if width:
        lists = [(each + [5] * width)[:width] for each in lists]
    segments = Segments.of(np.array([len(each) for each in lists], np.int64))
    flat = np.array([value for each in lists for value in each], np.uint32)
    rows = np.split(flat, segments.offsets[1:-1]) if lists else []
    assert segments.width == (width if width and lists else None) or len({len(each) for each in lists}) == 1

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.uint32), *parts])

    ordered = flat.copy()
    segments.sort(ordered, 32)
    np.testing.assert_array_equal(ordered, joined([np.sort(each) for each in rows]))
    sums = joined([np.cumsum(each, dtype=np.uint32) for each in rows])
    found = np.empty(len(flat), np.int32)
    before_N, added_N = segments.sums(flat.view(np.int32), found)
    segments.add(found, -before_N)
    np.testing.assert_array_equal(found.view(np.uint32), sums)
    assert added_N.view(np.uint32).tolist() == [int(each.sum(dtype=np.uint32)) for each in rows]
    np.testing.assert_array_equal(segments.differences(sums.copy()), flat)
    assert segments.totals(flat).tolist() == [sum(each) for each in lists]
    assert segments.largest(flat).tolist() == [max(each, default=0) for each in lists]
    assert segments.widest == max(map(len, lists), default=0)
    less = flat.copy()
    segments.less_than(np.arange(len(lists), dtype=np.uint32), less)
    np.testing.assert_array_equal(less, joined([np.uint32(n) - each for n, each in enumerate(rows)]))


@given(st.lists(st.integers(0, 300), min_size=1, max_size=30), st.sampled_from([2, 9, 20, 31]))
def test_rows_of_few_bits_are_sorted(values: list[int], bits: int) -> None:
    """In four bytes with the row above, or in eight where they do not fit."""
    counts_N = np.array([len(values) // 2, 0, len(values) - len(values) // 2])
    keys = np.array(values, np.uint32) & np.uint32((1 << bits) - 1)
    wanted = np.concatenate([np.sort(keys[: counts_N[0]]), np.sort(keys[counts_N[0] :])])
    Segments.of(counts_N).sort(keys, bits)
    np.testing.assert_array_equal(keys, wanted)
