"""Claims about tilted sampling: the mean is the distribution, though some ids are drawn more often."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillcache.teach import sample as sampling
from distillcache.teach.sample import Sampler, in_order, sample
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.tilt import Tilt, TiltedGrid
from distillcache_shards.rows import Rows
from tests.distillcache.sampling import (
    estimate,
    everything,
    logits_of,
    sampled_at,
    softmax,
    standard_errors,
    worst_error,
)

GRID = Grid.of(1 / 20)
PLACES = 1024


def tilted_grid(vocab_size: int, *, grid: Grid = GRID, power: float = 0.25, seed: int = 0) -> TiltedGrid:
    """By counts of a made-up corpus: few ids are half of it, many hardly in it."""
    random = np.random.default_rng(seed)
    counts_V = random.permutation((1e6 / np.arange(1, vocab_size + 1) ** 1.3).astype(np.int64))
    return TiltedGrid.of_counts(grid, counts_V, power)


def tilted_at(
    logits_NV: torch.Tensor,
    tilted: TiltedGrid,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    valid_V: torch.Tensor | None = None,
) -> Rows:
    """Rows of logits that stand at positions 0, 1, ... of one sequence."""
    return sampled_at(logits_NV, Sampler(tilted.grid, seed, temperature, tilted=tilted), valid_V)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_mean_of_tilted_rows_is_the_distribution(seed: int, temperature: float) -> None:
    """Over 1,024 places, within 4 standard errors: every bin of probability, heads alone, and the mass."""
    vocab_size, tilted = 1_500, tilted_grid(1_500, seed=seed)
    factors_V = tilted.tilt.factors_V
    assert factors_V.max() > 8 * factors_V.min()
    logits_NV = logits_of(1, vocab_size, seed).expand(PLACES, -1)
    rows = tilted_at(logits_NV, tilted, seed=seed, temperature=temperature)
    p_V = softmax(logits_NV[:1], temperature)[0]
    found_NV = estimate(rows, vocab_size)
    assert worst_error(found_NV, p_V) < 4
    assert worst_error(estimate(rows, vocab_size, head_only=True), p_V, p_V >= tilted.weights_V) < 4
    assert standard_errors(found_NV.sum(1), 1.0) < 4
    # By frequency in the corpus too: neither frequent nor rare ids get more than theirs.
    third, two_thirds = np.quantile(factors_V, [1 / 3, 2 / 3])
    for ids_V in (factors_V < third, factors_V > two_thirds):
        assert standard_errors(found_NV[:, ids_V].sum(1), float(p_V[ids_V].sum())) < 4


def test_that_mean_tells_draws_that_were_not_divided_by_their_factor() -> None:
    """The claim above does not hold for them, nor for the tail mass shared out among all draws."""
    vocab_size, tilted = 1_500, tilted_grid(1_500)
    logits_NV = logits_of(1, vocab_size).expand(PLACES, -1)
    rows, p_V = tilted_at(logits_NV, tilted), softmax(logits_NV[:1])[0]
    assert worst_error(estimate(rows, vocab_size), p_V) < 4
    undivided = dataclasses.replace(rows, draw_weights=np.full(rows.num_draws, GRID.tau, np.float32))
    shared = dataclasses.replace(rows, draw_weights=None)
    for wrong in (undivided, shared):
        assert worst_error(estimate(wrong, vocab_size), p_V) > 4


@given(
    st.integers(1, 700),
    st.floats(0.0, 12.0),
    st.integers(2, 60),
    st.integers(1, 9),
    st.floats(0.05, 1.0),
    st.integers(0, 2**40),
)
def test_head_is_every_id_of_its_threshold_and_draws_are_of_the_rest(
    vocab_size: int, scale: float, parts: int, draw_units: int, power: float, seed: int
) -> None:
    """Each value is within one unit; draws are as many as the tilted tail has taus, up to rounding."""
    grid = Grid.of(1 / parts, draw_units)
    tilted = tilted_grid(vocab_size, grid=grid, power=power, seed=seed % 1000)
    logits_NV = logits_of(5, vocab_size, seed % 1000, scale)
    rows, p_NV = tilted_at(logits_NV, tilted, seed=seed), softmax(logits_NV)
    units_H = tilted.units(rows.head_logprobs, rows.head_ids)
    assert rows.draw_weights is not None
    np.testing.assert_array_equal(rows.draw_weights, tilted.weights_V[rows.draw_ids])
    for n in range(5):
        head = slice(*rows.head_offsets[n : n + 2].tolist())
        ids, units = rows.head_ids[head], units_H[head]
        drawn = rows.draw_ids[slice(*rows.draw_offsets[n : n + 2].tolist())]
        taus_V = p_NV[n] * tilted.tilt.factors_V / grid.tau
        clear_V = np.abs(taus_V - 1) > 1e-5
        assert len(set(ids.tolist())) == len(ids)
        assert set(np.flatnonzero((taus_V >= 1) & clear_V)) == set(ids) & set(np.flatnonzero(clear_V))
        # Probabilities are sums in fp32.
        assert (np.abs(units - taus_V[ids] * draw_units) < 1 + 1e-5 * taus_V[ids] * draw_units).all()
        assert (units >= 1).all()
        np.testing.assert_array_equal(np.lexsort((ids, -units)), np.arange(len(ids)))
        tail_taus = taus_V.sum() - taus_V[ids].sum()
        assert abs(len(drawn) - tail_taus) < 1 + 1e-5 * taus_V.sum()
        assert (np.diff(drawn) >= 0).all() and len(set(drawn[clear_V[drawn]])) == clear_V[drawn].sum()
        assert not set(drawn) & set(ids)
        assert (p_NV[n, drawn] > 0).all()
        kept = np.exp(rows.head_logprobs[head].astype(np.float64)).sum()
        assert rows.tail_mass[n] == pytest.approx(max(0.0, 1 - kept), abs=1e-6)


@pytest.mark.parametrize("parts", [4, 11, 16, 32, 50, 256])
def test_an_id_of_a_quarter_is_in_the_head_whichever_it_is(parts: int) -> None:
    """Also the one that is half of the corpus, under the steepest tilt."""
    grid, vocab_size = Grid.of(1 / parts), 400
    counts_V = np.arange(vocab_size)
    counts_V[7] = counts_V.sum()
    tilted = TiltedGrid.of_counts(grid, counts_V, 1.0)
    p_V = torch.full((vocab_size,), 0.5 / (vocab_size - 3))
    p_V[[7, vocab_size - 1, 0]] = torch.tensor([0.2501, 0.1249, 0.125])
    rows = tilted_at(p_V.log().expand(20, -1), tilted)
    for n in range(20):
        assert 7 in rows.head_ids[rows.head_offsets[n] : rows.head_offsets[n + 1]]


def test_tilted_rows_are_the_same_in_any_batch_and_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row depends on its logits and its place, not on its neighbours nor on how many are done at once."""
    logits_NV, places_N, tilted = logits_of(40, 3_000), np.arange(40) * 7, tilted_grid(3_000)
    sampler, valid_V = Sampler(GRID, 5, tilted=tilted), everything(3_000)
    whole = sample(logits_NV, valid_V, sampler, places_N + 1, places_N)
    monkeypatch.setattr(sampling, "BLOCK_BYTES", 3 * 4 * 3_000)
    order_N = np.random.default_rng(0).permutation(40)
    shuffled = sample(
        logits_NV[torch.from_numpy(order_N)], valid_V, sampler, (places_N + 1)[order_N], places_N[order_N]
    )
    back = in_order(shuffled, np.argsort(order_N))
    for name, array in vars(whole).items():
        np.testing.assert_array_equal(array, getattr(back, name), err_msg=name)


@pytest.mark.parametrize("holes", [False, True])
def test_ids_the_tokenizer_lacks_never_enter_a_tilted_row(holes: bool) -> None:
    """Padding with the largest logits of all; the tilt is of the tokenizer's ids alone."""
    valid_V = everything(1_000)
    valid_V[900:] = False
    if holes:
        valid_V[[0, 17, 500]] = False
    logits_NV = logits_of(20, 1_000)
    logits_NV[:, ~valid_V] = 50.0
    rows, tilted = tilted_at(logits_NV, tilted_grid(900), valid_V=valid_V), tilted_grid(900)
    ids = torch.from_numpy(np.concatenate([rows.head_ids, rows.draw_ids])).long()
    assert valid_V[ids].all()
    alone = tilted_at(logits_NV[:, :900].masked_fill(~valid_V[:900], -1e30), tilted)
    for name, array in vars(alone).items():
        np.testing.assert_array_equal(array, getattr(rows, name), err_msg=name)


def test_a_factor_of_1_everywhere_is_plain_threshold_sampling() -> None:
    """The same thresholds and heads; draws weigh tau each, for their number is not made to fit the tail."""
    logits_NV = logits_of(50, 2_000)
    tilted = TiltedGrid(GRID, Tilt(np.full(2_000, 128, np.uint8)))
    np.testing.assert_array_equal(tilted.weights_V, np.float32(GRID.tau))
    rows, plain = tilted_at(logits_NV, tilted), sampled_at(logits_NV, Sampler(GRID))
    for name in ("head_offsets", "head_ids", "entropy"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(plain, name), err_msg=name)
    np.testing.assert_allclose(rows.head_logprobs, plain.head_logprobs, rtol=1e-6)
    np.testing.assert_allclose(rows.tail_mass, plain.tail_mass, atol=1e-6)
    np.testing.assert_array_equal(rows.draw_weights, np.full(rows.num_draws, GRID.tau, np.float32))
    assert np.abs(np.diff(rows.draw_offsets) - np.diff(plain.draw_offsets)).max() <= 1


def test_rare_ids_are_drawn_more_often_than_without_a_tilt() -> None:
    """Which is what a tilt is for: of equally likely ids those of a factor of 4 are drawn 16 times as often
    as those of a quarter."""
    codes_V = np.repeat(np.array([96, 160], np.uint8), 500)  # of 2^-2 and 2^2
    rows = tilted_at(torch.zeros(200, 1_000), TiltedGrid(GRID, Tilt(codes_V)))
    rare = int((rows.draw_ids >= 500).sum())
    assert rare / (rows.num_draws - rare) == pytest.approx(16, rel=0.2)


def test_tilted_rows_at_a_temperature_are_those_of_cooler_logits() -> None:
    """Sampling at T is sampling from softmax(z / T), and then by the same tilt."""
    logits_NV, tilted = logits_of(30, 2_000), tilted_grid(2_000)
    hot, cooled = tilted_at(logits_NV, tilted, temperature=2.0), tilted_at(logits_NV / 2, tilted)
    for name, array in vars(hot).items():
        if isinstance(array, np.ndarray):
            np.testing.assert_allclose(array, getattr(cooled, name), atol=1e-5, err_msg=name)
