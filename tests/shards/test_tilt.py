"""Claims about tilted rows: factors, the units that they allow, and the codec that holds them, to the bit."""

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
from distillcache_shards.codecs.compact_tilted import CompactTilted
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.tilt import MAX_TILTED_UNITS, Tilt, TiltedGrid
from distillcache_shards.errors import CorruptError, UnsupportedError
from distillcache_shards.rows import SAMPLED, TOPK, Rows
from tests.shards.compact_cache import (
    THRESHOLD,
    compact_sampled_cache,
    compact_tilted_cache,
    order_tables,
    tilt_table,
    tilted_grid,
    tilted_rows,
)
from tests.shards.small_cache import assert_same_rows, half_a_step, random_rows, small_cache

VOCABULARIES = (1, 2, 3, 255, 256, 257, 300, 65_535, 65_536, 65_537, 100_000, 1 << 20)
FINEST = Grid(MAX_TILTED_UNITS, 4)  # at 1/256 every factor is allowed
# Grids, with the least and the largest code of a tilt.
GRIDS = (
    (FINEST, 0, 255),
    (FINEST, 128, 128),
    (THRESHOLD, 96, 170),
    (Grid(128, 4), 64, 255),
    (Grid(50, 1), 100, 140),
    (Grid(8, 8), 128, 160),
    (Grid(1, 1), 128, 255),
)
STEP = 2 ** (1 / 16)


@functools.cache
def tables_of(vocab_size: int, least: int, most: int) -> Any:
    """Tables of chance."""
    return {**order_tables(vocab_size), **tilt_table(vocab_size, least=least, most=most)}


@functools.cache
def codec(vocab_size: int, grid: Grid, least: int, most: int) -> Codec:
    """A codec as a reader of a cache meets it; the tables of 2^20 ids take a while to lay out."""
    params = {"units": grid.units, "draw_units": grid.draw_units}
    return codec_of(
        {"id": "compact-tilted", "params": params}, SAMPLED, vocab_size, tables_of(vocab_size, least, most)
    )


def there_and_back(its: Codec, rows: Rows) -> Rows:
    """What a reader finds; encoding is the same every time, and of what was read too."""
    block = its.encode(rows)
    assert its.encode(rows) == block
    back = its.decode(np.frombuffer(block.data, np.uint8), len(rows), block.expanded_bytes)
    assert its.encode(back) == block
    return back


def rows_with(seed: int, num_rows: int, its: Codec) -> Rows:
    """Rows of chance for a codec."""
    assert its.tilted is not None
    return tilted_rows(np.random.default_rng(seed), num_rows, its.tilted)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 40), st.sampled_from(VOCABULARIES), st.sampled_from(GRIDS), st.integers(0, 1 << 20))
def test_tilted_rows_of_any_grid_come_back(
    num_rows: int, vocab_size: int, how: tuple[Grid, int, int], seed: int
) -> None:
    """Exactly, but for entropy: no rows, and rows without head or draws, certain, with an id drawn twice."""
    its = codec(vocab_size, *how)
    rows = rows_with(seed, num_rows, its)
    assert rows.fault(vocab_size) is None and rows.disorder() is None
    back = there_and_back(its, rows)
    assert back.fault(vocab_size) is None and back.disorder() is None
    assert_same_rows(back, rows, entropy_atol=half_a_step(vocab_size))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 1 << 20))
def test_a_block_does_not_feel_its_neighbours(num_rows: int, cut: int, seed: int) -> None:
    """Rows that are coded in two blocks are those that are coded in one, tail masses to the bit."""
    its = codec(300, THRESHOLD, 96, 170)
    rows = rows_with(seed, num_rows, its)
    parts = [there_and_back(its, part) for part in (rows[:cut], rows[cut:])]
    assert_same_rows(Rows.concatenate(parts), there_and_back(its, rows))


def test_rows_of_chance_hold_what_is_hard() -> None:
    """What the tests here are made with: each shape that they speak of is there."""
    its = codec(300, THRESHOLD, 96, 170)
    rows = rows_with(0, 300, its)
    heads, draws = np.diff(rows.head_offsets), np.diff(rows.draw_offsets)
    row_H, row_D = np.repeat(np.arange(300), heads), np.repeat(np.arange(300), draws)
    assert ((heads == 0) & (draws == 0)).any() and heads.max() > 3 and draws.max() > 7
    assert (rows.tail_mass == 0).any() and (rows.tail_mass == 1).any()
    assert (rows.head_logprobs > 0).any()
    assert ((np.diff(rows.head_logprobs) > 0) & (np.diff(row_H) == 0)).any()
    assert ((np.diff(rows.draw_ids) == 0) & (np.diff(row_D) == 0)).any()


@pytest.mark.parametrize("vocab_size", [300, 1 << 16, (1 << 16) + 1])
@pytest.mark.parametrize("block_rows", [1, 7, 512])
def test_a_cache_of_tilted_rows_is_read_as_it_was_written(
    vocab_size: int, block_rows: int, tmp_path: Path
) -> None:
    """Whatever the blocks: every sequence alone, and all in one batch; and each id has its threshold."""
    small = compact_tilted_cache(vocab_size=vocab_size, block_rows=block_rows)
    cache = Cache.open(small.write(tmp_path / "cache"))
    for number, rows in enumerate(small.rows):
        found = cache[number]
        assert found.tokens.tolist() == small.tokens[number].tolist()
        assert_same_rows(found.rows, rows, entropy_atol=half_a_step(vocab_size))
    batch = cache.read(range(len(cache)))
    assert_same_rows(batch.rows, Rows.concatenate(small.rows), entropy_atol=half_a_step(vocab_size))
    np.testing.assert_array_equal(
        cache.thresholds, [np.float32(0.04 / 2 ** ((c - 128) / 16)) for c in small.tables["tilt"].tolist()]
    )


def test_rows_that_are_not_tilted_have_no_thresholds(tmp_path: Path) -> None:
    """One for all of them is in the plan, or there is none."""
    for number, make in enumerate((compact_sampled_cache, small_cache)):
        cache = Cache.open(make().write(tmp_path / str(number)))
        assert cache.thresholds is None
        assert cache.read([0]).rows.draw_weights is None


def test_units_of_every_factor_are_told_from_their_values() -> None:
    """From 1 to those of certainty and one more, on the finest grid: the value is a float32, and enough."""
    tilted = TiltedGrid(FINEST, Tilt(np.arange(256, dtype=np.uint8)))
    for code, most in enumerate(tilted.most_units_V.tolist()):
        factor = 2 ** ((code - 128) / 16)
        assert most == math.ceil(1024 * factor) + 1
        units_H, ids_H = np.arange(1, most + 1), np.full(most, code)
        logprobs_H = tilted.logprobs(units_H, ids_H)
        np.testing.assert_array_equal(tilted.units(logprobs_H, ids_H), units_H)
        np.testing.assert_allclose(np.exp(logprobs_H), units_H / (1024 * factor), rtol=1e-5)
        assert (np.diff(logprobs_H) > 0).all()
        assert logprobs_H[-2] > -1e-9  # certainty is among them


def test_factors_are_powers_of_two() -> None:
    """Of whole doublings to the bit, on any machine, and with them what a draw weighs."""
    tilt = Tilt(np.arange(256, dtype=np.uint8))
    assert tilt.factors_V[::16].tolist() == [2.0**n for n in range(-8, 8)]
    np.testing.assert_allclose(tilt.factors_V[1:] / tilt.factors_V[:-1], STEP, rtol=1e-15)
    np.testing.assert_allclose(np.exp(tilt.logs_V), tilt.factors_V, rtol=1e-14)
    weights_V = TiltedGrid(FINEST, tilt).weights_V
    assert weights_V[::16].tolist() == [2.0**-n for n in range(16)]


def test_a_draw_weighs_at_most_1() -> None:
    """A factor of the threshold is the least that a grid takes; a reader says so of a table, in words."""
    least = Tilt(np.array([128 - 32, 128], np.uint8))
    assert TiltedGrid(Grid(16, 4), least).weights_V.tolist() == [1.0, 0.25]
    with pytest.raises(AssertionError):
        TiltedGrid(Grid(15, 4), least)
    assert Tilt.of(least.codes_V, 2, least=0.25).codes_V is least.codes_V
    with pytest.raises(CorruptError, match="has a tilt by which a draw would weigh more than 1"):
        Tilt.of(least.codes_V, 2, least=4 / 15)


def test_tail_mass_is_what_the_head_leaves() -> None:
    """In units of each id's own; nothing where the head was rounded up to more than 1."""
    tilted = TiltedGrid(Grid(16, 4), Tilt(np.array([128, 144, 112], np.uint8)))  # 1, 2 and 1/2
    ids_H, units_H = np.array([0, 1, 2, 1, 0]), np.array([4, 8, 2, 32, 1])
    tail_N = tilted.tail_mass(units_H, ids_H, np.array([3, 0, 2]))
    assert tail_N.dtype == np.float32
    assert tail_N.tolist() == [1 - 4 / 16 - 8 / 32 - 2 / 8, 1, 0]


counts_of_text = st.builds(
    lambda seed, vocab_size, unseen: np.where(
        np.random.default_rng(seed).random(vocab_size) < unseen,
        0,
        np.random.default_rng(seed).zipf(1.6, vocab_size).clip(max=1 << 30),
    ),
    st.integers(0, 1000),
    st.sampled_from([1, 2, 300, 5_000]),
    st.sampled_from([0.0, 0.5, 1.0]),
)


@given(counts_of_text, st.floats(0, 1))
def test_a_tilt_of_counts_is_1_on_average_over_the_text(counts_V: np.ndarray, power: float) -> None:
    """To half a step, where no factor is past the largest; rarer ids have no smaller one, unseen ones one."""
    tilt = Tilt.of_counts(counts_V, power, 2.0**-8)
    assert tilt.codes_V.dtype == np.uint8 and tilt.codes_V.shape == counts_V.shape
    by_count = tilt.codes_V[np.argsort(counts_V, kind="stable")].astype(int)
    assert (np.diff(by_count) <= 0).all()
    if 0 < int(tilt.codes_V.min()) <= int(tilt.codes_V.max()) < 255:
        shares_V = (counts_V + 0.5) / (counts_V + 0.5).sum()
        assert STEP**-0.5 <= (shares_V * tilt.factors_V).sum() * (1 + 1e-9) <= STEP**0.5 * (1 + 2e-9)


@given(counts_of_text, st.floats(0, 1), st.floats(2.0**-7, 2))
def test_no_factor_of_counts_is_below_the_least(counts_V: np.ndarray, power: float, least: float) -> None:
    """Not by a rounding either."""
    assert (Tilt.of_counts(counts_V, power, least).factors_V >= least).all()


@given(counts_of_text)
def test_no_power_is_no_tilt(counts_V: np.ndarray) -> None:
    """Every id is drawn as often as its probability says."""
    assert (Tilt.of_counts(counts_V, 0.0, 2.0**-8).codes_V == 128).all()


def test_a_tilt_goes_by_the_power_of_the_frequency() -> None:
    """Of 16 times the frequency, at a power of 1/4, half the factor."""
    codes_V = Tilt.of_counts(np.array([16_000, 1_000, 16_000, 0]), 0.25, 2.0**-8).codes_V.astype(int)
    assert codes_V[1] - codes_V[0] == 16 and codes_V[0] == codes_V[2]
    # Unseen ids count as half of an occurrence.
    assert codes_V[3] - codes_V[1] == round(16 * math.log2(1000.5 / 0.5) / 4)


def test_a_codec_is_trained_and_read_from_its_tables() -> None:
    """From `topk` rows of the same teacher, for any planned size; its orders make rows smaller."""
    random = np.random.default_rng(0)
    vocab_size = 3_000
    tilted = tilted_grid(THRESHOLD, tilt_table(vocab_size))

    def first(rows: Rows) -> Rows:
        """The same rows with ids that are mostly small."""
        ids, drawn = (np.minimum(each, each % 97 + 600) for each in (rows.head_ids, rows.draw_ids))
        return dataclasses.replace(rows, head_ids=ids, draw_ids=drawn)

    training = first(random_rows(random, TOPK, 400, vocab_size))
    made = CompactTilted.trained(training, vocab_size, tilted, planned_rows=100_000)
    read = codec_of({"id": made.id, "params": made.params}, SAMPLED, vocab_size, made.tables)
    rows = tilted_rows(random, 200, tilted)
    assert_same_rows(there_and_back(read, rows), rows, entropy_atol=half_a_step(vocab_size))
    assert read.encode(rows) == made.encode(rows)
    assert CompactTilted.trained(Rows.empty(TOPK), vocab_size, tilted, planned_rows=0).encode(rows).data


def test_grids_and_parameters_that_are_none_are_refused() -> None:
    """The finest grid and one that is finer, both bounds of a draw, other kinds, other names."""
    tables = tables_of(300, 128, 170)

    def opened(kind: str = SAMPLED, **params: Any) -> Codec:
        return codec_of({"id": "compact-tilted", "params": params}, kind, 300, tables)

    for units, draw_units in ((1024, 4), (1024, 1024), (1, 1)):
        assert opened(units=units, draw_units=draw_units).params == {"units": units, "draw_units": draw_units}
    faults: list[dict[str, Any]] = [
        {"units": 1025, "draw_units": 4},
        {"units": 100, "draw_units": 0},
        {"units": 100, "draw_units": 101},
        {"units": 0, "draw_units": 0},
        {"units": 100.0, "draw_units": 4},
        {"units": True, "draw_units": True},
        {"units": None, "draw_units": None},
        {"units": 100},
        {"units": 100, "draw_units": 4, "tilt": 0.25},
        {},
    ]
    for params in faults:
        with pytest.raises(UnsupportedError):
            opened(**params)
    with pytest.raises(UnsupportedError, match="for topk rows"):
        opened(TOPK, units=100, draw_units=4)


def test_no_codec_writes_rows_that_it_would_not_read() -> None:
    """Tilted rows by another codec, others by this one, of another tilt, and more units than there may be."""
    its = codec(300, THRESHOLD, 96, 170)
    assert its.tilted is not None
    rows = rows_with(0, 20, its)
    others = compact_sampled_cache()
    plain = small_cache(kind=SAMPLED)
    for refusing, wrong in (
        (others.codec_object(), rows),
        (plain.codec_object(), rows),
        (its, others.rows[2]),
        (codec(300, THRESHOLD, 128, 128), rows),
        (its, dataclasses.replace(rows, tail_mass=rows.tail_mass / 2)),
        (its, dataclasses.replace(rows, draw_weights=np.full(rows.num_draws, 0.04, np.float32))),
    ):
        with pytest.raises(AssertionError):
            refusing.encode(wrong)
    ids, units = np.zeros(1, np.int32), its.tilted.most_units_V[:1]
    for more in (0, 1):
        one = dataclasses.replace(
            Rows.room(SAMPLED, np.array([0, 1]), np.array([0, 0]), tilted=True),
            head_ids=ids,
            head_logprobs=its.tilted.logprobs(units + more, ids),
            tail_mass=its.tilted.tail_mass(units + more, ids, np.ones(1, np.int64)),
            entropy=np.zeros(1, np.float32),
        )
        if more:
            with pytest.raises(AssertionError):
                its.encode(one)
        else:
            assert_same_rows(there_and_back(its, one), one)


def test_bytes_that_are_no_tilted_rows_are_refused() -> None:
    """Every byte of a block set to others, cut, or read as other rows: an error of ours or sound rows."""
    its = codec(300, THRESHOLD, 96, 170)
    rows = rows_with(3, 9, its)
    block = its.encode(rows)
    data = np.frombuffer(block.data, np.uint8)
    random = np.random.default_rng(0)
    refused = 0
    for place in range(len(data)):
        for value in (0, 255, int(data[place]) ^ 1, int(random.integers(256))):
            mutated = data.copy()
            mutated[place] = value
            try:
                back = its.decode(mutated, 9, block.expanded_bytes)
            except CorruptError:
                refused += 1
            else:
                assert back.fault(300) is None and len(back) == 9
    assert refused > len(data) // 2
    for part in (data[:-1], data[:20], data[:0], np.append(data, np.uint8(7))):
        with pytest.raises(CorruptError):
            its.decode(part, 9, block.expanded_bytes)
    for num_rows, expanded in ((8, 0), (10, 0), (9, -1), (9, 1)):
        with pytest.raises(CorruptError):
            its.decode(data, num_rows, block.expanded_bytes + expanded)
