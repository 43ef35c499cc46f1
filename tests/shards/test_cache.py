"""A cache, read: one sequence or many, in any order, by number or by tokens, here or in another process."""

import dataclasses
import multiprocessing
import operator
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillcache_shards.cache import Cache
from distillcache_shards.container import Container
from distillcache_shards.errors import CorruptError, MissingShardError
from distillcache_shards.index import INDEX_FILE, content_hash
from distillcache_shards.rows import SAMPLED, TOPK, Rows
from distillcache_shards.shard import shard_file
from tests.shards.small_cache import (
    ALL_MASKED,
    BIG_VOCABULARY,
    LENGTHS,
    SmallCache,
    assert_same_rows,
    half_a_step,
    small_cache,
)

ZSTD = {"codec": "zstd", "params": {"level": 3, "logprobs": "f32"}}
Written = tuple[SmallCache, Path]
SMALL: dict[str, dict[str, Any]] = {
    "plain topk": {"kind": TOPK},
    "plain sampled big": {"kind": SAMPLED, "vocab_size": BIG_VOCABULARY},
    "zstd sampled": {"kind": SAMPLED, **ZSTD},
    "zstd topk big": {"kind": TOPK, "vocab_size": BIG_VOCABULARY, **ZSTD},
    "plain topk of 65536": {"kind": TOPK, "vocab_size": 1 << 16},
    "plain topk of 65537": {"kind": TOPK, "vocab_size": (1 << 16) + 1},
}


@pytest.fixture(scope="module", params=SMALL)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A cache in memory, and its folder."""
    small = small_cache(**SMALL[request.param])
    return small, small.write(tmp_path_factory.mktemp("cache") / "cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder, not to be changed."""
    return small_cache().write(tmp_path_factory.mktemp("cache") / "cache")


def test_every_sequence_is_read_as_it_was_written(written: Written) -> None:
    """Tokens, mask, record, rows and hash, for rows in one block, in several, and for none."""
    small, folder = written
    cache = Cache.open(folder)
    assert len(cache) == len(LENGTHS)
    for number, found in enumerate(cache):
        assert (found.index, found.record) == (number, small.records[number])
        assert found.tokens.dtype == (np.uint16 if small.vocab_size <= 1 << 16 else np.uint32)
        np.testing.assert_array_equal(found.tokens, small.tokens[number])
        np.testing.assert_array_equal(found.supervised, small.supervised[number])
        assert_same_rows(found.rows, small.rows[number], entropy_atol=half_a_step(small.vocab_size))
        assert found.content_hash == content_hash(small.tokens[number])
    assert max(len(rows) for rows in small.rows) > 3 * small.block_rows
    assert len(cache[ALL_MASKED].rows) == 0


@pytest.mark.parametrize(
    "indices", [[], [2], [9, 0, 5], [3, 3, 3], [2, 8, 2, 1, 2], list(range(10)), np.array([7, 6])], ids=str
)
def test_a_batch_is_in_the_order_asked_for(written: Written, indices: list[int]) -> None:
    """Repeated numbers come repeatedly; offsets cut it into what single reads give."""
    small, folder = written
    cache = Cache.open(folder)
    batch = cache.read(indices)
    assert len(batch) == len(indices)
    assert batch.indices.tolist() == list(indices)
    assert batch.records.tolist() == [small.records[number] for number in indices]
    assert batch.token_offsets[-1] == len(batch.tokens) == len(batch.supervised)
    assert batch.row_offsets[-1] == len(batch.rows) == batch.supervised.sum()
    for place, number in enumerate(indices):
        tokens = slice(*batch.token_offsets[place : place + 2].tolist())
        np.testing.assert_array_equal(batch.tokens[tokens], small.tokens[number])
        np.testing.assert_array_equal(batch.supervised[tokens], small.supervised[number])
        rows = slice(*batch.row_offsets[place : place + 2].tolist())
        assert_same_rows(batch.rows[rows], cache[int(number)].rows)


def test_a_batch_without_rows_has_all_the_rest(folder: Path, tmp_path: Path) -> None:
    """And no row is decoded for it, so that damaged blocks do not matter."""
    damaged = shutil.copytree(folder, tmp_path / "cache")
    for number in range(3):
        container = Container(shard_file(damaged, number))
        with container.file.open("r+b") as stream:
            stream.seek(container.span("rows")[0])
            stream.write(bytes(range(256)))
    batch, bare = Cache.open(folder).read([4, 1, 2]), Cache.open(damaged).read([4, 1, 2], rows=False)
    for name in ("indices", "records", "tokens", "supervised", "token_offsets"):
        np.testing.assert_array_equal(getattr(bare, name), getattr(batch, name))
    assert len(bare.rows) == 0
    assert bare.row_offsets.tolist() == [0, 0, 0, 0]
    with pytest.raises(CorruptError, match=r"block \d+ fails its checksum"):
        Cache.open(damaged).read([4, 1, 2])


def test_what_the_plan_says_is_known_without_a_shard(tmp_path: Path) -> None:
    """Counts, lengths, records, bounds and what is told of it."""
    small = small_cache(kind=SAMPLED, about={"teacher": "somebody"})
    cache = Cache.open(small.write(tmp_path / "cache", shards=()))
    assert (len(cache), cache.num_shards, cache.vocab_size, cache.row_kind) == (10, 3, 300, SAMPLED)
    assert cache.num_tokens == sum(LENGTHS)
    assert cache.num_rows == sum(len(rows) for rows in small.rows)
    assert cache.sequence_lengths.tolist() == list(LENGTHS)
    assert cache.sequence_row_counts.tolist() == [len(rows) for rows in small.rows]
    assert cache.records().tolist() == small.records
    assert cache.shard_bounds().tolist() == [0, 4, 8, 10]
    assert cache.missing_shards() == [0, 1, 2]
    assert cache.about == {"teacher": "somebody"}
    assert cache.plan == small.plan().data
    assert cache.plan_sha256 == small.plan().sha256
    assert (cache.tokenizer_folder, cache.tokenizer_sha256) == (tmp_path / "cache" / "tokenizer", "a" * 64)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    """One that is not taught yet stops neither the others nor what the index knows."""
    cache = Cache.open(small_cache().write(tmp_path / "cache", shards=(0, 2)))
    assert cache.missing_shards() == [1]
    cache.read([0, 1, 2, 3, 8, 9])
    with pytest.raises(MissingShardError, match=r"shard-00001\.safetensors: is not taught yet; finish it by"):
        cache[4]
    with pytest.raises(MissingShardError, match="shard-00001"):
        cache.read([0, 7])


def test_a_shard_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    """A cache that is open while it is taught."""
    small = small_cache()
    cache = Cache.open(small.write(tmp_path / "cache", shards=()))
    with pytest.raises(MissingShardError):
        cache[0]
    small.write(tmp_path / "cache", shards=(0,))
    assert len(cache[0].tokens) == LENGTHS[0]


@pytest.mark.parametrize("index", [-1, -10, 10, 1 << 40])
def test_a_number_that_is_none_is_an_index_error(folder: Path, index: int) -> None:
    """From both sides; so that a loop over a cache ends."""
    with pytest.raises(IndexError, match=f"has 10 sequences, found no number {index}"):
        Cache.open(folder)[index]
    with pytest.raises(IndexError):
        Cache.open(folder).read([0, index])


def test_a_sequence_is_found_by_its_tokens(written: Written) -> None:
    """Of any type of number; what is not there, a part, and the same in another order, is not found."""
    small, folder = written
    cache = Cache.open(folder)
    for number, tokens in enumerate(small.tokens):
        assert cache.find(tokens) == number
        assert cache.find(tokens.tolist()) == number
        assert cache.find(cache[number].tokens) == number
    tokens = small.tokens[2]
    for absent in ([], [0], tokens[:-1], [*tokens, 1], tokens[::-1]):
        assert cache.find(absent) is None


def test_of_equal_sequences_the_first_is_found(tmp_path: Path) -> None:
    """A corpus keeps its duplicates."""
    small = small_cache()
    tokens = list(small.tokens)
    tokens[7] = tokens[9] = tokens[1] = np.array([5])
    masks = list(small.supervised)
    masks[7] = masks[9] = np.array([False])
    rows = [Rows.empty(TOPK) if number in (7, 9) else each for number, each in enumerate(small.rows)]
    twice = dataclasses.replace(small, tokens=tokens, supervised=masks, rows=rows)
    assert Cache.open(twice.write(tmp_path / "cache")).find([5]) == 1


def test_a_hash_that_begins_alike_is_not_taken_for_the_same(tmp_path: Path) -> None:
    """The index holds 8 bytes of 16: a sequence that comes first and agrees in them is passed over."""
    small = small_cache(lengths=(5, 6), names_header=False)
    folder = small.write(tmp_path / "cache")
    hashes = small.index().sequence_hash.copy()
    hashes[0, :8] = hashes[1, :8]  # as if sequence 0 had another text
    lookup = dataclasses.replace(small.index(), sequence_hash=hashes)
    (folder / INDEX_FILE).write_bytes(b"".join(lookup.parts()))
    assert Cache.open(folder).find(small.tokens[1]) == 1
    assert Cache.open(folder).find(small.tokens[0]) is None


def test_ids_that_no_cache_has_are_not_found(folder: Path) -> None:
    """Labels of -100, and numbers past four bytes, are no token ids of a sequence here."""
    for absent in ([-100], [1 << 32], np.array([-1], np.int64)):
        assert Cache.open(folder).find(absent) is None


def test_a_cache_travels_to_another_process(folder: Path) -> None:
    """One that was read from opens its own maps there, and reads the same."""
    cache = Cache.open(folder)
    here = cache[2]
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(operator.getitem, cache, 2).result()
        assert pool.submit(len, cache).result() == len(cache)
    np.testing.assert_array_equal(there.tokens, here.tokens)
    assert_same_rows(there.rows, here.rows)


def test_a_cache_of_no_sequences_is_one(tmp_path: Path) -> None:
    """An empty corpus, in no shard."""
    cache = Cache.open(small_cache(lengths=()).write(tmp_path / "cache"))
    assert (len(cache), cache.num_shards, cache.missing_shards(), list(cache)) == (0, 0, [], [])
    assert len(cache.read([])) == 0
    assert cache.find([1]) is None
