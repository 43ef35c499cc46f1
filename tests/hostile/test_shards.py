"""Shards that are right in every checksum and wrong in what they say: refused when opened or when read."""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from distillcache_shards.codecs.plain import Plain
from distillcache_shards.errors import CacheError, CorruptError, MismatchError
from distillcache_shards.rows import Rows
from tests.hostile.forge import Forgery, forge
from tests.hostile.refusal import assert_found, assert_refused, read_all
from tests.shards.small_cache import small_cache

SHARD = "shard-00001.safetensors"
Change = Callable[[Forgery], object]


def with_value(name: str, place: int, value: int) -> Change:
    """One element of an array, changed."""
    return lambda it: it.arrays[name].__setitem__(place, value)


def without(name: str) -> Change:
    """No such array."""
    return lambda it: it.arrays.pop(name)


def cast(name: str, dtype: str) -> Change:
    """An array in another type."""
    return lambda it: it.arrays.update({name: it.arrays[name].astype(dtype)})


def shorter(name: str) -> Change:
    """An array without its last element."""
    return lambda it: it.arrays.update({name: it.arrays[name][:-1]})


def counting(**counts: object) -> Change:
    """Other counts in the description."""
    return lambda it: it.description["counts"].update(counts)


def endless(name: str) -> Change:
    """A count that JSON may spell and a float does not hold."""

    def change(it: Forgery) -> None:
        it.description["counts"][name] = "ENDLESS"
        it.spelled['"ENDLESS"'] = "1e999"

    return change


NAMES = (
    *("block_bytes", "block_crc32", "block_expanded_bytes", "block_rows", "block_start", "rows"),
    *("sequence_hash", "sequence_record", "sequence_rows", "sequence_tokens", "supervised", "tokens"),
)
WRONG = {
    **{f"no {name}": (without(name), f"no tensor `{name}`") for name in NAMES},
    **{f"{name} as floats": (cast(name, "<f4"), f"`{name}` must be") for name in NAMES},
    **{f"{name} too short": (shorter(name), f"`({name}|block_start)`") for name in NAMES},
    "blocks that overlap": (with_value("block_start", 1, 0), "lets blocks overlap"),
    "a block that reaches into the next": (with_value("block_bytes", 0, 1 << 20), "lets blocks overlap"),
    "blocks past the end": (with_value("block_start", -1, 1 << 63), "`block_start` does not count"),
    "blocks that begin late": (with_value("block_start", 0, 8), "`block_start` does not count"),
    "offsets of blocks that fall": (with_value("block_start", 1, (1 << 64) - 8), "`block_start`"),
    "rows of blocks that fall": (with_value("block_rows", 1, 1 << 40), "`block_rows` does not count"),
    "rows of blocks that begin late": (with_value("block_rows", 0, 1), "`block_rows` does not count"),
    "a block with a row too many": (lambda it: it.arrays["block_rows"].__setitem__(1, 9), "block 0"),
    "offsets of tokens that fall": (with_value("sequence_tokens", 1, 1 << 40), "`sequence_tokens`"),
    "offsets of tokens that begin late": (with_value("sequence_tokens", 0, 1), "`sequence_tokens`"),
    "offsets of rows that fall": (with_value("sequence_rows", 1, 1 << 40), "`sequence_rows`"),
    "another size when expanded": (with_value("block_expanded_bytes", 0, 1), "block 0"),
    "no counts": (lambda it: it.description.pop("counts"), "does not count"),
    "counts in a list": (lambda it: it.description.update(counts=[1]), "does not count"),
    "no count of rows": (lambda it: it.description["counts"].pop("rows"), "does not count"),
    "a count in words": (counting(rows="many"), "does not count"),
    "no number for a count": (counting(rows=None), "does not count"),
    "an endless count": (endless("tokens"), "does not count"),
    "fewer sequences": (counting(sequences=3), "`sequence_tokens`"),
    "fewer sequences than none": (counting(sequences=-1), "does not count what it holds"),
    "fewer blocks than none": (counting(blocks=-1), "does not count what it holds"),
    "more tokens than there are": (counting(tokens=1 << 60), "`tokens` must be"),
    "more rows than there are": (counting(rows=1 << 60), "`sequence_rows` does not count"),
    "more blocks than there are": (counting(blocks=1 << 60), "`block_rows` must be"),
}


@pytest.mark.parametrize(("change", "fault"), WRONG.values(), ids=WRONG)
def test_a_shard_that_lies_is_refused(folder: Path, change: Change, fault: str) -> None:
    """Missing arrays, types, offsets and counts."""
    forge(folder / SHARD, change)
    assert_refused(folder, SHARD, fault, CorruptError)


def test_rows_without_end_take_no_memory(folder: Path) -> None:
    """Counts that agree with each other, and with nothing that is there."""

    def change(it: Forgery) -> None:
        for name in ("sequence_rows", "block_rows"):
            it.arrays[name][-1] = 1 << 60
        it.description["counts"]["rows"] = 1 << 60

    forge(folder / SHARD, change)
    assert_refused(folder, SHARD, "shorter than its", CorruptError)


def test_a_shard_of_no_sequences_is_refused(folder: Path) -> None:
    """It is whole, and holds less than the index says."""

    def change(it: Forgery) -> None:
        offsets = ("block_rows", "block_start", "sequence_rows", "sequence_tokens")
        it.arrays = {name: array[: name in offsets] for name, array in it.arrays.items()}
        it.description["counts"] = dict.fromkeys(it.description["counts"], 0)

    forge(folder / SHARD, change)
    assert_refused(folder, SHARD, "holds 0 sequences, where 4 are planned", CorruptError)


def named(name: str) -> Change:
    """One more array, of this name and of no type."""

    def change(it: Forgery) -> None:
        it.arrays[name] = np.zeros(8, np.uint8)
        it.lies[name] = {"dtype": "BF16"}

    return change


LOUD = "x\n\x1b[2J"
SPOKEN = {
    "a loud name": (named(LOUD), "is not what its header says", CorruptError),
    "a long name": (named("x" * 10_000), "is not what its header says", CorruptError),
    "a loud plan": (lambda it: it.description.update(plan_sha256=LOUD), "another plan", MismatchError),
    "a loud number": (lambda it: it.description.update(shard=LOUD), "another's name", MismatchError),
    "a long number": (lambda it: it.description.update(shard="x" * 10_000), "another's name", MismatchError),
    "a long version": (lambda it: it.description.update(format="x" * 10_000), "version", CorruptError),
}


@pytest.mark.parametrize(("change", "fault", "kind"), SPOKEN.values(), ids=SPOKEN)
def test_what_a_shard_says_does_not_break_the_line(
    folder: Path, change: Change, fault: str, kind: type[CacheError]
) -> None:
    """Words of a file that are quoted in an error are short, and nothing that a terminal obeys."""
    forge(folder / SHARD, change)
    assert_refused(folder, SHARD, fault, kind)


def with_block(data: bytes, expanded_bytes: int) -> Change:
    """Another first block, under its own checksum."""

    def change(it: Forgery) -> None:
        blocks = it.arrays
        shift = -(-len(data) // 8) * 8 - int(blocks["block_start"][1])
        padded = np.frombuffer(data + bytes(-len(data) % 8), np.uint8)
        blocks["rows"] = np.concatenate([padded, blocks["rows"][int(blocks["block_start"][1]) :]])
        blocks["block_start"][1:] += np.uint64(shift % (1 << 64))
        blocks["block_bytes"][0], blocks["block_expanded_bytes"][0] = len(data), expanded_bytes
        blocks["block_crc32"][0] = zlib.crc32(data)

    return change


def top_2(num_rows: int) -> Rows:
    """Sound rows over any vocabulary."""
    ids_NK = np.tile(np.array([[0, 1]], np.int32), (num_rows, 1))
    logprobs_NK = np.log(np.full((num_rows, 2), 0.25, np.float32))
    return Rows.top_k(ids_NK, logprobs_NK, np.full(num_rows, 0.5), np.ones(num_rows))


FAULTY_ROWS = {
    "an id outside the vocabulary": ("head_ids", 300, "a kept id outside the vocabulary of 300"),
    "a probability over 1": ("head_logprobs", 0.1, "a log-probability that is none"),
    "a log-probability that is no number": ("head_logprobs", np.nan, "a log-probability that is none"),
    "a tail of more than everything": ("tail_mass", 1.5, "a tail mass outside 0 to 1"),
    "a negative tail": ("tail_mass", -0.5, "a tail mass outside 0 to 1"),
    "a tail that is no number": ("tail_mass", np.nan, "a tail mass outside 0 to 1"),
    "offsets that fall": ("head_offsets", 99, "offsets that fall"),
}


@pytest.mark.parametrize(("name", "value", "fault"), FAULTY_ROWS.values(), ids=FAULTY_ROWS)
def test_rows_that_are_none_are_refused(folder: Path, name: str, value: float, fault: str) -> None:
    """A checksum that is right says nothing of what a block holds."""
    rows = top_2(int(Forgery.of(folder / SHARD).arrays["block_rows"][1]))
    getattr(rows, name)[1] = value
    block = Plain("topk", 60_000, "f32").encode(rows)  # whose ids are as wide
    forge(folder / SHARD, with_block(block.data, block.expanded_bytes))
    assert_refused(folder, SHARD, f"block 0 .*{fault}", CorruptError)


def test_a_block_for_more_rows_is_refused(folder: Path) -> None:
    """Of sound rows, one too many."""
    block = Plain("topk", 300, "f32").encode(top_2(20))
    forge(folder / SHARD, with_block(block.data, block.expanded_bytes))
    assert_refused(folder, SHARD, "block 0 (holds|is (longer|shorter))", CorruptError)


MANY_BYTES = 64 << 20
BOMB = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(MANY_BYTES))
UNSIZED_BOMB = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(MANY_BYTES))
# The frame's size is in four bytes after magic, descriptor and window (RFC 8878, 3.1.1.1).
LYING_BOMB = BOMB[:6] + (1 << 10).to_bytes(4, "little") + BOMB[10:]
BOMBS = {
    "larger than declared": (BOMB, 1 << 10, f"would expand to {MANY_BYTES} bytes, where 1024"),
    "of no size": (UNSIZED_BOMB, 1 << 10, "would expand to"),
    "larger than its own size": (LYING_BOMB, 1 << 10, "is no zstandard frame"),
    "cut": (BOMB[:20], MANY_BYTES >> 8, "would expand|is no zstandard frame"),
    "no frame": (b"no frame", 1 << 10, "is no zstandard frame"),
    "nothing": (b"", 1 << 10, "is no zstandard frame"),
}


@pytest.mark.parametrize(("data", "expanded_bytes", "fault"), BOMBS.values(), ids=BOMBS)
def test_a_block_that_expands_past_its_size_is_refused(
    tmp_path: Path, data: bytes, expanded_bytes: int, fault: str
) -> None:
    """In the memory of what is declared, whatever the frame says and holds."""
    cache = small_cache(codec="zstd", params={"level": 9, "logprobs": "f16"})
    folder = cache.write(tmp_path / "cache")
    forge(folder / SHARD, with_block(data, expanded_bytes))
    assert_refused(folder, SHARD, f"block 0 {fault}", CorruptError)


PLANNED = {
    "another token": with_value("tokens", 0, 299),
    "another mask": lambda it: it.arrays["supervised"].__ixor__(2),
    "another record": with_value("sequence_record", 0, 77),
    "another hash": with_value("sequence_hash", 0, 7),
    "rows of another sequence": lambda it: it.arrays["sequence_rows"].__setitem__(1, 1),
}


@pytest.mark.parametrize("change", PLANNED.values(), ids=PLANNED)
def test_what_the_plan_did_not_say_is_found_by_verify(folder: Path, change: Change) -> None:
    """A reader opens it, since it would have to hash all tokens to know; `verify` does."""
    forge(folder / SHARD, change)
    read_all(folder)
    assert_found(folder, SHARD, "are not those of (the plan|its tokens|its masks)")
