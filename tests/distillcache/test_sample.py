"""Claims about sampling: the mean of what is kept is the teacher's distribution, whatever the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillcache.errors import TeacherError
from distillcache.head import OutputHead
from distillcache.teach import sample as sampling
from distillcache.teach.sample import Sampler, in_order, sample, sample_batch, uniforms
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.rows import SAMPLED, Rows
from tests.distillcache.sampling import estimate, everything, logits_of, sampled_at, softmax, worst_error
from tests.distillcache.tiny_models import TINY, VOCAB_SIZE

GRID = Grid.of(1 / 25)
ROWS = 1024


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("multinomial", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_mean_of_rows_is_the_distribution(seed: int, multinomial: bool, temperature: float) -> None:
    """Over 1,024 places the mean is right within 4 standard errors, in every bin of probability."""
    logits_NV = logits_of(1, 1_500, seed).expand(ROWS, -1)
    grid = Grid(50, 1) if multinomial else GRID
    rows = sampled_at(logits_NV, Sampler(grid, seed, temperature, multinomial))
    p_V = softmax(logits_NV[:1], temperature)[0]
    assert worst_error(estimate(rows, 1_500), p_V) < 4
    if not multinomial:
        assert worst_error(estimate(rows, 1_500, head_only=True), p_V, p_V >= grid.tau) < 4


def test_that_mean_tells_rounding_to_the_nearest_and_the_next_likeliest_from_chance() -> None:
    """The claim above does not hold for what it is to rule out: both are biased, and it shows."""
    logits_NV = logits_of(1, 1_500, 2).expand(ROWS, -1)
    rows, p_V = sampled_at(logits_NV, Sampler(GRID)), softmax(logits_NV[:1])[0]
    rounded_NV = estimate(rows, 1_500)
    head_V = p_V >= GRID.tau
    rounded_NV[:, head_V] = np.rint(p_V[head_V] * GRID.units) / GRID.units
    assert worst_error(rounded_NV, p_V, head_V) > 4
    draws = np.diff(rows.draw_offsets)
    likeliest = np.argsort(np.where(head_V, 0, -p_V), kind="stable")
    next_ids = np.concatenate([np.sort(likeliest[:count]) for count in draws]).astype(np.int32)
    chosen = Rows(**{**vars(rows), "draw_ids": next_ids})
    assert worst_error(estimate(chosen, 1_500), p_V) > 4


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 700), st.floats(0.0, 12.0), st.integers(2, 60), st.integers(1, 9), st.integers(0, 2**40)
)
def test_head_is_every_id_of_tau_and_mass_is_exactly_one(
    vocab_size: int, scale: float, parts: int, draw_units: int, seed: int
) -> None:
    """Each value is within one unit of the teacher's; draws come from the rest, as many as R / tau needs."""
    grid = Grid.of(1 / parts, draw_units)
    logits_NV = logits_of(5, vocab_size, seed % 1000, scale)
    rows, p_NV = sampled_at(logits_NV, Sampler(grid, seed)), softmax(logits_NV)
    units_H = grid.of_logprobs(rows.head_logprobs)
    tail_N = grid.of_mass(rows.tail_mass)
    for n in range(5):
        head, draws = (
            slice(*rows.head_offsets[n : n + 2].tolist()),
            slice(*rows.draw_offsets[n : n + 2].tolist()),
        )
        ids, units = rows.head_ids[head], units_H[head]
        clear = np.abs(p_NV[n] / grid.tau - 1) > 1e-5
        assert set(np.flatnonzero((p_NV[n] >= grid.tau) & clear)) == set(ids) & set(np.flatnonzero(clear))
        assert (np.abs(units - p_NV[n, ids] * grid.units) < 1 + 1e-3).all()
        assert (units >= 1).all() and units.sum() + tail_N[n] == grid.units
        np.testing.assert_array_equal(np.lexsort((ids, -units)), np.arange(len(ids)))
        drawn = rows.draw_ids[draws]
        assert len(drawn) == -(-tail_N[n] // draw_units)
        assert (np.diff(drawn) >= 0).all()
        assert not set(drawn) & set(ids)
        assert (p_NV[n, drawn] > 0).all()


def test_rows_are_the_same_in_any_batch_and_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row depends on its logits and its place, not on its neighbours nor on how many are done at once."""
    logits_NV = logits_of(40, 3_000)
    places_N = np.arange(40) * 7
    sampler, valid_V = Sampler(GRID, seed=5), everything(3_000)
    whole = sample(logits_NV, valid_V, sampler, places_N + 1, places_N)
    monkeypatch.setattr(sampling, "BLOCK_BYTES", 3 * 4 * 3_000)
    order_N = np.random.default_rng(0).permutation(40)
    shuffled = sample(
        logits_NV[torch.from_numpy(order_N)], valid_V, sampler, (places_N + 1)[order_N], places_N[order_N]
    )
    back = in_order(shuffled, np.argsort(order_N))
    for name, array in vars(whole).items():
        np.testing.assert_array_equal(array, getattr(back, name), err_msg=name)


def test_another_seed_sequence_or_position_draws_anew() -> None:
    """Equal logits at other places give other draws, and each of the three makes a difference."""
    here, there = np.array([5, 5, 6]), np.array([9, 10, 9])
    found = uniforms(1, here, there, 4)
    assert len(np.unique(np.concatenate([found, uniforms(2, here, there, 4)]))) == 24
    many = uniforms(0, np.repeat(np.arange(100), 100), np.tile(np.arange(100), 100), 2)
    assert many.min() >= 0 and many.max() < 1
    assert np.abs(many.mean(0) - 0.5).max() < 4 / np.sqrt(12 * 10_000)
    assert abs(np.corrcoef(many.T)[0, 1]) < 4 / np.sqrt(10_000)
    assert abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 4 / np.sqrt(10_000)


def test_chance_of_a_place_never_changes() -> None:
    """These numbers are part of every cache that was ever begun: a change of them is a new kind of plan."""
    np.testing.assert_array_equal(
        uniforms(7, np.array([3, 2**33]), np.array([11, 0]), 2),
        [[0.015377150883777113, 0.07479642720527546], [0.7303084554931945, 0.2114983322191466]],
    )


def test_probability_one_is_one_id_and_no_draw() -> None:
    """A row that leaves nothing in float32 has no tail."""
    logits_NV = torch.full((3, 500), -300.0)
    logits_NV[:, 77] = 0.0
    rows = sampled_at(logits_NV, Sampler(GRID))
    assert rows.head_ids.tolist() == [77] * 3
    assert (rows.head_logprobs == 0).all() and (rows.tail_mass == 0).all() and rows.num_draws == 0
    assert (rows.entropy == 0).all()


def test_equal_probabilities_are_all_tail_and_drawn_once_each() -> None:
    """No id reaches tau, and systematic draws from equal ids do not repeat."""
    rows = sampled_at(torch.zeros(9, 800), Sampler(GRID))
    assert rows.num_kept == 0 and (rows.tail_mass == 1).all()
    for drawn in rows.draw_ids.reshape(9, 25):
        assert len(set(drawn.tolist())) == 25


def test_far_tail_is_drawn_as_often_as_it_weighs() -> None:
    """Ids of 1e-6 behind nearly all the mass: a running sum in float32 would lose or double some of them."""
    vocab_size, far = 2**18, 2**17
    logits_V = torch.full((vocab_size,), np.log(1.3e-6))
    logits_V[:far] = np.log((1 - 1.3e-6 * far) / far)
    rows = sampled_at(logits_V.expand(32, -1), Sampler(Grid.of(1 / 400, 1)))
    share = float((rows.draw_ids >= far).mean())
    assert share == pytest.approx(1.3e-6 * far, rel=0.02)
    # Evenly over the far half too.
    quarters = np.histogram(rows.draw_ids[rows.draw_ids >= far], 4, (far, vocab_size))[0]
    assert quarters.max() - quarters.min() < 0.1 * quarters.mean()


@pytest.mark.parametrize("holes", [False, True])
def test_ids_the_tokenizer_lacks_are_never_drawn_and_carry_no_mass(holes: bool) -> None:
    """Padding with the largest logits of all changes nothing of a row."""
    valid_V = everything(1_000)
    valid_V[900:] = False
    if holes:
        valid_V[[0, 17, 500]] = False
    logits_NV = logits_of(20, 1_000)
    logits_NV[:, ~valid_V] = 50.0
    rows = sampled_at(logits_NV, Sampler(GRID), valid_V)
    ids = torch.from_numpy(np.concatenate([rows.head_ids, rows.draw_ids])).long()
    assert valid_V[ids].all()
    p_NV = softmax(logits_NV.masked_fill(~valid_V, -1e30))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy_N = -np.where(p_NV > 0, p_NV * np.log(p_NV), 0).sum(1)
    np.testing.assert_allclose(rows.entropy, entropy_N, rtol=1e-5)


def test_rows_at_a_temperature_are_those_of_cooler_logits() -> None:
    """Sampling at T is sampling from softmax(z / T)."""
    logits_NV = logits_of(30, 2_000)
    hot, cooled = sampled_at(logits_NV, Sampler(GRID, 1, 2.0)), sampled_at(logits_NV / 2, Sampler(GRID, 1))
    for name, array in vars(hot).items():
        if isinstance(array, np.ndarray):
            np.testing.assert_allclose(array, getattr(cooled, name), atol=1e-5, err_msg=name)


def test_multinomial_rows_are_draws_with_replacement() -> None:
    """As many draws as units; ids drawn once are draws of one unit, others stand in the head."""
    grid = Grid(50, 1)
    rows = sampled_at(logits_of(200, 400, scale=3.0), Sampler(grid, multinomial=True))
    units_H = grid.of_logprobs(rows.head_logprobs)
    assert (units_H >= 2).all()
    row_H = np.repeat(np.arange(200), np.diff(rows.head_offsets))
    np.testing.assert_array_equal(np.bincount(row_H, units_H, 200) + np.diff(rows.draw_offsets), 50)
    np.testing.assert_array_equal(grid.of_mass(rows.tail_mass), np.diff(rows.draw_offsets))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_refused_with_their_row(bad: float) -> None:
    """One bad logit stops teaching with the row it was found in."""
    logits_NV = logits_of(5, 400)
    logits_NV[3, 222] = bad
    with pytest.raises(TeacherError, match=r"^row 3 .*not finite; found .*; try"):
        sampled_at(logits_NV, Sampler(GRID))


def test_logits_are_not_changed() -> None:
    """The caller's logits are the same afterwards."""
    logits_NV = logits_of(5, 400)
    before = logits_NV.clone()
    sampled_at(logits_NV, Sampler(GRID, temperature=2.0), torch.arange(400) != 7)
    assert torch.equal(logits_NV, before)


def test_rows_of_a_batch_are_those_of_each_position_alone() -> None:
    """Row n is sampled from what the model says at its place, with the chance of that place in the plan."""
    head = OutputHead.of(TINY["llama_tied"]())
    ids_BT = torch.randint(3, 250, (3, 12), generator=torch.Generator().manual_seed(0))
    sequences_N, positions_N = (torch.arange(36) % 3 > 0).view(3, 12).nonzero(as_tuple=True)
    valid_V, sampler = torch.arange(VOCAB_SIZE) < 259, Sampler(GRID, 4)
    plan_B = np.array([40, 2, 17])
    with torch.no_grad():
        logits_NV = head.model(ids_BT).logits[sequences_N, positions_N].float()
    alone = sample(logits_NV, valid_V, sampler, plan_B[sequences_N.numpy()], positions_N.numpy())
    for rows_per_chunk in (1, 5, None):
        rows = sample_batch(
            head,
            ids_BT,
            None,
            sequences_N,
            positions_N,
            sampler,
            plan_B,
            valid_V,
            rows_per_chunk=rows_per_chunk,
        )
        np.testing.assert_array_equal(rows.draw_ids, alone.draw_ids)
        np.testing.assert_array_equal(rows.head_ids, alone.head_ids)
        np.testing.assert_allclose(rows.head_logprobs, alone.head_logprobs)
    none = torch.zeros(0, dtype=torch.long)
    assert len(sample_batch(head, ids_BT, None, none, none, sampler, plan_B, valid_V)) == 0


def test_no_rows_are_sampled_rows_too() -> None:
    """A batch without a supervised position is a part like any other."""
    rows = sampled_at(torch.zeros(0, 50), Sampler(GRID))
    assert len(rows) == 0 and rows.kind == SAMPLED
