"""Claims about losses of `sampled` rows: a target that is right on average, tilted or not."""

import math

import pytest
import torch
from torch import Tensor

from distillcache.losses import TeacherRows, row_losses
from tests.distillcache.made_rows import factors, in_dtype, tilted
from tests.distillcache.whole_losses import V, logits, soft, targets


def sampled_rows(logprobs_NV: Tensor, tau: float, generator: torch.Generator) -> TeacherRows:
    """Threshold sampling: all ids from tau up, and systematic draws from the rest."""
    ids, values, tails, draws = [], [], [], []
    for logprobs_V in logprobs_NV:
        p_V = logprobs_V.exp()
        head = (p_V >= tau).nonzero()[:, 0]
        tail_V = torch.where(p_V < tau, p_V, 0)
        mass = tail_V.sum()
        count = math.ceil(float(mass) / tau)
        at = torch.arange(count) + torch.rand(1, generator=generator, dtype=torch.float64)
        drawn = torch.searchsorted(tail_V.cumsum(0), at / max(count, 1) * mass).clamp(max=V - 1)
        ids.append(head)
        values.append(logprobs_V[head])
        tails.append(mass)
        draws.append(drawn)
    return TeacherRows(
        "sampled",
        torch.tensor([0, *map(len, ids)]).cumsum(0),
        torch.cat(ids),
        torch.cat(values),
        torch.stack(tails),
        torch.tensor([0, *map(len, draws)]).cumsum(0),
        torch.cat(draws),
        -(logprobs_NV.exp() * logprobs_NV).sum(1),
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_sampled_gradient_is_on_average_that_of_full_distillation(temperature: float) -> None:
    """The mean over many draws, of value and gradient; T squared times q - p over T."""
    generator = torch.Generator().manual_seed(3)
    z_NV = logits(2).requires_grad_()
    logprobs_NV = logits(2, scale=1.5, seed=1).log_softmax(1)  # at the temperature of the rows
    repeats = 400
    losses_N, gradient_NV = torch.zeros(2), torch.zeros(2, V, dtype=torch.float64)
    for _ in range(repeats):
        found_N = soft(z_NV, sampled_rows(logprobs_NV, 1 / 8, generator), temperature=temperature)
        gradient_NV += torch.autograd.grad(found_N.sum(), z_NV)[0] / repeats
        losses_N = losses_N + found_N.detach() / repeats
    q_NV = (z_NV / temperature).log_softmax(1).detach()
    kl_N = (logprobs_NV.exp() * (logprobs_NV - q_NV)).sum(1)
    full_NV = temperature * (q_NV.exp() - logprobs_NV.exp())
    assert ((losses_N - temperature**2 * kl_N).abs() < 0.05 * temperature**2).all()
    # A draw weighs at most 1/8: the mean of 400 is known to 0.02, at three deviations.
    assert (gradient_NV - full_NV).abs().max() < 0.02 * temperature


def test_the_sampled_gradient_is_q_minus_the_target_exactly() -> None:
    """For the draws at hand, head values and weights of draws; one row has no draws, one no head."""
    generator = torch.Generator().manual_seed(0)
    peaked, flat = torch.full((V,), -60.0, dtype=torch.float64), torch.zeros(V, dtype=torch.float64)
    peaked[5] = 0.0
    logprobs_NV = torch.stack([peaked, flat, logits(1, seed=1)[0]]).log_softmax(1)
    rows = sampled_rows(logprobs_NV, 1 / 16, generator)
    rows.tail_mass[0] = 0.0
    rows = TeacherRows(
        rows.kind,
        rows.head_offsets,
        rows.head_ids,
        rows.head_logprobs,
        rows.tail_mass,
        rows.draw_offsets - torch.tensor([0, *[int(rows.draw_offsets[1])] * 3]),
        rows.draw_ids[int(rows.draw_offsets[1]) :],
        rows.entropy,
    )
    assert rows.draw_offsets[1] == 0 and rows.head_offsets[2] == rows.head_offsets[1]
    z_NV = logits(3).requires_grad_()
    (gradient_NV,) = torch.autograd.grad(soft(z_NV, rows).sum(), z_NV)
    target_NV = torch.zeros(3, V, dtype=torch.float64)
    for n in range(3):
        head = slice(int(rows.head_offsets[n]), int(rows.head_offsets[n + 1]))
        drawn = rows.draw_ids[int(rows.draw_offsets[n]) : int(rows.draw_offsets[n + 1])]
        target_NV[n, rows.head_ids[head]] = rows.head_logprobs[head].exp()
        weight = float(rows.tail_mass[n]) / max(len(drawn), 1)
        target_NV[n].index_add_(0, drawn, torch.full((len(drawn),), weight, dtype=torch.float64))
    torch.testing.assert_close(gradient_NV, z_NV.softmax(1).detach() - target_NV)
    assert rows.top1().tolist()[:2] == [5, -1]


def target_of(rows: TeacherRows) -> Tensor:
    """What tilted rows say of every id, [N, V], float64."""
    assert rows.draw_weights is not None
    target_NV = torch.zeros(len(rows), V, dtype=torch.float64)
    for offsets, ids, values in (
        (rows.head_offsets, rows.head_ids, rows.head_logprobs.double().exp()),
        (rows.draw_offsets, rows.draw_ids, rows.draw_weights.double()),
    ):
        row_of = torch.repeat_interleave(torch.arange(len(rows)), offsets.diff())
        target_NV.index_put_((row_of, ids.long()), values, accumulate=True)
    return target_NV


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tilted_rows_are_a_dense_target_whose_mass_is_not_1(temperature: float, dtype: torch.dtype) -> None:
    """Value and gradient, to 1e-5 in fp32 also; among the rows one of no draws and one of no head."""
    peaked, flat = torch.full((V,), -60.0, dtype=torch.float64), torch.zeros(V, dtype=torch.float64)
    peaked[5] = 0.0
    logprobs_NV = torch.cat([torch.stack([peaked, flat]), logits(20, seed=1)]).log_softmax(1)
    rows = in_dtype(tilted(logprobs_NV, 1 / 8), torch.float32)
    assert rows.draw_offsets[1] == 0 and rows.head_offsets[2] == rows.head_offsets[1]
    z_NV = logits(22, dtype=torch.float32).to(dtype).requires_grad_()
    found_N = soft(z_NV, rows, temperature=temperature)
    (found_NV,) = torch.autograd.grad(found_N.sum(), z_NV)

    target_NV, dense_NV = target_of(rows), z_NV.detach().double().requires_grad_()
    assert float((target_NV.sum(1) - 1).abs().max()) > 0.02
    cross_N = -(target_NV * (dense_NV / temperature).log_softmax(1)).sum(1)
    wanted_N = temperature**2 * (cross_N - rows.entropy)
    (wanted_NV,) = torch.autograd.grad(wanted_N.sum(), dense_NV)
    torch.testing.assert_close(found_N.double(), wanted_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_NV.double(), wanted_NV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_tilted_gradient_is_on_average_that_of_full_distillation(temperature: float) -> None:
    """And the value; over 400 draws, within 4 standard errors."""
    repeats, tau = 400, 1 / 8
    logprobs_NV = logits(2, scale=1.5, seed=1).log_softmax(1)  # at the temperature of the rows
    z_NV = logits(2).requires_grad_()
    losses, gradients = [], []
    for seed in range(repeats):
        found_N = soft(z_NV, tilted(logprobs_NV, tau, seed=seed), temperature=temperature)
        gradients.append(torch.autograd.grad(found_N.sum(), z_NV)[0])
        losses.append(found_N.detach())
    q_NV = (z_NV / temperature).log_softmax(1).detach()
    p_NV = logprobs_NV.exp()
    kl_N = (p_NV * (logprobs_NV - q_NV)).sum(1)
    each_N, each_NV = torch.stack(losses), torch.stack(gradients)
    assert ((each_N.mean(0) - temperature**2 * kl_N).abs() < 4 * each_N.std(0) / math.sqrt(repeats)).all()
    # An id that is drawn with chance p / w, and then weighs w, has a deviation below sqrt(p w);
    # a draw more, for rare ones have no bell curve; and q moves with the mass, whose deviation is below 0.4.
    weight_V = tau / factors(V)
    error_NV = 4 * ((p_NV * weight_V).sqrt() + 0.4 * q_NV.exp()) / math.sqrt(repeats) + weight_V / repeats
    full_NV = temperature * (q_NV.exp() - p_NV)
    assert ((each_NV.mean(0) - full_NV).abs() < temperature * error_NV).all()


def test_a_slice_of_tilted_rows_is_those_rows() -> None:
    """With the weights of their draws."""
    z_NV, rows = logits(5), tilted(logits(5, seed=1).log_softmax(1), 1 / 8)
    whole = soft(z_NV, rows)
    for start, stop in ((0, 1), (2, 5), (3, 3)):
        part = row_losses(z_NV[start:stop], targets(5)[start:stop], rows[start:stop]).soft_N
        torch.testing.assert_close(part, whole[start:stop])


def test_the_most_likely_id_of_a_tilted_row_need_not_be_its_first() -> None:
    """It is told where it is as likely as is asked."""
    rows = TeacherRows(
        "sampled",
        torch.tensor([0, 3, 3, 4]),
        torch.tensor([7, 2, 9, 4]),
        torch.tensor([0.2, 0.5, 0.1, 0.3]).log(),
        torch.tensor([0.2, 1.0, 0.7]),
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.ones(3),
        torch.zeros(0),
    )
    assert rows.top1().tolist() == [2, -1, 4]
    assert rows.top1(0.4).tolist() == [2, -1, -1]
    assert rows.top1(0.6).tolist() == [-1, -1, -1]
    assert rows[1:2].top1().tolist() == [-1]


def test_sampled_rows_refuse_a_loss_that_needs_all_kept_values() -> None:
    """And a name that is none is refused for every kind."""
    generator = torch.Generator().manual_seed(0)
    rows = sampled_rows(logits(2, seed=1).log_softmax(1), 1 / 8, generator)
    with pytest.raises(ValueError, match="sampled rows allow"):
        soft(logits(2), rows, "js")
    with pytest.raises(ValueError, match="must be one of"):
        soft(logits(2), rows, "kl")
