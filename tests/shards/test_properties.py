"""Properties of every codec: what FORMAT.md promises of a row comes back, whatever the row.

Rows of no id, of one, of the whole vocabulary; certain ones, ones of equal probabilities, ones without a
tail; ragged and even; `sampled` rows of any grid, by threshold and by draws with replacement; V up to 2^20.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillcache_shards.cache import Cache
from distillcache_shards.codecs import Codec, codec_of
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.rows import SAMPLED, TOPK, Rows
from tests.shards.compact_cache import (
    RS_KD,
    THRESHOLD,
    compact_sampled_cache,
    compact_topk_cache,
    grid_rows,
    level_tables,
    order_tables,
)
from tests.shards.small_cache import SmallCache, assert_same_rows, half_a_step

VOCABULARIES = (1, 2, 3, 255, 256, 257, 300, 65_535, 65_536, 65_537, 100_000, 1 << 20)
GENERAL: dict[str, dict[str, Any]] = {
    "plain f16": {"id": "plain", "params": {"logprobs": "f16"}},
    "plain f32": {"id": "plain", "params": {"logprobs": "f32"}},
    "zstd f16": {"id": "zstd", "params": {"level": 3, "logprobs": "f16"}},
    "zstd f32": {"id": "zstd", "params": {"level": 3, "logprobs": "f32"}},
}
SHAPES = ("none", "one", "certain", "equal", "no tail", "steep", "whole")
GRIDS = (Grid(1, 1), Grid(50, 1), Grid(64, 4), Grid(100, 4), Grid(12_480, 192), Grid(1 << 20, 1 << 14))
QUICK = settings(deadline=None, max_examples=60)


def row(shape: str, vocab_size: int, random: np.random.Generator) -> Rows:
    """One `topk` row."""
    most = min(vocab_size, 300 if shape == "whole" else 70)
    count = {"none": 0, "one": 1, "certain": 1, "whole": most}.get(shape, int(random.integers(1, most + 1)))
    ids = random.permutation(vocab_size)[:count] if vocab_size < 1000 else _some(random, vocab_size, count)
    shares = {
        "certain": np.ones(count),
        "equal": np.full(count, 1 / (count + 1)),
        "no tail": random.dirichlet(np.ones(count)) if count else np.zeros(0),
        "steep": np.exp(-np.arange(1, count + 1) * 3.0),
    }.get(shape, random.dirichlet(np.ones(count + 1))[:count])
    tail = 0.0 if shape in ("certain", "no tail") else max(0.0, 1 - shares.sum())
    with np.errstate(divide="ignore"):
        logprobs = np.maximum(np.log(shares), -3e38).astype(np.float32)
    order = np.lexsort((ids, -logprobs))
    entropy = random.choice([0.0, math.log(vocab_size), random.random() * math.log(vocab_size)])
    one = Rows.top_k(ids[None, order], logprobs[None, order], np.array([tail]), np.array([entropy]))
    assert one.fault(vocab_size) is None
    return one


def _some(random: np.random.Generator, vocab_size: int, count: int) -> np.ndarray:
    """Other ids, from the whole vocabulary, the first and the last among them."""
    ids = np.unique(np.append(random.integers(vocab_size, size=count + 20), [0, vocab_size - 1]))
    return random.permutation(ids)[:count]


topk_rows = st.builds(
    lambda shapes, vocab_size, seed: (
        vocab_size,
        Rows.concatenate(
            [
                Rows.empty(TOPK),
                *(row(each, vocab_size, np.random.default_rng([seed, n])) for n, each in enumerate(shapes)),
            ]
        ),
    ),
    st.lists(st.sampled_from(SHAPES), max_size=12),
    st.sampled_from(VOCABULARIES),
    st.integers(0, 1 << 20),
)
sampled_rows = st.builds(
    lambda num_rows, vocab_size, grid, multinomial, seed: (
        vocab_size,
        grid,
        grid_rows(
            np.random.default_rng(seed), num_rows, vocab_size, grid, multinomial=multinomial and grid == RS_KD
        ),
    ),
    st.integers(0, 12),
    st.sampled_from([each for each in VOCABULARIES if each > 20]),
    st.sampled_from(GRIDS),
    st.booleans(),
    st.integers(0, 1 << 20),
)


@functools.cache
def codec(name: str, kind: str, vocab_size: int, grid: Grid = THRESHOLD) -> Codec:
    """A codec with tables of chance; those of 2^20 ids take a while to lay out."""
    if name in GENERAL:
        return codec_of(GENERAL[name], kind, vocab_size)
    if kind == TOPK:
        spec: dict[str, Any] = {"id": "compact-topk", "params": {"step": 0.01, "widest": 0.4}}
        return codec_of(spec, kind, vocab_size, level_tables(vocab_size))
    params = {"units": grid.units, "draw_units": grid.draw_units}
    return codec_of({"id": "compact-sampled", "params": params}, kind, vocab_size, _orders(vocab_size))


@functools.cache
def _orders(vocab_size: int) -> Any:
    return order_tables(vocab_size)


def there_and_back(its: Codec, rows: Rows) -> Rows:
    """What a reader finds; what was read loses nothing more when it is written again."""
    block = its.encode(rows)
    assert its.encode(rows) == block
    back = its.decode(np.frombuffer(block.data, np.uint8), len(rows), block.expanded_bytes)
    block = its.encode(back)
    assert_same_rows(its.decode(np.frombuffer(block.data, np.uint8), len(rows), block.expanded_bytes), back)
    return back


def assert_kept(back: Rows, rows: Rows, vocab_size: int) -> None:
    """Counts, the set of ids of every row, draws and no tail exactly; entropy within half a step."""
    assert back.fault(vocab_size) is None
    for name in ("head_offsets", "draw_offsets", "draw_ids"):
        np.testing.assert_array_equal(getattr(back, name), getattr(rows, name), err_msg=name)
    row_H = np.repeat(np.arange(len(rows)), np.diff(rows.head_offsets))
    ours, theirs = np.lexsort((rows.head_ids, row_H)), np.lexsort((back.head_ids, row_H))
    np.testing.assert_array_equal(back.head_ids[theirs], rows.head_ids[ours])
    falls = np.diff(back.head_logprobs) <= 0
    assert (falls | (np.diff(row_H) > 0)).all()
    np.testing.assert_array_equal(back.tail_mass == 0, rows.tail_mass == 0)
    np.testing.assert_allclose(back.entropy, rows.entropy, rtol=0, atol=half_a_step(vocab_size))


@QUICK
@given(st.sampled_from([*GENERAL, "compact"]), topk_rows)
def test_topk_rows_of_any_shape_come_back(name: str, made: tuple[int, Rows]) -> None:
    """Ids exactly, values as near as the codec says, no probability as none, certainty as certainty."""
    vocab_size, rows = made
    back = there_and_back(codec(name, TOPK, vocab_size), rows)
    assert_kept(back, rows, vocab_size)
    row_H = np.repeat(np.arange(len(rows)), np.diff(rows.head_offsets))
    ours, theirs = np.lexsort((rows.head_ids, row_H)), np.lexsort((back.head_ids, row_H))
    wanted, found = rows.head_logprobs[ours].astype(np.float64), back.head_logprobs[theirs]
    if name.endswith("f32"):
        np.testing.assert_array_equal(found, wanted)
    elif name.endswith("f16"):
        # Half a unit in the last of 11 bits, and near zero half of the smallest number there is, 2^-24.
        np.testing.assert_allclose(found, np.maximum(wanted, -65_504), rtol=2**-11, atol=2**-25)
    else:
        # Half of the widest step, and half of a cell in which levels are looked up; -128 nats is the least.
        np.testing.assert_allclose(found, np.maximum(wanted, -128.4), rtol=0, atol=0.4 / 2 + 1 / 1024)
        assert (found[wanted == 0] == 0).all()


@QUICK
@given(st.sampled_from([*GENERAL, "compact"]), sampled_rows)
def test_sampled_rows_of_any_grid_come_back(name: str, made: tuple[int, Grid, Rows]) -> None:
    """By threshold and by draws with replacement; the compact codec rounds nothing but entropy."""
    vocab_size, grid, rows = made
    back = there_and_back(codec(name, SAMPLED, vocab_size, grid), rows)
    assert_kept(back, rows, vocab_size)
    np.testing.assert_array_equal(back.tail_mass, rows.tail_mass)
    if not name.endswith("f16"):
        np.testing.assert_array_equal(back.head_ids, rows.head_ids)
        np.testing.assert_array_equal(back.head_logprobs, rows.head_logprobs)


@QUICK
@given(topk_rows, st.integers(0, 12), st.sampled_from([*GENERAL, "compact"]))
def test_a_block_does_not_feel_its_neighbours(made: tuple[int, Rows], cut: int, name: str) -> None:
    """Rows that are coded in two blocks are those that are coded in one."""
    vocab_size, rows = made
    its = codec(name, TOPK, vocab_size)
    parts = [there_and_back(its, part) for part in (rows[:cut], rows[cut:])]
    whole = there_and_back(its, rows)
    for each in dataclasses.fields(Rows)[1:]:
        np.testing.assert_array_equal(getattr(Rows.concatenate(parts), each.name), getattr(whole, each.name))


@pytest.mark.parametrize("multinomial", [False, True])
@pytest.mark.parametrize("block_rows", [1, 7, 512])
def test_a_cache_of_sampled_rows_is_read_as_it_was_written(
    multinomial: bool, block_rows: int, tmp_path: Path
) -> None:
    """Whatever the blocks: every sequence alone, and all in one batch."""
    grid = RS_KD if multinomial else THRESHOLD
    small = compact_sampled_cache(grid=grid, multinomial=multinomial, block_rows=block_rows)
    _assert_read(small, small.write(tmp_path / "cache"), exact=True)


@pytest.mark.parametrize("vocab_size", [300, 1 << 16, (1 << 16) + 1])
@pytest.mark.parametrize("block_rows", [1, 7, 512])
def test_a_cache_of_topk_rows_is_read_as_it_was_written(
    vocab_size: int, block_rows: int, tmp_path: Path
) -> None:
    """The same of the other compact codec, of either width of ids."""
    small = compact_topk_cache(vocab_size=vocab_size, block_rows=block_rows)
    _assert_read(small, small.write(tmp_path / "cache"), exact=False)


def _assert_read(small: SmallCache, folder: Path, *, exact: bool) -> None:
    cache = Cache.open(folder)
    for number, rows in enumerate(small.rows):
        found = cache[number]
        assert found.tokens.tolist() == small.tokens[number].tolist()
        assert_kept(found.rows, rows, small.vocab_size)
        if exact:
            np.testing.assert_array_equal(found.rows.head_logprobs, rows.head_logprobs)
            np.testing.assert_array_equal(found.rows.tail_mass, rows.tail_mass)
    batch = cache.read(range(len(cache)))
    assert_kept(batch.rows, Rows.concatenate(small.rows), small.vocab_size)
