"""Claims about the compact codecs: ids come back exactly, values as near as asked, in any shape of row."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillcache_shards.codecs import Codec, PackedBlock, codec_of
from distillcache_shards.codecs.compact_sampled import CompactSampled
from distillcache_shards.codecs.compact_topk import CompactTopk
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.levels import LOWEST, levels_kl, make_levels
from distillcache_shards.codecs.numbers import pack_numbers
from distillcache_shards.codecs.orders import Orders, train_orders
from distillcache_shards.codecs.streams import pack_streams
from distillcache_shards.errors import CorruptError, UnsupportedError
from distillcache_shards.rows import SAMPLED, TOPK, Rows

KINDS = pytest.mark.parametrize("kind", [TOPK, SAMPLED])
GRID = Grid.of(1 / 25)


def _counts(num_rows: int, at_most: int, ragged: bool, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, at_most + 1, num_rows) if ragged else np.full(num_rows, at_most)


def _offsets(counts_N: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts_N)]).astype(np.int64)


def _ids(counts_N: np.ndarray, vocab_size: int, rng: np.random.Generator) -> np.ndarray:
    """Other ids in each row, small ones more often."""
    found = [np.zeros(0, np.int32)]
    for count in counts_N:
        ids = np.unique((vocab_size * rng.random(4 * count + 8) ** 6).astype(np.int32))
        missing = np.setdiff1d(np.arange(min(vocab_size, 4 * count + 64), dtype=np.int32), ids)
        found.append(rng.permutation(np.concatenate([rng.permutation(ids), missing])[:count]))
    return np.concatenate(found).astype(np.int32)


def topk_rows(
    num_rows: int, k: int, vocab_size: int, seed: int = 0, *, ragged: bool = False, spread: float = 3.0
) -> Rows:
    """`topk` rows in the order that `Rows` asks for, with log-probabilities `spread` nats apart, about."""
    rng = np.random.default_rng(seed)
    counts_N = _counts(num_rows, min(k, vocab_size), ragged, rng)
    row_H = np.repeat(np.arange(num_rows), counts_N)
    ids_H = _ids(counts_N, vocab_size, rng)
    weight_H = np.exp(-spread * rng.exponential(size=len(row_H))) + 1e-300
    tail_N = np.where(counts_N == 0, 1.0, rng.random(num_rows) ** 3 * rng.integers(0, 2, num_rows))
    total_N = np.bincount(row_H, weight_H, num_rows)
    logprobs_H = np.log(weight_H * (1 - tail_N)[row_H] / total_N[row_H]).astype(np.float32)
    order = np.lexsort((ids_H, -logprobs_H, row_H))
    return dataclasses.replace(
        Rows.empty(TOPK),
        head_offsets=_offsets(counts_N),
        head_ids=ids_H[order],
        head_logprobs=np.minimum(logprobs_H[order], 0),
        tail_mass=tail_N.astype(np.float32),
        draw_offsets=np.zeros(num_rows + 1, np.int64),
        entropy=(rng.random(num_rows) * math.log(vocab_size)).astype(np.float32),
    )


def sampled_rows(num_rows: int, vocab_size: int, seed: int = 0, grid: Grid = GRID) -> Rows:
    """`sampled` rows of a grid, also of one id alone, of draws alone, and with an id drawn twice."""
    rng = np.random.default_rng(seed)
    kept_N = rng.integers(0, min(6, vocab_size, grid.units) + 1, num_rows)
    units, tail_N = [np.zeros(0, np.int64)], np.zeros(num_rows, np.int64)
    for n, kept in enumerate(kept_N):
        cuts = np.sort(rng.permutation(grid.units - 1)[: max(kept, 1) - rng.integers(0, 2)]) + 1
        parts = np.diff(np.concatenate([[0], cuts, [grid.units]]))
        kept_N[n] = min(kept, len(parts))
        units.append(-np.sort(-parts[: kept_N[n]]))
        tail_N[n] = grid.units - units[-1].sum()
    units_H, draws_N = np.concatenate(units), grid.num_draws(tail_N)
    row_H, ids_H = np.repeat(np.arange(num_rows), kept_N), _ids(kept_N, vocab_size, rng)
    order = np.lexsort((ids_H, -units_H, row_H))
    draw_ids = (vocab_size * rng.random(draws_N.sum()) ** 3).astype(np.int64)
    draw_row = np.repeat(np.arange(num_rows), draws_N)
    return Rows(
        SAMPLED,
        _offsets(kept_N),
        ids_H[order],
        grid.logprobs()[units_H],
        (tail_N / grid.units).astype(np.float32),
        _offsets(draws_N),
        draw_ids[np.lexsort((draw_ids, draw_row))].astype(np.int32),
        (rng.random(num_rows) * math.log(vocab_size)).astype(np.float32),
    )


def codec_for(rows: Rows, vocab_size: int, grid: Grid = GRID) -> Codec:
    """The codec trained on these rows, as a reader of a cache meets it: through its tables and parameters."""
    made: Codec
    if rows.kind == TOPK:
        made = CompactTopk.trained(rows, vocab_size, planned_rows=20_000, max_kl_nats=1e-4)
    else:
        training = topk_rows(300, 12, vocab_size)
        made = CompactSampled.trained(training, vocab_size, grid, planned_rows=20_000)
    return codec_of({"id": made.id, "params": made.params}, rows.kind, vocab_size, made.tables)


def _there_and_back(codec: Codec, rows: Rows) -> Rows:
    block = codec.encode(rows)
    assert codec.encode(rows).data == block.data
    back = codec.decode(np.frombuffer(block.data, np.uint8), len(rows), block.expanded_bytes)
    assert back.fault(codec.vocab_size) is None  # type: ignore[attr-defined]
    return back


def _assert_same_topk(rows: Rows, back: Rows, levels: np.ndarray) -> None:
    """Ids of each row are the same set in falling order, values the nearest level but for a cell."""
    np.testing.assert_array_equal(back.head_offsets, rows.head_offsets)
    row_H = np.repeat(np.arange(len(rows)), np.diff(rows.head_offsets))
    ours, theirs = np.lexsort((rows.head_ids, row_H)), np.lexsort((back.head_ids, row_H))
    np.testing.assert_array_equal(rows.head_ids[ours], back.head_ids[theirs])
    in_order = np.lexsort((back.head_ids, -back.head_logprobs, row_H))
    np.testing.assert_array_equal(in_order, np.arange(len(row_H)))
    wanted = np.maximum(rows.head_logprobs[ours], levels[-1])
    nearest = np.abs(levels[None] - wanted[:, None]).min(1) if len(wanted) else 0
    assert (np.abs(back.head_logprobs[theirs] - wanted) <= nearest + 1.1 / 1024).all()
    assert ((back.tail_mass == 0) == (rows.tail_mass == 0)).all()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 40),
    st.integers(0, 90),
    st.sampled_from([1, 2, 3, 100, 300, 5_000, 65_536, 65_537, 2**20]),
    st.integers(0, 2**20),
    st.booleans(),
    st.sampled_from([0.0, 1.0, 5.0, 40.0, 400.0]),
)
def test_topk_rows_come_back(n: int, k: int, vocab_size: int, seed: int, ragged: bool, spread: float) -> None:
    """Any K and vocabulary, unequal rows, empty ones, equal probabilities, and none that are nearly 0."""
    rows = topk_rows(n, k, vocab_size, seed, ragged=ragged, spread=spread)
    assert rows.fault(vocab_size) is None
    levels = make_levels(0.01, 0.4)
    tables = {**_orders(vocab_size).tables, "levels": levels}
    spec = {"id": "compact-topk", "params": {"step": 0.01, "widest": 0.4}}
    codec = codec_of(spec, TOPK, vocab_size, tables)
    assert isinstance(codec, CompactTopk)
    codec = dataclasses.replace(codec, orders=_orders(vocab_size))
    _assert_same_topk(rows, _there_and_back(codec, rows), levels)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 40),
    st.sampled_from([1, 2, 3, 100, 5_000, 65_537, 2**20]),
    st.integers(0, 2**20),
    st.integers(1, 900),
    st.integers(1, 9),
)
def test_sampled_rows_come_back_exactly(
    n: int, vocab_size: int, seed: int, units: int, draw_units: int
) -> None:
    """Any grid and vocabulary, rows of one id or of draws alone; only entropy is rounded."""
    grid = Grid(max(units, draw_units), draw_units)
    rows = sampled_rows(n, vocab_size, seed, grid)
    assert rows.fault(vocab_size) is None
    params = {"units": grid.units, "draw_units": draw_units}
    codec = codec_of(
        {"id": "compact-sampled", "params": params}, SAMPLED, vocab_size, _orders(vocab_size).tables
    )
    assert isinstance(codec, CompactSampled)
    codec = dataclasses.replace(codec, orders=_orders(vocab_size))
    back = _there_and_back(codec, rows)
    for name, array in vars(rows).items():
        if name != "entropy":
            np.testing.assert_array_equal(getattr(back, name), array, err_msg=name)
    np.testing.assert_allclose(back.entropy, rows.entropy, atol=0.51 * math.log(max(vocab_size, 2)) / 255)


@functools.cache
def _orders(vocab_size: int) -> Orders:
    """Three orders without training; those of 2^20 ids take a while to lay out."""
    rng = np.random.default_rng(vocab_size)
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    fronts = [rng.permutation(vocab_size)[: min(vocab_size, 50)].astype(dtype) for _ in range(3)]
    common = rng.permutation(vocab_size)[: min(vocab_size // 2 + 1, 900)].astype(dtype)
    return Orders(vocab_size, common, np.array(fronts))


@pytest.mark.parametrize("max_kl_nats", [1e-5, 1.2e-4, 3e-3])
def test_fidelity_is_what_was_asked(max_kl_nats: float) -> None:
    """On other rows of the same kind the loss stays below the bound, and not far below it."""
    rows = topk_rows(3_000, 64, 5_000, 1)
    codec = CompactTopk.trained(rows, 5_000, planned_rows=20_000, max_kl_nats=max_kl_nats)
    reached = levels_kl(codec.levels, topk_rows(3_000, 64, 5_000, 2))
    assert 0.5 * max_kl_nats < reached <= max_kl_nats


def test_bytes_are_what_was_asked() -> None:
    """The finest levels within the bytes of a row; rows that cannot be so small are refused."""
    rows = topk_rows(3_000, 64, 5_000, 1)
    codec = CompactTopk.trained(rows, 5_000, planned_rows=20_000, row_bytes=110)
    assert 106 < len(codec.encode(topk_rows(512, 64, 5_000, 2)).data) / 512 < 112
    with pytest.raises(ValueError, match=r"rows like these take at least \d+\.\d bytes"):
        CompactTopk.trained(rows, 5_000, planned_rows=20_000, row_bytes=20)


def test_levels_are_finer_where_probability_is_larger() -> None:
    """Steps grow as p^(-1/2) up to the widest, from a probability of 1 down to the lowest."""
    levels = make_levels(0.01, 0.4).astype(np.float64)
    steps = -np.diff(levels)
    np.testing.assert_allclose(steps, np.minimum(0.4, 0.01 * np.exp(-levels[:-1] / 2)), rtol=1e-3)
    assert levels[0] == 0 and levels[-1] <= LOWEST


@KINDS
def test_two_kinds_of_text_are_told_apart(kind: str) -> None:
    """Rows of two vocabularies that hardly meet cost less where several orders are worth their bytes."""
    parts = []
    for n in range(40):
        some = topk_rows(50, 20, 4_000, n) if kind == TOPK else sampled_rows(50, 4_000, n)
        shift = 0 if n % 2 else 7_000
        ids, draws = some.head_ids + np.int32(shift), some.draw_ids + np.int32(shift)
        parts.append(dataclasses.replace(some, head_ids=ids, draw_ids=draws))
    rows, vocab_size = Rows.concatenate(parts), 12_000
    sizes = []
    for planned_ids in (1, 10**7):
        tables = train_orders(rows, vocab_size, planned_ids=planned_ids)
        if kind == TOPK:
            tables = {**tables, "levels": make_levels(0.01, 0.4)}
            params: dict[str, object] = {"step": 0.01, "widest": 0.4}
        else:
            params = {"units": GRID.units, "draw_units": GRID.draw_units}
        codec = codec_of({"id": f"compact-{kind}", "params": params}, kind, vocab_size, tables)
        sizes.append(len(codec.encode(rows).data))
    assert sizes[1] < 0.97 * sizes[0]


def test_equal_rows_train_equal_tables() -> None:
    """Whoever calibrates on the same rows makes the same cache."""
    one, two = (train_orders(sampled_rows(400, 3_000, 5), 3_000, planned_ids=500_000) for _ in range(2))
    for name, table in one.items():
        np.testing.assert_array_equal(table, two[name])


@KINDS
def test_bytes_that_are_no_rows_are_refused(kind: str) -> None:
    """Every byte of a block set to others, cut, or read as other rows: an error of ours or sound rows."""
    rows = topk_rows(9, 12, 800, 3) if kind == TOPK else sampled_rows(9, 800, 3)
    codec = codec_for(rows, 800)
    block = codec.encode(rows)
    data = np.frombuffer(block.data, np.uint8)
    rng = np.random.default_rng(0)
    refused = 0
    for place in range(len(data)):
        for value in (0, 255, int(data[place]) ^ 1, int(rng.integers(256))):
            mutated = data.copy()
            mutated[place] = value
            try:
                back = codec.decode(mutated, 9, block.expanded_bytes)
            except CorruptError:
                refused += 1
            else:
                assert back.fault(800) is None and len(back) == 9
    assert refused > len(data)
    for part in (data[:-1], data[:20], data[:0], np.append(data, np.uint8(7))):
        with pytest.raises(CorruptError):
            codec.decode(part, 9, block.expanded_bytes)
    for num_rows, expanded in ((8, 0), (10, 0), (9, -1), (9, 1)):
        with pytest.raises(CorruptError):
            codec.decode(data, num_rows, block.expanded_bytes + expanded)


def test_steps_that_go_round_are_refused() -> None:
    """Past 2^32 and back to a place that there is: sums are of 32 bits, and rows may have many ids."""
    vocab_size, num_steps = 1 << 20, 1 << 12
    orders = Orders(vocab_size, np.zeros(0, np.uint32), np.zeros((1, 0), np.uint32))
    codec = CompactTopk(vocab_size, orders, make_levels(0.01, 0.4), 0.01, 0.4)

    def block(steps: list[int]) -> PackedBlock:
        zero = np.zeros(1, np.uint8)
        packed = pack_streams(
            [
                *pack_numbers(np.array([len(steps)], np.uint32)),
                *(zero, np.zeros(2, np.uint8), np.zeros(2, np.uint8)),
                *pack_numbers(np.array(steps, np.uint32)),
                *pack_numbers(np.zeros(len(steps), np.uint32)),
                zero,
            ]
        )
        return PackedBlock(np.frombuffer(packed.data, np.uint8), 1, packed.expanded_bytes)

    def decoded(packed: PackedBlock) -> Rows:
        return codec.decode(packed.data, packed.num_rows, packed.expanded_bytes)

    assert decoded(block([3, *[1] * num_steps])).head_ids.tolist() == list(range(3, 4 + num_steps))
    with pytest.raises(CorruptError, match="holds an id outside the vocabulary of 1048576"):
        decoded(block([3, *[vocab_size] * num_steps]))


@KINDS
def test_tables_that_are_none_are_refused(kind: str) -> None:
    """Missing, of another vocabulary, with an id twice, out of range or of another type."""
    rows = topk_rows(50, 12, 800) if kind == TOPK else sampled_rows(50, 800)
    made = codec_for(rows, 800)
    spec = {"id": made.id, "params": made.params}
    twice = np.array(made.tables["common"])
    twice[0] = twice[1]
    front = np.array(made.tables["fronts"])
    front[0, 0] = front[0, 1]
    faults = [
        {},
        {**made.tables, "common": twice},
        {**made.tables, "fronts": front},
        {**made.tables, "fronts": front[:0]},
        {**made.tables, "fronts": front.astype(np.float32)},
        {**made.tables, "fronts": np.full_like(front, 800)},
    ]
    if kind == TOPK:
        levels = np.array(made.tables["levels"])
        endless = np.append(levels, np.float32(-np.inf))
        for wrong in (levels[::-1], levels[:1], levels[1:], endless, levels.astype(np.float64)):
            faults.append({**made.tables, "levels": wrong})
    for tables in faults:
        with pytest.raises(CorruptError, match=r"has no .* among its tables"):
            codec_of(spec, kind, 800, tables)
    with pytest.raises(CorruptError):
        codec_of(spec, kind, 400, made.tables)


@KINDS
def test_parameters_and_kinds_that_are_none_are_refused(kind: str) -> None:
    """A compact codec holds one kind of row, and knows its parameters."""
    rows = topk_rows(50, 12, 800) if kind == TOPK else sampled_rows(50, 800)
    made = codec_for(rows, 800)
    other = SAMPLED if kind == TOPK else TOPK
    with pytest.raises(UnsupportedError, match=f"for {other} rows"):
        codec_of({"id": made.id, "params": made.params}, other, 800, made.tables)
    nothing, words = dict.fromkeys(made.params), dict.fromkeys(made.params, "x")
    for params in ({}, {**made.params, "more": 1}, nothing, words):
        with pytest.raises(UnsupportedError):
            codec_of({"id": made.id, "params": params}, kind, 800, made.tables)
