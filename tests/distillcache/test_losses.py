"""Claims about losses: equal to dense formulas in float64, in value and gradient, also at the edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distillcache.learn.config import LOSSES as NAMES
from distillcache.losses import LOSSES, TeacherRows, full_losses, row_losses
from tests.distillcache.whole_losses import V, logits, soft, targets


def topk_rows(logprobs_NV: Tensor, counts: list[int]) -> TeacherRows:
    """Rows that keep as many ids as `counts` says, most likely first."""
    ids, values, tails = [], [], []
    for logprobs_V, count in zip(logprobs_NV, counts, strict=True):
        kept = logprobs_V.sort(descending=True, stable=True)
        ids.append(kept.indices[:count])
        values.append(kept.values[:count])
        tails.append(kept.values[count:].exp().sum())
    return TeacherRows(
        "topk",
        torch.tensor([0, *counts]).cumsum(0),
        torch.cat(ids),
        torch.cat(values),
        torch.stack(tails),
        torch.zeros(len(counts) + 1, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int32),
        -(logprobs_NV.exp() * logprobs_NV).sum(1),
    )


def dense(logits_V: Tensor, logprobs_V: Tensor, kept: int, loss: str, temperature: float) -> Tensor:
    """The soft loss of one row by its formula, from whole probabilities."""
    order = logprobs_V.argsort(descending=True, stable=True)
    inside, outside = order[:kept], order[kept:]
    p_V, q_V = logprobs_V.exp(), logits_V.softmax(0)
    if loss == "renormalised":
        shape = (logprobs_V[inside] / temperature).softmax(0)
        q = (logits_V / temperature).softmax(0)[inside]
        return temperature**2 * (shape * (shape / q).log()).sum()
    masses = [torch.stack([each[inside].sum(), each[outside].sum()]) for each in (p_V, q_V)]
    p_shape = (logprobs_V[inside] / temperature).softmax(0)
    q_shape = (logits_V[inside] / temperature).softmax(0)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return torch.where(p > 0, p * (p / q).log(), 0).sum()

    (m, _), (q_mass, _) = masses
    if loss == "forward-kl":
        return kl(masses[0], masses[1]) + m * temperature**2 * kl(p_shape, q_shape)
    if loss == "reverse-kl":
        return kl(masses[1], masses[0]) + q_mass * temperature**2 * kl(q_shape, p_shape)
    middle = (masses[0] + masses[1]) / 2
    shape = (m * p_shape + q_mass * q_shape) / (m + q_mass)
    within = m * kl(p_shape, shape) + q_mass * kl(q_shape, shape)
    return 0.5 * (kl(masses[0], middle) + kl(masses[1], middle) + temperature**2 * within)


def test_settings_and_losses_have_the_same_names() -> None:
    """The settings cannot import torch, so the list stands twice."""
    assert NAMES == LOSSES


def test_hard_loss_is_cross_entropy() -> None:
    """With rows and without."""
    z_NV, logprobs_NV = logits(5), logits(5, seed=1).log_softmax(1)
    wanted = torch.nn.functional.cross_entropy(z_NV, targets(5), reduction="none")
    for rows in (None, topk_rows(logprobs_NV, [6] * 5)):
        torch.testing.assert_close(row_losses(z_NV, targets(5), rows).hard_N, wanted)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_soft_loss_and_its_gradient_are_those_of_the_dense_formula(loss: str, temperature: float) -> None:
    """Rows of unequal K, one of them the whole vocabulary."""
    counts = [1, 4, 9, 39, V] if loss != "reverse-kl" else [1, 4, 9, 39]
    z_NV = logits(len(counts)).requires_grad_()
    logprobs_NV = logits(len(counts), seed=1).log_softmax(1)
    found_N = soft(z_NV, topk_rows(logprobs_NV, counts), loss, temperature)
    wanted_N = torch.stack(
        [
            dense(z_V, logprobs_V, count, loss, temperature)
            for z_V, logprobs_V, count in zip(z_NV, logprobs_NV, counts, strict=True)
        ]
    )
    torch.testing.assert_close(found_N, wanted_N)
    ours, theirs = (torch.autograd.grad(each.sum(), z_NV)[0] for each in (found_N, wanted_N))
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(
        lambda each: soft(each, topk_rows(logprobs_NV, counts), loss, temperature), z_NV
    )


def test_at_temperature_1_it_is_the_kl_over_k_plus_1_buckets() -> None:
    """The split by the chain rule, against the buckets written out."""
    z_NV, logprobs_NV = logits(3), logits(3, seed=1).log_softmax(1)
    for n, kept in enumerate((2, 5, 20)):
        order = logprobs_NV[n].argsort(descending=True)
        buckets = []
        for probabilities_V in (logprobs_NV[n].exp(), z_NV[n].softmax(0)):
            inside, outside = probabilities_V[order[:kept]], probabilities_V[order[kept:]]
            buckets.append(torch.cat([inside, outside.sum()[None]]))
        wanted = (buckets[0] * (buckets[0] / buckets[1]).log()).sum()
        rows = topk_rows(logprobs_NV, [2, 5, 20])
        torch.testing.assert_close(soft(z_NV, rows)[n], wanted)
        kl_N = row_losses(z_NV, targets(3), rows, loss="js", temperature=3.0).kl_N
        assert kl_N is not None
        torch.testing.assert_close(kl_N[n], wanted)


def test_gradient_on_kept_ids_is_that_of_full_distillation() -> None:
    """q - p on every kept id; the others share the tail's as the student has it."""
    z_NV = logits(2).requires_grad_()
    logprobs_NV = logits(2, seed=1).log_softmax(1)
    rows = topk_rows(logprobs_NV, [8, 8])
    (gradient_NV,) = torch.autograd.grad(soft(z_NV, rows).sum(), z_NV)
    full_NV = (z_NV.softmax(1) - logprobs_NV.exp()).detach()
    for n in range(2):
        kept = rows.head_ids[rows.head_offsets[n] : rows.head_offsets[n + 1]]
        torch.testing.assert_close(gradient_NV[n, kept], full_NV[n, kept])
    assert (gradient_NV - full_NV).abs().max() > 1e-3
    torch.testing.assert_close(gradient_NV.sum(1), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("loss", ["forward-kl", "renormalised"])
def test_a_row_of_the_whole_vocabulary_is_exact_distillation(loss: str) -> None:
    """K = V, and a tail mass that only rounding left over."""
    z_NV = logits(4).requires_grad_()
    logprobs_NV = logits(4, seed=1).log_softmax(1)
    rows = topk_rows(logprobs_NV, [V] * 4)
    rows.tail_mass.fill_(1e-7)
    found_N = soft(z_NV, rows, loss)
    kl_N = (logprobs_NV.exp() * (logprobs_NV - z_NV.log_softmax(1))).sum(1)
    torch.testing.assert_close(found_N, kl_N)
    (gradient_NV,) = torch.autograd.grad(found_N.sum(), z_NV)
    torch.testing.assert_close(gradient_NV, z_NV.softmax(1) - logprobs_NV.exp())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("student_tail", [-200.0, -40.0, 40.0, 200.0])
def test_the_student_may_put_all_its_mass_inside_or_outside_the_kept_ids(
    loss: str, student_tail: float
) -> None:
    """In fp32 against float64, where 1 - Q would be all rounding; what is outside is punished."""
    logprobs_NV = logits(2, seed=1).log_softmax(1)
    rows = topk_rows(logprobs_NV, [5, 12])
    z_NV = logits(2)
    for n in range(2):
        outside = torch.ones(V, dtype=torch.bool)
        outside[rows.head_ids[rows.head_offsets[n] : rows.head_offsets[n + 1]]] = False
        z_NV[n, outside] += student_tail
    results = []
    for dtype in (torch.float64, torch.float32):
        z = z_NV.to(dtype).requires_grad_()
        found_N = soft(z, rows, loss, 2.0)
        (gradient_NV,) = torch.autograd.grad(found_N.sum(), z)
        assert gradient_NV.isfinite().all()
        results.append((found_N.double(), gradient_NV.double()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-6)
    if student_tail > 0 and loss in ("forward-kl", "renormalised"):
        assert (results[0][0] > 10).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_edges_have_values_and_gradients(loss: str) -> None:
    """K of 0 and 1, a tail mass of 0 and of 1e-30, a probability of 1, in fp32 in one batch."""
    z_NV = logits(4, dtype=torch.float32).requires_grad_()
    rows = TeacherRows(
        "topk",
        torch.tensor([0, 0, 1, 2, 4]),
        torch.tensor([3, 4, 5, 6]),
        torch.tensor([0.0, math.log(0.25), math.log(0.5), math.log(0.5)]),
        torch.tensor([1.0, 0.0, 0.75, 1e-30]),
        torch.zeros(5, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int32),
        torch.ones(4),
    )
    found_N = soft(z_NV, rows, loss, 1.5)
    (gradient_NV,) = torch.autograd.grad(found_N.sum(), z_NV)
    assert found_N.isfinite().all() and (found_N >= -1e-6).all()
    assert gradient_NV.isfinite().all()
    assert found_N[0].abs() < 1e-6 and gradient_NV[0].abs().max() < 1e-6  # nothing kept, nothing learned
    assert rows.top1().tolist() == [-1, 3, 4, 5]


def test_one_row_is_as_good_as_many_and_none_as_one() -> None:
    """Slices of rows give slices of losses."""
    z_NV, logprobs_NV = logits(5), logits(5, seed=1).log_softmax(1)
    rows = topk_rows(logprobs_NV, [3, 1, 7, 2, 4])
    whole = soft(z_NV, rows)
    for start, stop in ((0, 1), (2, 5), (4, 5), (3, 3)):
        part = row_losses(z_NV[start:stop], targets(5)[start:stop], rows[start:stop]).soft_N
        assert part is not None
        torch.testing.assert_close(part, whole[start:stop])


@given(st.integers(0, 10_000), st.floats(0.5, 4.0), st.floats(0.1, 30.0), st.sampled_from(LOSSES))
def test_no_loss_is_below_0_and_fp32_agrees_with_float64(
    seed: int, temperature: float, scale: float, loss: str
) -> None:
    """Random logits from flat to extreme; log-probabilities rounded to fp16, as a cache has them."""
    logprobs_NV = logits(3, scale=scale, seed=seed + 1).log_softmax(1)
    rows = topk_rows(logprobs_NV, [1, 6, 39])
    rows.head_logprobs.copy_(rows.head_logprobs.half().double())
    z_NV = logits(3, scale=scale, seed=seed)
    wanted_N = soft(z_NV, rows, loss, temperature)
    found_N = soft(z_NV.float(), rows, loss, temperature).double()
    assert (wanted_N > -1e-9).all()
    # Logits of 100 are known to 4e-6 in fp32, and T squared multiplies that by up to 16.
    torch.testing.assert_close(found_N, wanted_N, rtol=2e-5, atol=2e-5 * max(1.0, scale))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("loss", ["forward-kl", "reverse-kl", "js"])
def test_full_distillation_is_the_divergence_of_whole_softmaxes(loss: str, temperature: float) -> None:
    """Times T squared; and the KL that is reported is at temperature 1."""
    z_NV, teacher_NV = logits(4), logits(4, seed=1)
    p_NV, q_NV = ((each / temperature).softmax(1) for each in (teacher_NV, z_NV))

    def kl(a_NV: Tensor, b_NV: Tensor) -> Tensor:
        return (a_NV * (a_NV / b_NV).log()).sum(1)

    middle_NV = (p_NV + q_NV) / 2
    wanted_N = {
        "forward-kl": kl(p_NV, q_NV),
        "reverse-kl": kl(q_NV, p_NV),
        "js": (kl(p_NV, middle_NV) + kl(q_NV, middle_NV)) / 2,
    }[loss]
    found = full_losses(z_NV, targets(4), teacher_NV, loss=loss, temperature=temperature)
    assert found.soft_N is not None and found.kl_N is not None
    torch.testing.assert_close(found.soft_N, temperature**2 * wanted_N)
    torch.testing.assert_close(found.kl_N, kl(teacher_NV.softmax(1), z_NV.softmax(1)))
    hard_N = torch.nn.functional.cross_entropy(z_NV, targets(4), reduction="none")
    torch.testing.assert_close(found.hard_N, hard_N)


def test_a_row_of_the_whole_vocabulary_says_what_the_whole_teacher_does() -> None:
    """Two ways to the same loss."""
    z_NV, teacher_NV = logits(4), logits(4, seed=1)
    rows = topk_rows(teacher_NV.log_softmax(1), [V] * 4)
    for loss in ("forward-kl", "js"):
        found = full_losses(z_NV, targets(4), teacher_NV, loss=loss, temperature=2.0).soft_N
        assert found is not None
        torch.testing.assert_close(found, soft(z_NV, rows, loss, 2.0))


def test_vocabularies_of_two_sizes_share_the_ids_that_both_have() -> None:
    """The teacher's others have no part in its softmax; the student's others have none of its mass."""
    z_NV, teacher_NV = logits(3), logits(3, seed=1)
    longer_NU = torch.cat([teacher_NV, torch.full((3, 5), 9.0, dtype=torch.float64)], 1)
    found = [full_losses(z_NV, targets(3), each).soft_N for each in (teacher_NV, longer_NU)]
    torch.testing.assert_close(found[0], found[1])
    for loss in ("forward-kl", "reverse-kl", "js"):
        shorter = full_losses(z_NV, targets(3), teacher_NV[:, : V - 5], loss=loss).soft_N
        assert shorter is not None and shorter.isfinite().all()
        low_NV = z_NV.clone()
        low_NV[:, V - 5 :] = -50.0  # where nothing is asked for, less is better
        lower = full_losses(low_NV, targets(3), teacher_NV[:, : V - 5], loss=loss).soft_N
        assert lower is not None and (lower < shorter).all()
    with pytest.raises(ValueError, match="needs no loss"):
        full_losses(z_NV, targets(3), teacher_NV, loss="renormalised")
