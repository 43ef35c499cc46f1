"""Shards: how rows are cut into blocks, what is found of them, and that the same shard is the same bytes."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillcache_shards.rows import KINDS, SAMPLED, Rows
from distillcache_shards.shard import Shard, block_bounds, decode_blocks, encode_blocks, token_dtype
from tests.shards.small_cache import SmallCache, assert_same_rows, small_cache


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 12))
def test_blocks_hold_whole_sequences_where_they_can(counts: list[int], block_rows: int) -> None:
    """None is empty or too large, and no sequence is cut that fits into a block."""
    row_offsets = np.cumsum([0, *counts]).astype(np.int64)
    bounds = block_bounds(row_offsets, block_rows).tolist()
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, sum(counts))
    assert bool(((sizes >= 1) & (sizes <= block_rows)).all())
    for start, end in pairwise(row_offsets.tolist()):
        pieces = np.diff([start, *(place for place in bounds if start < place < end), end])
        assert (len(pieces) > 1) == (end - start > block_rows)
        assert pieces.max() - pieces.min() <= 1  # a long one is cut evenly


@given(st.lists(st.integers(0, 12), max_size=20))
def test_blocks_take_sequences_until_they_are_half_full(counts: list[int]) -> None:
    """Of sequences that fit: none began when the block was, and a smaller block had no room for the next."""
    row_offsets = np.cumsum([0, *counts]).astype(np.int64)
    bounds = block_bounds(row_offsets, 12).tolist()
    ends = sorted(set(row_offsets.tolist()))
    for start, end in pairwise(bounds):
        last = max(each for each in ends if each < end)
        assert last - start < 6
        following = [each for each in ends if each > end]
        assert end - start >= 6 or not following or following[0] - start > 12


def opened(small: SmallCache, folder: Path, number: int) -> Shard:
    """A shard of a cache, written and opened."""
    return Shard(small.write(folder), number, small.plan(), small.codec_object())


def test_the_blocks_of_rows_are_those_that_hold_them(tmp_path: Path) -> None:
    """For every span of rows: all that meet it, no other."""
    shard = opened(small_cache(), tmp_path / "cache", 0)
    spans = [shard.block_span(block) for block in range(shard.num_blocks)]
    assert shard.num_blocks > 3
    for start in range(shard.num_rows + 1):
        for end in range(start, shard.num_rows + 1):
            wanted = [block for block, (a, b) in enumerate(spans) if max(a, start) < min(b, end)]
            assert list(shard.blocks_of(start, end)) == wanted


def test_a_mask_is_found_wherever_it_begins(tmp_path: Path) -> None:
    """Bits are packed, and sequences begin within bytes."""
    small = small_cache()
    shard = opened(small, tmp_path / "cache", 0)
    wanted = small.part(0, 4).supervised
    for start in range(len(wanted) + 1):
        for end in (start, start + 1, start + 9, len(wanted)):
            np.testing.assert_array_equal(shard.mask(start, min(end, len(wanted))), wanted[start:end])


def test_all_sequences_of_a_shard_are_found(tmp_path: Path) -> None:
    """Tokens, masks, offsets and records, and so their hash and what the plan knows them by."""
    small = small_cache(kind=SAMPLED)
    shard, wanted = opened(small, tmp_path / "cache", 1), small.part(4, 8)
    found = shard.sequences()
    for each in dataclasses.fields(wanted):
        np.testing.assert_array_equal(getattr(found, each.name), getattr(wanted, each.name))
    assert found.sha256() == wanted.sha256()
    assert (shard.num_sequences, shard.num_tokens) == (4, len(wanted.tokens))
    np.testing.assert_array_equal(shard.hashes, wanted.hashes())
    assert list(shard.faults(wanted.sha256())) == []
    assert list(shard.faults(small.part(0, 4).sha256())) == [
        "its tokens, masks or records are not those of the plan"
    ]


@pytest.mark.parametrize("name", ["tokens", "supervised", "records", "offsets"])
def test_sequences_are_known_by_all_that_they_are(name: str) -> None:
    """A change of any part is another hash; the width of tokens is none."""
    part = small_cache().part(0, 4)
    array = getattr(part, name).copy()
    array[1] ^= 1
    assert dataclasses.replace(part, **{name: array}).sha256() != part.sha256()
    assert dataclasses.replace(part, tokens=part.tokens.astype(np.uint32)).sha256() == part.sha256()


@pytest.mark.parametrize("codec", ["plain", "zstd"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_shard_is_the_same_bytes(codec: str, kind: str, tmp_path: Path) -> None:
    """Wherever and whenever it is made; of other rows it is not."""
    params = {"logprobs": "f16"} | ({"level": 9} if codec == "zstd" else {})
    one, two, other = (
        small_cache(seed, kind=kind, codec=codec, params=params).write(tmp_path / str(place))
        for place, seed in enumerate((0, 0, 1))
    )
    for file in one.iterdir():
        assert (two / file.name).read_bytes() == file.read_bytes()
        assert (other / file.name).read_bytes() != file.read_bytes()


def test_blocks_are_decoded_to_what_a_reader_will_find(tmp_path: Path) -> None:
    """Before they are written, for the report of what the codec lost."""
    small = small_cache(codec="zstd", params={"level": 9, "logprobs": "f16"}, kind=SAMPLED)
    part, rows, codec = small.part(0, 4), Rows.concatenate(small.rows[:4]), small.codec_object()
    blocks = encode_blocks(codec, part, rows, small.block_rows)
    shard = opened(small, tmp_path / "cache", 0)
    read = Rows.concatenate([shard.block(block) for block in range(shard.num_blocks)])
    assert_same_rows(decode_blocks(codec, part, blocks, small.block_rows), read)


def test_the_bytes_of_a_file_are_all_for_something(tmp_path: Path) -> None:
    """Parts add up to the file."""
    shard = opened(small_cache(), tmp_path / "cache", 0)
    parts = shard.part_bytes()
    assert sum(parts.values()) == shard.file.stat().st_size
    assert parts["tokens"] == 2 * shard.num_tokens
    assert parts["hashes"] == 16 * shard.num_sequences


@pytest.mark.parametrize(("vocab_size", "num_bytes"), [(1, 2), (65_536, 2), (65_537, 4), (1 << 20, 4)])
def test_a_token_takes_two_bytes_where_they_are_enough(vocab_size: int, num_bytes: int) -> None:
    """From both sides of 2^16."""
    assert token_dtype(vocab_size).itemsize == num_bytes
