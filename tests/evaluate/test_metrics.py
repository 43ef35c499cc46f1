"""Claims about metrics: equal to formulas written out by hand in float64, and bounds that hold."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from distillcache.losses import TeacherRows
from distillcache.metrics import (
    NUM_BINS,
    NUM_SUMS,
    RowMetrics,
    acceptance_bounds,
    exact_metrics,
    means,
    perplexity,
    row_metrics,
    stderr_of_mean,
    summed,
)
from tests.distillcache.made_rows import factors, tilted

N, V = 50, 40


def logits(seed: int, *, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random logits [N, V]."""
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(N, V, generator=generator, dtype=torch.float64)).to(dtype)


def targets(seed: int = 5) -> Tensor:
    """Random true next tokens [N]."""
    return torch.randint(V, (N,), generator=torch.Generator().manual_seed(seed))


def topk(logprobs_NV: Tensor, k: int) -> TeacherRows:
    """Rows of the K likeliest ids, unrounded."""
    kept = logprobs_NV.topk(k)
    counts = torch.full((N,), k)
    none = torch.zeros(N + 1, dtype=torch.int64)
    return TeacherRows(
        "topk",
        torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        kept.indices.flatten(),
        kept.values.flatten(),
        1 - kept.values.exp().sum(1),
        none,
        torch.zeros(0, dtype=torch.int64),
        -(logprobs_NV.exp() * logprobs_NV).sum(1),
    )


def thresholded(logprobs_NV: Tensor, tau: float, seed: int) -> TeacherRows:
    """Rows of threshold sampling: the head of p >= tau, and systematic draws from the tail."""
    random = np.random.default_rng(seed)
    heads, draws, parts = [], [], []
    for logprobs_V in logprobs_NV.numpy():
        p_V = np.exp(logprobs_V)
        head = np.flatnonzero(p_V >= tau)
        tail_V = np.where(p_V < tau, p_V, 0)
        mass = tail_V.sum()
        count = math.ceil(mass / tau)
        points = (np.arange(count) + random.random()) / max(count, 1) * mass
        draws.append(np.searchsorted(np.cumsum(tail_V), points).clip(max=V - 1))
        heads.append(head[np.argsort(-p_V[head])])
        parts.append(mass)
    offsets = [np.cumsum([0, *map(len, each)]) for each in (heads, draws)]
    values = [logprobs_V[head] for logprobs_V, head in zip(logprobs_NV.numpy(), heads, strict=True)]
    flat = [offsets[0], np.concatenate(heads), np.concatenate(values), np.array(parts)]
    entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(1)
    tensors = [torch.from_numpy(each) for each in (*flat, offsets[1], np.concatenate(draws))]
    return TeacherRows("sampled", *tensors, entropy_N)


def test_hard_loss_confidence_and_right_answers_are_those_of_the_softmax() -> None:
    """One row at a time, by the definition."""
    z_NV, x_N = logits(0), targets()
    found = row_metrics(z_NV, x_N)
    assert found.kl_N is None and found.agree_N is None and found.accept_low_N is None
    for n in range(N):
        q = [math.exp(z) for z in z_NV[n].tolist()]
        total = math.fsum(q)
        assert float(found.hard_N[n]) == pytest.approx(-math.log(q[int(x_N[n])] / total), rel=1e-12)
        assert float(found.confidence_N[n]) == pytest.approx(max(q) / total, rel=1e-12)
        assert bool(found.correct_N[n]) == (q.index(max(q)) == int(x_N[n]))


def test_kl_of_topk_rows_is_that_over_k_plus_one_buckets() -> None:
    """And is never above the KL of the whole distributions."""
    p_NV, z_NV = logits(1).log_softmax(1), logits(2)
    found = row_metrics(z_NV, targets(), topk(p_NV, 7))
    whole = exact_metrics(z_NV, targets(), p_NV)
    assert found.kl_N is not None and whole.kl_N is not None
    for n in range(N):
        p, q = p_NV[n].exp().tolist(), z_NV[n].softmax(0).tolist()
        kept = sorted(range(V), key=lambda i: -p[i])[:7]
        pairs = [(p[i], q[i]) for i in kept]
        pairs.append((1 - sum(a for a, _ in pairs), 1 - sum(b for _, b in pairs)))
        assert float(found.kl_N[n]) == pytest.approx(sum(a * math.log(a / b) for a, b in pairs), rel=1e-9)
        full = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert float(whole.kl_N[n]) == pytest.approx(full, rel=1e-10)
        assert float(found.kl_N[n]) <= full


def test_acceptance_is_the_sum_of_minima_and_topk_rows_hold_it_between_two_bounds() -> None:
    """With all ids kept both bounds are the exact value."""
    p_NV, z_NV = logits(1).log_softmax(1), logits(2)
    exact = torch.minimum(p_NV.exp(), z_NV.softmax(1)).sum(1)
    whole = exact_metrics(z_NV, targets(), p_NV)
    torch.testing.assert_close(whole.accept_low_N, exact, rtol=1e-12, atol=0)
    low_N, high_N = acceptance_bounds(z_NV, topk(p_NV, 5))
    assert bool((low_N <= exact).all()) and bool((exact <= high_N).all())
    assert bool((low_N < high_N).all())
    for bound_N in acceptance_bounds(z_NV, topk(p_NV, V)):
        torch.testing.assert_close(bound_N, exact, rtol=1e-9, atol=1e-12)


def test_one_row_s_bounds_of_acceptance_by_hand() -> None:
    """p = (.5, .3, .1, .1), q = (.4, .4, .2, 0...): .4 + .3 kept, and at most .2 of the tails."""
    q = torch.tensor([[0.4, 0.4, 0.15, 0.05]], dtype=torch.float64)
    rows = TeacherRows(
        "topk",
        torch.tensor([0, 2]),
        torch.tensor([0, 1]),
        torch.tensor([0.5, 0.3], dtype=torch.float64).log(),
        torch.tensor([0.2], dtype=torch.float64),
        torch.tensor([0, 0]),
        torch.zeros(0, dtype=torch.int64),
        torch.tensor([1.0], dtype=torch.float64),
    )
    low_N, high_N = acceptance_bounds(q.log(), rows)
    assert float(low_N) == pytest.approx(0.7, rel=1e-12)
    assert float(high_N) == pytest.approx(0.9, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_rows_estimate_kl_and_bound_acceptance_on_average(temperature: float) -> None:
    """Over 400 draws the mean KL is the exact one within four of its standard errors; acceptance between."""
    p_NV = (logits(1, scale=2.0) / temperature).log_softmax(1)
    z_NV, tau = logits(2, scale=2.0), 1 / 8
    q_NV = (z_NV / temperature).log_softmax(1)
    exact_kl = (p_NV.exp() * (p_NV - q_NV)).sum(1).mean()
    exact_accept_N = torch.minimum(p_NV.exp(), q_NV.exp()).sum(1)
    kls, lows, highs = [], [], []
    for seed in range(400):
        rows = thresholded(p_NV, tau, seed)
        found = row_metrics(z_NV, targets(), rows, temperature=temperature, tau=tau)
        assert found.kl_N is not None and found.accept_low_N is not None and found.accept_high_N is not None
        kls.append(float(found.kl_N.mean()))
        lows.append(found.accept_low_N)
        highs.append(found.accept_high_N)
    spread = np.std(kls, ddof=1) / math.sqrt(len(kls))
    assert abs(np.mean(kls) - float(exact_kl)) < 4 * spread
    low_N, high_N = torch.stack(lows).mean(0), torch.stack(highs).mean(0)
    assert bool((low_N <= exact_accept_N + 0.01).all())
    assert bool((exact_accept_N <= high_N + 1e-9).all())
    # What the draws tell is worth something: the bound from the head alone is lower.
    head_N = torch.stack(
        [torch.minimum(p_NV.exp(), q_NV.exp())[n][p_NV[n].exp() >= tau].sum() for n in range(N)]
    )
    assert float((low_N - head_N).mean()) > 0.01


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tilted_rows_estimate_kl_and_bound_acceptance_on_average(temperature: float) -> None:
    """Over 400 draws, within four standard errors; and the draws tell more than the heads alone."""
    p_NV = (logits(1, scale=2.0) / temperature).log_softmax(1)
    z_NV, tau = logits(2, scale=2.0), 1 / 8
    tau_V = tau / factors(V)
    q_NV = (z_NV / temperature).log_softmax(1)
    exact_kl = (p_NV.exp() * (p_NV - q_NV)).sum(1).mean()
    exact_accept_N = torch.minimum(p_NV.exp(), q_NV.exp()).sum(1)
    found = [
        row_metrics(z_NV, targets(), tilted(p_NV, tau, seed=seed), temperature=temperature, tau=tau_V.float())
        for seed in range(400)
    ]
    kls = np.array([float(each.kl_N.mean()) for each in found])
    assert abs(kls.mean() - float(exact_kl)) < 4 * kls.std(ddof=1) / math.sqrt(len(kls))
    low_NS, high_NS = (
        torch.stack([getattr(each, f"accept_{name}_N") for each in found]) for name in ("low", "high")
    )
    error_N = 4 * low_NS.std(0) / math.sqrt(len(found)) + 1e-9
    assert bool((low_NS.mean(0) <= exact_accept_N + error_N).all())
    # 1e-6: thresholds are of fp32.
    assert bool((exact_accept_N <= high_NS.mean(0) + 1e-6).all())
    kept_NV = p_NV.exp() >= tau_V
    head_N = torch.where(kept_NV, torch.minimum(p_NV.exp(), q_NV.exp()), 0.0).sum(1)
    assert float((low_NS.mean(0) - head_N).mean()) > 0.01
    from_masses_N = head_N + torch.minimum((~kept_NV * p_NV.exp()).sum(1), (~kept_NV * q_NV.exp()).sum(1))
    assert float((from_masses_N - high_NS.mean(0)).mean()) > 0.001


def test_with_all_ids_in_the_head_the_bounds_of_tilted_rows_are_the_exact_value() -> None:
    """Thresholds below every probability."""
    p_NV, z_NV = logits(1).log_softmax(1), logits(2)
    tau = float((p_NV.exp() * factors(V)).min())
    rows = tilted(p_NV, tau)
    assert len(rows.head_ids) == N * V and len(rows.draw_ids) == 0
    exact_N = torch.minimum(p_NV.exp(), z_NV.softmax(1)).sum(1)
    for bound_N in acceptance_bounds(z_NV, rows, tau=tau / factors(V)):
        torch.testing.assert_close(bound_N, exact_N, rtol=1e-9, atol=1e-12)


def test_a_tilted_row_tells_the_likeliest_id_only_where_no_other_may_be_it() -> None:
    """It keeps one of at least the highest threshold; who was told is right."""
    p_NV, tau_V = logits(1).log_softmax(1), (1 / 12) / factors(V)
    rows = tilted(p_NV)
    found = row_metrics(p_NV, targets(), rows, tau=tau_V)
    likeliest = p_NV.exp().max(1)
    told_N = likeliest.values >= tau_V.max()
    kept_N = likeliest.values >= tau_V[likeliest.indices]
    assert 0 < int(told_N.sum()) < int(kept_N.sum())
    assert found.agree_N is not None
    assert found.agree_N.tolist() == [1 if each else -1 for each in told_N.tolist()]
    # Of some it is not the first of its row.
    first_N = rows.head_ids[rows.head_offsets[:-1].clamp(max=len(rows.head_ids) - 1)]
    assert bool((told_N & (first_N != likeliest.indices)).any())
    # Another student agrees where its own likeliest id is the same.
    other = row_metrics(logits(2), targets(), rows, tau=tau_V).agree_N
    same_N = logits(2).argmax(1) == likeliest.indices
    assert other is not None
    assert other.tolist() == torch.where(told_N, same_N.int(), -1).tolist()


@pytest.mark.parametrize("more", [7, -7])
def test_a_student_of_more_or_fewer_ids_than_thresholds(more: int) -> None:
    """Its further ids cannot be the teacher's; those that it lacks are beyond the tokenizer's, in no row."""
    num_ids = min(V, V + more)
    p_NV = logits(1)[:, :num_ids].log_softmax(1)
    rows, tau_V = tilted(p_NV), (1 / 12) / factors(num_ids)
    z_NV = logits(2)[:, :num_ids]
    if more > 0:
        tau_V, wide_NV = tau_V[:num_ids], torch.cat([z_NV, torch.full((N, more), 1.0).double()], 1)
        low_N, high_N = acceptance_bounds(wide_NV, rows, tau=tau_V)
        # Ids of no threshold have no part: as if their q had been lost.
        q_NV = wide_NV.softmax(1)[:, :num_ids]
        lost_NV = torch.cat([q_NV, 1 - q_NV.sum(1, keepdim=True)], 1).log()
        wanted = acceptance_bounds(lost_NV, rows, tau=torch.cat([tau_V, torch.zeros(1).double()]))
    else:
        low_N, high_N = acceptance_bounds(z_NV, rows, tau=torch.cat([tau_V, torch.ones(-more).double()]))
        wanted = acceptance_bounds(z_NV, rows, tau=tau_V)
    for found_N, wanted_N in zip((low_N, high_N), wanted, strict=True):
        torch.testing.assert_close(found_N, wanted_N, rtol=1e-12, atol=1e-12)
    assert bool((low_N <= high_N).all()) and bool(torch.isfinite(high_N).all())


def test_rows_drawn_without_a_threshold_tell_no_acceptance_and_no_likeliest_id() -> None:
    """RS-KD's ids of many draws are not surely the likely ones."""
    rows = thresholded(logits(1).log_softmax(1), 1 / 8, 0)
    found = row_metrics(logits(2), targets(), rows, tau=None)
    assert found.kl_N is not None
    assert found.agree_N is None and found.accept_low_N is None and found.accept_high_N is None


def test_agreement_is_of_the_rows_that_keep_an_id() -> None:
    """A row whose head is empty does not say what is likeliest."""
    flat = torch.zeros(N, V, dtype=torch.float64).log_softmax(1)
    p_NV = torch.where(torch.arange(N)[:, None] < 20, flat, logits(1).log_softmax(1))
    rows = thresholded(p_NV, 1 / 8, 0)
    found = row_metrics(logits(1), targets(), rows, tau=1 / 8)
    assert found.agree_N is not None
    assert found.agree_N[:20].tolist() == [-1] * 20
    kept = p_NV[20:].exp().max(1).values >= 1 / 8
    assert found.agree_N[20:].tolist() == [1 if each else -1 for each in kept.tolist()]
    scores = means(summed(found))
    assert scores.num_asked == int(kept.sum()) and scores.top1_agreement == 1.0


def test_the_whole_teacher_s_padding_counts_for_nothing() -> None:
    """Its vocabulary may be wider or narrower than the student's; ids that are not valid have p = 0."""
    p_NV, z_NV, x_N = logits(1), logits(2), targets() % 30
    valid = torch.arange(V) < 30
    wide = torch.cat([p_NV.masked_fill(~valid, -math.inf), torch.full((N, 3), -math.inf)], 1).log_softmax(1)
    narrow = p_NV[:, :30].log_softmax(1)
    one, other = exact_metrics(z_NV, x_N, wide), exact_metrics(z_NV, x_N, narrow)
    for name in ("hard_N", "kl_N", "accept_low_N", "agree_N"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-12, atol=1e-12)
    assert bool(torch.isfinite(one.kl_N).all()) and bool((one.kl_N > 0).all())


def test_a_student_that_is_the_teacher_has_kl_0_and_acceptance_1() -> None:
    """In fp32, within its noise."""
    z_NV = logits(3, dtype=torch.float32)
    found = means(summed(exact_metrics(z_NV, targets(), z_NV.log_softmax(1))))
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.top1_agreement == 1.0
    assert found.acceptance_low == found.acceptance_high == pytest.approx(1, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    """Bins are ((m - 1) / 15, m / 15]: 1/15 is in the first, 1 in the last."""
    confidence = [1 / 15, 0.5, 0.52, 1.0, 1.0]
    correct = [True, False, True, True, False]
    metrics = RowMetrics(
        torch.zeros(5, dtype=torch.float64),
        torch.tensor(confidence, dtype=torch.float64),
        torch.tensor(correct),
    )
    found = means(summed(metrics))
    # Bins 1, 8 (7/15 to 8/15) and 15.
    expected = (abs(1 - 1 / 15) + 2 * abs(0.5 - 0.51) + 2 * abs(0.5 - 1.0)) / 5
    assert found.calibration_error == pytest.approx(expected, rel=1e-12)
    assert [each.num_rows for each in found.bins] == [1, *[0] * 6, 2, *[0] * 6, 2]
    assert len(found.bins) == NUM_BINS


def test_sums_of_chunks_add_up_to_those_of_the_whole() -> None:
    """Whatever the cuts, to the last digits of float64."""
    p_NV, z_NV, x_N = logits(1).log_softmax(1), logits(2), targets()
    rows = topk(p_NV, 6)
    whole = summed(row_metrics(z_NV, x_N, rows))
    parts = torch.zeros(NUM_SUMS, dtype=torch.float64)
    for start, stop in ((0, 1), (1, 20), (20, 20), (20, N)):
        cut = slice(start, stop)
        parts += summed(row_metrics(z_NV[cut], x_N[cut], rows[cut]))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


def test_means_are_over_rows_and_say_where_nothing_is_known() -> None:
    """Perplexity is exp of the mean, not the mean of exps."""
    found = means(summed(row_metrics(logits(2), targets())))
    hard = float(row_metrics(logits(2), targets()).hard_N.mean())
    assert found.hard_loss == pytest.approx(hard, rel=1e-12)
    assert found.perplexity == pytest.approx(math.exp(hard), rel=1e-12)
    assert (found.kl, found.top1_agreement, found.acceptance_low, found.num_asked) == (None, None, None, 0)
    assert perplexity(1e6) == math.inf


def test_standard_error_of_equal_groups_is_the_textbook_s() -> None:
    """Of single rows it is s over the square root of N; groups that move together have a larger one."""
    values = torch.tensor([1.0, 2.0, 4.0, 9.0, -3.0, 0.5], dtype=torch.float64)
    ones = torch.ones(6, dtype=torch.float64)
    assert stderr_of_mean(values, ones) == pytest.approx(float(values.std()) / math.sqrt(6), rel=1e-12)
    assert stderr_of_mean(values[:1], ones[:1]) is None
    doubled = stderr_of_mean(2 * values, 2 * ones)
    single = stderr_of_mean(values.repeat(2), ones.repeat(2))
    assert doubled is not None and single is not None and doubled > 1.3 * single
