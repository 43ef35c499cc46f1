"""Losses of a student at supervised positions: against the true next token, and against what a teacher said.

A loss per row, in nats, from whole logits of N positions and the teacher's rows of the same positions.
Nothing is clamped, and a term is never the difference of two numbers near one.
Knows nothing of models, caches, chunks or batches.

N rows, V vocabulary, K kept ids of the longest row, M draws of the longest row, H kept ids of all rows.

Notation: p the teacher, q the student, S the kept ids of a row, m and Q their mass, T the temperature.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LOSSES", "RowLosses", "TeacherRows", "row_losses"]

FORWARD_KL, REVERSE_KL, JS, RENORMALISED = "forward-kl", "reverse-kl", "js", "renormalised"
LOSSES = (FORWARD_KL, REVERSE_KL, JS, RENORMALISED)

# Stands for the logarithm of 0: its exponential is 0, and 0 times it is 0, where infinity would be no number.
LOG_0 = -1e30
# A tail mass of 0 is one that fp32 cannot tell from 0 beside 1; reverse KL asks for its logarithm.
LOG_TAIL_UNSEEN = -24 * math.log(2)


@dataclass(frozen=True)
class TeacherRows:
    """What the teacher said at N positions, as flat tensors on one device.

    Row n keeps ids `head_ids[head_offsets[n]:head_offsets[n + 1]]`, most likely first, and so its draws.
    `topk`: no draws. `sampled`: each draw weighs the tail mass over the number of draws of its row.
    """

    kind: str  # "topk" or "sampled"
    head_offsets: Tensor  # int64 [N + 1]
    head_ids: Tensor  # int64 or int32 [H]
    head_logprobs: Tensor  # [H], natural log, full softmax
    tail_mass: Tensor  # [N]
    draw_offsets: Tensor  # int64 [N + 1]
    draw_ids: Tensor  # int64 or int32 [D]
    entropy: Tensor  # [N], nats

    def __len__(self) -> int:
        return len(self.tail_mass)

    def __getitem__(self, span: slice) -> "TeacherRows":
        """Neighbouring rows, as views."""
        start, stop, step = span.indices(len(self))
        assert step == 1
        stop = max(start, stop)
        heads, draws = self.head_offsets[start : stop + 1], self.draw_offsets[start : stop + 1]
        head = slice(int(heads[0]), int(heads[-1]))
        drawn = slice(int(draws[0]), int(draws[-1]))
        return TeacherRows(
            self.kind,
            heads - heads[0],
            self.head_ids[head],
            self.head_logprobs[head],
            self.tail_mass[start:stop],
            draws - draws[0],
            self.draw_ids[drawn],
            self.entropy[start:stop],
        )

    def top1(self) -> Tensor:
        """The teacher's most likely id, int64 [N]; -1 where a row keeps none, and so does not say."""
        if len(self.head_ids) == 0:
            return torch.full_like(self.head_offsets[1:], -1)
        first_N = self.head_offsets[:-1].clamp(max=len(self.head_ids) - 1)
        return torch.where(self.head_offsets.diff() > 0, self.head_ids[first_N].long(), -1)


@dataclass(frozen=True)
class RowLosses:
    """Losses of N rows, in nats."""

    hard_N: Tensor  # cross-entropy with the true next token, at temperature 1
    soft_N: Tensor | None  # against the teacher, with the factor T squared; None without rows
    # KL(p || q) of `topk` rows over K + 1 buckets at temperature 1; of `sampled` rows an estimate of the
    # whole, at their own temperature, that may be below 0 in one row. No gradient; None without rows.
    kl_N: Tensor | None


def row_losses(
    logits_NV: Tensor,
    targets_N: Tensor,
    rows: TeacherRows | None = None,
    *,
    loss: str = FORWARD_KL,
    temperature: float = 1.0,
) -> RowLosses:
    """Hard and soft loss of every row, from the student's logits in fp32 or wider.

    `loss`: one of `LOSSES`; `sampled` rows allow `forward-kl` alone, at the temperature they were drawn at.
    Raises ValueError for a loss that these rows do not allow.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, found {loss!r}")
    target_logits_N = logits_NV.gather(1, targets_N[:, None])[:, 0]
    if rows is None:
        return RowLosses(logits_NV.logsumexp(1) - target_logits_N, None, None)
    if rows.kind == "sampled":
        if loss != FORWARD_KL:
            raise ValueError(f"sampled rows allow the loss {FORWARD_KL} alone, found {loss!r}")
        kl_N = _sampled_kl(logits_NV, rows, temperature)
        hard_N = logits_NV.logsumexp(1) - target_logits_N
        return RowLosses(hard_N, temperature**2 * kl_N, kl_N.detach())
    split = _Split.of(logits_NV, rows)
    hard_N = split.log_sum_N - target_logits_N
    with torch.no_grad():
        kl_N = _bucket_divergence(split, FORWARD_KL, 1.0)
    if loss == RENORMALISED:
        soft_N = _renormalised(logits_NV, split, temperature)
    else:
        soft_N = _bucket_divergence(split, loss, temperature)
    return RowLosses(hard_N, soft_N, kl_N)


@dataclass(frozen=True)
class _Split:
    """A `topk` row as two masses and, within the kept ids, logits and log-probabilities.

    Both pairs of masses sum to 1: what rounding on disk left over or took is shared out in proportion.
    """

    kept_NK: Tensor  # bool; False pads a short row
    logits_NK: Tensor  # the student's, LOG_0 where padded
    logprobs_NK: Tensor  # the teacher's, LOG_0 where padded
    log_sum_N: Tensor  # logsumexp of all logits of the student
    log_p_N2: Tensor  # log of the teacher's m and 1 - m
    log_q_N2: Tensor  # log of the student's Q and 1 - Q
    full_N: Tensor  # bool: the row keeps the whole vocabulary

    @classmethod
    def of(cls, logits_NV: Tensor, rows: TeacherRows) -> "_Split":
        ids_NK, kept_NK = _padded(rows.head_offsets, rows.head_ids)
        logprobs_NK = _padded(rows.head_offsets, rows.head_logprobs.to(logits_NV.dtype))[0]
        logprobs_NK = logprobs_NK.masked_fill(~kept_NK, LOG_0)
        logits_NK = logits_NV.gather(1, ids_NK).masked_fill(~kept_NK, LOG_0)
        # log(1 - Q) over the ids outside: from Q itself, nothing of it is left where Q is near 1.
        counts_N = rows.head_offsets.diff()
        row_of_H = torch.repeat_interleave(
            torch.arange(len(rows), device=counts_N.device), counts_N, output_size=len(rows.head_ids)
        )
        log_0 = torch.tensor(LOG_0, dtype=logits_NV.dtype, device=logits_NV.device)
        outside_NV = logits_NV.index_put((row_of_H, rows.head_ids.long()), log_0)
        log_in_N, log_out_N = logits_NK.logsumexp(1), outside_NV.logsumexp(1)
        log_sum_N = torch.logaddexp(log_in_N, log_out_N)
        full_N = counts_N == logits_NV.shape[1]
        tail_N = torch.where(full_N, 0.0, rows.tail_mass.to(logits_NV.dtype))
        log_p_N2 = torch.stack([logprobs_NK.logsumexp(1), tail_N.log().clamp(min=LOG_0)], 1)
        return cls(
            kept_NK,
            logits_NK,
            logprobs_NK,
            log_sum_N,
            log_p_N2.log_softmax(1),
            torch.stack([log_in_N, log_out_N], 1).log_softmax(1),
            full_N,
        )


def _bucket_divergence(split: _Split, loss: str, temperature: float) -> Tensor:
    """Divergence over the kept ids and one bucket for all others, [N], by the chain rule.

    The masses of head and tail at temperature 1, plus the shape within the head at temperature T, times T
    squared and the head's mass.
    At T = 1 it is exactly the divergence over K + 1 buckets.
    """
    log_pS_NK = (split.logprobs_NK / temperature).log_softmax(1)
    log_qS_NK = (split.logits_NK / temperature).log_softmax(1)
    log_p_N2, log_q_N2 = split.log_p_N2, split.log_q_N2
    factor = temperature**2
    if loss == FORWARD_KL:
        within_N = _kl(log_pS_NK, log_qS_NK)
        return _kl(log_p_N2, log_q_N2) + factor * log_p_N2[:, 0].exp() * within_N
    if loss == REVERSE_KL:
        unseen_N = (log_p_N2[:, 1] <= LOG_0 / 2) & ~split.full_N
        log_tail_N = log_p_N2[:, 1].masked_fill(unseen_N, LOG_TAIL_UNSEEN)
        log_p_N2 = torch.stack([log_p_N2[:, 0], log_tail_N], 1)
        within_N = _kl(log_qS_NK, log_pS_NK)
        return _kl(log_q_N2, log_p_N2) + factor * log_q_N2[:, 0].exp() * within_N
    # Jensen-Shannon, each half a KL to the mixture, whose shape within the head weighs both by their masses.
    log_mix_N2 = torch.logaddexp(log_p_N2, log_q_N2) - math.log(2)
    log_p_N1, log_q_N1 = log_p_N2[:, :1], log_q_N2[:, :1]
    log_mixS_NK = torch.logaddexp(log_p_N1 + log_pS_NK, log_q_N1 + log_qS_NK)
    log_mixS_NK = log_mixS_NK - torch.logaddexp(log_p_N1, log_q_N1)
    masses_N = _kl(log_p_N2, log_mix_N2) + _kl(log_q_N2, log_mix_N2)
    within_N = log_p_N1[:, 0].exp() * _kl(log_pS_NK, log_mixS_NK)
    within_N = within_N + log_q_N1[:, 0].exp() * _kl(log_qS_NK, log_mixS_NK)
    return 0.5 * (masses_N + factor * within_N)


def _renormalised(logits_NV: Tensor, split: _Split, temperature: float) -> Tensor:
    """KL from the kept ids made to sum to 1 to the student's whole softmax, times T squared, [N].

    For comparison with the literature: it asks the student to put nothing outside the kept ids.
    """
    log_p_NK = (split.logprobs_NK / temperature).log_softmax(1)
    log_sum_N = split.log_sum_N if temperature == 1 else (logits_NV / temperature).logsumexp(1)
    log_q_NK = split.logits_NK / temperature - log_sum_N[:, None]
    return temperature**2 * (log_p_NK.exp() * (log_p_NK - log_q_NK) * split.kept_NK).sum(1)


def _sampled_kl(logits_NV: Tensor, rows: TeacherRows, temperature: float) -> Tensor:
    """Cross-entropy with the sampled target, less the teacher's entropy, [N]: in expectation KL(p || q).

    Its gradient on z / T is q minus the target, whose expectation over draws is p.
    """
    log_sum_N = (logits_NV / temperature).logsumexp(1)

    def surprise(ids_NK: Tensor) -> Tensor:
        return log_sum_N[:, None] - logits_NV.gather(1, ids_NK) / temperature

    ids_NK, kept_NK = _padded(rows.head_offsets, rows.head_ids)
    logprobs_NK = _padded(rows.head_offsets, rows.head_logprobs.to(logits_NV.dtype))[0]
    head_N = (logprobs_NK.exp() * surprise(ids_NK) * kept_NK).sum(1)
    draws_NM, drawn_NM = _padded(rows.draw_offsets, rows.draw_ids)
    weight_N = rows.tail_mass.to(logits_NV.dtype) / rows.draw_offsets.diff().clamp(min=1)
    tail_N = weight_N * (surprise(draws_NM) * drawn_NM).sum(1)
    return head_N + tail_N - rows.entropy.to(logits_NV.dtype)


def _kl(log_p_NK: Tensor, log_q_NK: Tensor) -> Tensor:
    """KL(p || q), [N], of distributions given by their logarithms; LOG_0 stands for that of 0."""
    return (log_p_NK.exp() * (log_p_NK - log_q_NK)).sum(1)


def _padded(offsets_N1: Tensor, values_H: Tensor) -> tuple[Tensor, Tensor]:
    """Flat rows side by side, [N, K], and which of them are real; ids as int64. K is at least 1."""
    if not values_H.is_floating_point():
        values_H = values_H.long()
    counts_N = offsets_N1.diff()
    width = max(1, int(counts_N.max())) if len(counts_N) else 1
    columns_K = torch.arange(width, device=offsets_N1.device)
    real_NK = columns_K < counts_N[:, None]
    if len(values_H) == 0:
        return torch.zeros_like(real_NK, dtype=values_H.dtype), real_NK
    places_NK = (offsets_N1[:-1, None] + columns_K).clamp(max=len(values_H) - 1)
    return values_H[places_NK], real_NK
