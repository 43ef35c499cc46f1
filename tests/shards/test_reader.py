"""The reader: whatever is asked for in one batch comes as it was written, from blocks decoded together."""

import dataclasses
import shutil
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillcache_shards import wanted
from distillcache_shards.cache import Batch, Cache
from distillcache_shards.codecs import EncodedBlock, PackedBlock
from distillcache_shards.codecs.compact_topk import OpenTopk
from distillcache_shards.codecs.streams import expand, pack_streams
from distillcache_shards.errors import CacheError, CorruptError
from distillcache_shards.limits import MAX_BLOCK_BYTES
from distillcache_shards.rows import SAMPLED, TOPK, Rows
from distillcache_shards.shard import decode_blocks, encode_blocks, shard_file, write_shard
from distillcache_shards.workers import Workers, num_cores
from tests.shards.compact_cache import compact_sampled_cache, compact_tilted_cache, compact_topk_cache
from tests.shards.small_cache import SmallCache, assert_same_rows, half_a_step, small_cache

pytestmark = pytest.mark.usefixtures("no_thread_left")

K = 5
NAMES = (
    "compact topk",
    "compact topk of one k",
    "compact sampled",
    "compact tilted",
    "zstd sampled",
    "plain topk",
)


def of_one_k(small: SmallCache) -> SmallCache:
    """The same cache with rows that all keep K ids."""
    random = np.random.default_rng(0)

    def rows(count: int) -> Rows:
        ids_NK = random.permuted(np.tile(np.arange(small.vocab_size), (count, 1)), axis=1)[:, :K]
        shares_N = random.dirichlet(np.ones(K + 1), count)
        logprobs_NK = np.log(-np.sort(-shares_N[:, :K], axis=1))
        return Rows.top_k(ids_NK, logprobs_NK, shares_N[:, K], random.random(count))

    return dataclasses.replace(small, rows=[rows(len(each)) for each in small.rows])


def cache_in_memory(name: str, **how: object) -> SmallCache:
    """One of each way to decode rows."""
    if name.startswith("compact topk"):
        small = compact_topk_cache(**how)
        return of_one_k(small) if name.endswith("one k") else small
    if name == "compact sampled":
        return compact_sampled_cache(**how)
    if name == "compact tilted":
        return compact_tilted_cache(**how)
    zstd = {"codec": "zstd", "params": {"level": 3, "logprobs": "f16"}, "kind": SAMPLED}
    return small_cache(**(zstd if name == "zstd sampled" else {"kind": TOPK}), **how)


def rows_of_each(small: SmallCache) -> list[Rows]:
    """What a reader is to find of each sequence: its rows after the codec, a block at a time."""
    found = []
    for start, end in pairwise(small.bounds):
        part, rows = (
            small.part(start, end),
            Rows.concatenate([Rows.empty(small.kind), *small.rows[start:end]]),
        )
        codec = small.codec_object()
        back = decode_blocks(
            codec, part, encode_blocks(codec, part, rows, small.block_rows), small.block_rows
        )
        found += [back[part.row_offsets[n] : part.row_offsets[n + 1]] for n in range(len(part))]
    return found


Written = tuple[SmallCache, Path, list[Rows]]


@pytest.fixture(scope="module", params=NAMES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A cache in memory, its folder, and the rows that are to be found."""
    small = cache_in_memory(request.param)
    return small, small.write(tmp_path_factory.mktemp("cache") / "cache"), rows_of_each(small)


def assert_batch(batch: Batch, small: SmallCache, rows: list[Rows], indices: list[int]) -> None:
    """Every array is what it should be."""
    assert batch.indices.tolist() == indices
    assert batch.records.tolist() == [small.records[each] for each in indices]
    np.testing.assert_array_equal(
        batch.tokens, np.concatenate([np.zeros(0), *(small.tokens[each] for each in indices)])
    )
    masks = [small.supervised[each] for each in indices]
    np.testing.assert_array_equal(batch.supervised, np.concatenate([np.zeros(0, np.bool_), *masks]))
    assert_same_rows(batch.rows, Rows.concatenate([rows[0][:0], *(rows[each] for each in indices)]))
    assert batch.row_offsets.tolist() == [0, *np.cumsum([len(rows[each]) for each in indices])]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 9), max_size=14), st.integers(1, 3), st.sampled_from([1, 12, 4096]))
def test_any_batch_comes_as_it_was_written(
    written: Written, indices: list[int], threads: int, chunk_rows: int
) -> None:
    """In any order, repeated or not, by one thread or several, from chunks of one block or of all."""
    small, folder, rows = written
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wanted, "CHUNK_ROWS", chunk_rows)
        patch.setattr(wanted, "FEWEST_CHUNK_ROWS", 1)
        cache = Cache.open(folder, threads=threads)
        assert_batch(cache.read(indices), small, rows, indices)
        # Again, from blocks that were kept, and one at a time.
        assert_batch(cache.read(indices[::-1]), small, rows, indices[::-1])
        for index in indices:
            assert_same_rows(cache[index].rows, rows[index])


def test_rows_of_a_batch_are_its_own(written: Written) -> None:
    """A reader may change them: they are no part of what is kept for the next."""
    _, folder, rows = written
    cache = Cache.open(folder)
    for _ in range(2):
        found = cache.read([4]).rows
        assert_same_rows(found, rows[4])
        for name in ("head_ids", "head_logprobs", "tail_mass", "draw_ids", "entropy"):
            getattr(found, name)[:] = 0
        if found.draw_weights is not None:
            found.draw_weights[:] = 0


def rewrite(small: SmallCache, folder: Path, number: int, change: dict[int, EncodedBlock]) -> None:
    """A shard of the folder again, with other blocks in place of some, under checksums that are right."""
    start, end = small.bounds[number : number + 2]
    part, rows = small.part(start, end), Rows.concatenate(small.rows[start:end])
    blocks = encode_blocks(small.codec_object(), part, rows, small.block_rows)
    for block, other in change.items():
        blocks[block] = other
    counts = {"kept": rows.num_kept, "draws": rows.num_draws}
    write_shard(folder, number, small.plan(), part, blocks, counts, {})


@pytest.mark.parametrize("threads", [1, 2])
def test_a_damaged_block_among_many_is_named(tmp_path: Path, threads: int) -> None:
    """Blocks are decoded together; the error is of the one that is at fault, and the others can be read."""
    small = compact_topk_cache(lengths=[9] * 16, sequences_a_shard=8)
    folder = small.write(tmp_path / "cache")
    rewrite(small, folder, 1, {3: EncodedBlock(b"none", 4)})
    cache = Cache.open(folder, threads=threads)
    with pytest.raises(CorruptError, match=r"shard-00001\.safetensors: block 3 is no zstandard frame"):
        cache.read(range(16))
    first, end = (int(each) for each in cache.shard(1).block_rows[3:5])
    bad = {
        n
        for n in range(8)
        if cache.shard(1).row_offsets[n] < end and cache.shard(1).row_offsets[n + 1] > first
    }
    cache.read([n for n in range(16) if n - 8 not in bad])


def test_ids_that_are_none_are_named_with_their_block_too(tmp_path: Path) -> None:
    """They show when rows are decoded, after the block was expanded."""
    small = compact_topk_cache(lengths=[9] * 8, sequences_a_shard=8)
    folder = small.write(tmp_path / "cache")
    start, end = (int(each) for each in Cache.open(folder).shard(0).block_rows[2:4])
    rows = Rows.concatenate(small.rows)[start:end]
    larger = compact_topk_cache(vocab_size=5_000).codec_object()
    far = larger.encode(dataclasses.replace(rows, head_ids=rows.head_ids + np.int32(4_000)))
    rewrite(small, folder, 0, {2: far})
    with pytest.raises(CorruptError, match=r"block 2 holds an id outside the vocabulary of 300"):
        Cache.open(folder).read(range(8))


def test_units_that_are_none_are_named_with_their_block_too(tmp_path: Path) -> None:
    """What an id may have shows when it is known, in a batch and alone."""
    small = compact_tilted_cache(lengths=[9] * 8, sequences_a_shard=8)
    folder = small.write(tmp_path / "cache")
    start, end = (int(each) for each in Cache.open(folder).shard(0).block_rows[2:4])
    rows = Rows.concatenate(small.rows)[start:end]
    # Units of certainty at a factor of 6, which few ids of the cache have.
    tables = {**small.tables, "tilt": np.full(300, 170, np.uint8)}
    other = dataclasses.replace(small, tables=tables).codec_object()
    assert other.tilted is not None
    units_H = np.full(rows.num_kept, 600)
    certain = dataclasses.replace(
        rows,
        head_logprobs=other.tilted.logprobs(units_H, rows.head_ids),
        tail_mass=other.tilted.tail_mass(units_H, rows.head_ids, np.diff(rows.head_offsets)),
        draw_weights=other.tilted.weights_V[rows.draw_ids],
    )
    rewrite(small, folder, 0, {2: other.encode(certain)})
    cache = Cache.open(folder)
    with pytest.raises(CorruptError, match=r"block 2 holds a probability that is none"):
        cache.read(range(8))
    cache.read([0])


def test_a_shard_that_is_replaced_is_read_anew(tmp_path: Path) -> None:
    """Its file is another one; what is known of the old one, and its blocks, are forgotten."""
    small = small_cache(lengths=[9] * 4)
    folder = small.write(tmp_path / "cache")
    cache = Cache.open(folder)
    for number in range(4):
        assert_same_rows(cache[number].rows, small.rows[number], entropy_atol=half_a_step(300))
    changed = [dataclasses.replace(each, tail_mass=each.tail_mass / 2) for each in small.rows]
    dataclasses.replace(small, rows=changed).write(folder)
    for number in range(4):
        assert_same_rows(cache[number].rows, changed[number], entropy_atol=half_a_step(300))
    shard_file(folder, 0).unlink()
    with pytest.raises(CacheError, match="is not taught yet"):
        cache[1]


def test_a_file_that_is_cut_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    """And no signal that ends the process."""
    small = small_cache(lengths=[9] * 4)
    folder = small.write(tmp_path / "cache")
    cache = Cache.open(folder)
    cache[1]
    content = shard_file(folder, 0).read_bytes()
    shard_file(folder, 0).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptError, match="is cut"):
        cache[1]


class Interrupted(BaseException):
    """As Ctrl-C: no Exception."""


@pytest.mark.parametrize("threads", [1, 3])
def test_a_read_that_is_interrupted_leaves_nothing(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread, no open file, no file in the folder; and the same cache reads on."""
    small = compact_topk_cache(lengths=[9] * 12)
    folder = small.write(tmp_path / "cache")
    rows = rows_of_each(small)
    cache = Cache.open(folder, threads=threads)
    before = sorted(each.name for each in folder.iterdir())
    files = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(wanted, "FEWEST_CHUNK_ROWS", 1)
    read, calls = OpenTopk.read, []

    def fails(opened: OpenTopk, spans: list[tuple[int, int]], out: Rows) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted
        read(opened, spans, out)

    with monkeypatch.context() as patch:
        patch.setattr(OpenTopk, "read", fails)
        patch.setattr(wanted, "CHUNK_ROWS", 1)
        with pytest.raises(Interrupted):
            cache.read(range(12))
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert sorted(each.name for each in folder.iterdir()) == before
    assert_batch(cache.read(range(12)), small, rows, list(range(12)))


def test_a_cache_may_be_moved_after_it_was_read(tmp_path: Path) -> None:
    """Nothing of it is held, but the index: a copy under the same name is read."""
    small = small_cache()
    folder = small.write(tmp_path / "cache")
    cache = Cache.open(folder)
    cache.read(range(10))
    shutil.move(folder, tmp_path / "other")
    with pytest.raises(CacheError, match="is not taught yet"):
        cache[0]
    shutil.copytree(tmp_path / "other", folder)
    assert_same_rows(cache[2].rows, small.rows[2], entropy_atol=half_a_step(300))


def test_work_is_shared_and_each_item_done_once() -> None:
    """By as many threads as there are, the calling one among them, and none is left."""
    done: list[int] = []
    seen: set[int] = set()
    met = threading.Barrier(3, timeout=60)

    def work(item: int) -> None:
        if item < 3:
            met.wait()  # three are at work at once
        seen.add(threading.get_ident())
        done.append(item)

    with Workers(3) as workers:
        workers.each(work, range(20))
        assert sorted(done) == list(range(20))
        workers.each(done.append, [20])
    assert len(seen) == 3 and threading.get_ident() in seen


@pytest.mark.parametrize("threads", [1, 4])
def test_the_first_fault_ends_the_work(threads: int) -> None:
    """It is raised to the caller, and what was not begun is left undone."""
    done: list[int] = []

    def work(item: int) -> None:
        if item == 2:
            raise ValueError("here")
        done.append(item)

    with Workers(threads) as workers, pytest.raises(ValueError, match="here"):
        workers.each(work, range(10_000))
    assert len(done) < 9_999
    assert num_cores() >= 1


def test_a_block_may_expand_to_so_much_and_no_more() -> None:
    """From both sides: a frame of the most bytes is read, one of a byte more is refused before it expands."""
    most = pack_streams([np.zeros(MAX_BLOCK_BYTES, np.uint8)])
    assert len(expand(np.frombuffer(most.data, np.uint8), MAX_BLOCK_BYTES)) == MAX_BLOCK_BYTES
    more = pack_streams([np.zeros(MAX_BLOCK_BYTES + 1, np.uint8)])
    with pytest.raises(CorruptError, match="would expand to 16777217 bytes, where 16777216 are the most"):
        expand(np.frombuffer(more.data, np.uint8), MAX_BLOCK_BYTES + 1)


def test_a_block_that_no_reader_would_take_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of too many ids are an error when they are written, not when they are read."""
    small = small_cache(codec="zstd", params={"level": 3, "logprobs": "f16"})
    part, rows = small.part(0, 4), Rows.concatenate(small.rows[:4])
    blocks = encode_blocks(small.codec_object(), part, rows, small.block_rows)
    largest = max(each.expanded_bytes for each in blocks)
    monkeypatch.setattr("distillcache_shards.shard.MAX_BLOCK_BYTES", largest)
    encode_blocks(small.codec_object(), part, rows, small.block_rows)
    monkeypatch.setattr("distillcache_shards.shard.MAX_BLOCK_BYTES", largest - 1)
    with pytest.raises(CacheError, match="ask for fewer rows a block"):
        encode_blocks(small.codec_object(), part, rows, small.block_rows)


def test_blocks_are_opened_together_or_alone_to_the_same_rows(written: Written) -> None:
    """Several in one, in any order, and any spans of them."""
    small, _, _ = written
    codec, rows = small.codec_object(), Rows.concatenate(small.rows[:4])
    bounds = [0, 7, 7, 30, len(rows)]
    parts = [rows[a:b] for a, b in pairwise(bounds)]
    encoded = [codec.encode(each) for each in parts]
    packed = [
        PackedBlock(np.frombuffer(each.data, np.uint8), len(part), each.expanded_bytes)
        for each, part in zip(encoded, parts, strict=True)
    ]
    for order in ([0, 1, 2, 3], [3, 1, 2, 0], [2]):
        alone = [codec.decode(packed[n].data, packed[n].num_rows, packed[n].expanded_bytes) for n in order]
        whole, opened = Rows.concatenate(alone), codec.open([packed[n] for n in order])
        for spans in ([(0, len(whole))], [(3, 9)], [(5, 7), (0, 2), (6, 6), (1, 7)], []):
            out = Rows.concatenate([whole[:0], *(whole[a:b] for a, b in spans)])
            tilted = codec.tilted is not None
            room = Rows.room(small.kind, out.head_offsets, out.draw_offsets, tilted=tilted)
            if spans:
                opened.read(spans, room)
            assert_same_rows(room, out)
