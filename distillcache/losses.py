"""Losses of a student at supervised positions: against the true next token, and against what a teacher said.

A loss per row, in nats, of N positions and the teacher's rows of the same positions, or all of its logits.
Rows ask little of the student's logits, which `Reads` names: those of a few ids, and one or two log-sums of
all others. So `losses_of` is the one place of their formulas, for whole logits (`row_losses`) and for others.
Nothing is clamped, and a term is never the difference of two numbers near one.
Knows nothing of models, caches, chunks or batches.

N rows, V vocabulary, U the teacher's, K kept ids of the longest row, M draws of the longest row, H kept ids
and D draws of all rows.

Notation: p the teacher, q the student, S the kept ids of a row, m and Q their mass, T the temperature.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "FORWARD_KL",
    "JS",
    "LOG_0",
    "LOSSES",
    "RENORMALISED",
    "REVERSE_KL",
    "PaddedRows",
    "Reads",
    "RowLosses",
    "TeacherRows",
    "check_loss",
    "full_losses",
    "is_tempered",
    "losses_of",
    "row_losses",
    "teacher_logprobs",
]

FORWARD_KL, REVERSE_KL, JS, RENORMALISED = "forward-kl", "reverse-kl", "js", "renormalised"
LOSSES = (FORWARD_KL, REVERSE_KL, JS, RENORMALISED)

# Stands for the logarithm of 0: its exponential is 0, and 0 times it is 0, where infinity would be no number.
LOG_0 = -1e30
# A teacher's mass of 0 is one that fp32 cannot tell from 0 beside 1; reverse KL asks for its logarithm.
LOG_TAIL_UNSEEN = -24 * math.log(2)


@dataclass(frozen=True)
class TeacherRows:
    """What the teacher said at N positions, as flat tensors on one device.

    Row n keeps ids `head_ids[head_offsets[n]:head_offsets[n + 1]]`, most likely first, and so its draws.
    `topk`: no draws. `sampled`: each draw weighs the tail mass over the number of draws of its row, or, of
    tilted rows, whose most likely id need not stand first, what `draw_weights` says.
    """

    kind: str  # "topk" or "sampled"
    head_offsets: Tensor  # int64 [N + 1]
    head_ids: Tensor  # int64 or int32 [H]
    head_logprobs: Tensor  # [H], natural log, full softmax
    tail_mass: Tensor  # [N]
    draw_offsets: Tensor  # int64 [N + 1]
    draw_ids: Tensor  # int64 or int32 [D]
    entropy: Tensor  # [N], nats
    draw_weights: Tensor | None = None  # [D]; None: none has a weight of its own

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
            None if self.draw_weights is None else self.draw_weights[drawn],
        )

    def weights_of_draws(self, dtype: torch.dtype) -> Tensor:
        """What every draw weighs, [D]."""
        if self.draw_weights is not None:
            return self.draw_weights.to(dtype)
        draws_N = self.draw_offsets.diff()
        weight_N = self.tail_mass.to(dtype) / draws_N.clamp(min=1)
        return torch.repeat_interleave(weight_N, draws_N, output_size=len(self.draw_ids))

    def top1(self, least: float = 0.0) -> Tensor:
        """The most likely id of each row, int64 [N]; -1 where none of at least this probability is kept."""
        ids_NK, kept_NK = _padded(self.head_offsets, self.head_ids)
        logprobs_NK = _padded(self.head_offsets, self.head_logprobs)[0].masked_fill(~kept_NK, LOG_0)
        best_N1 = logprobs_NK.argmax(1, keepdim=True)  # the first of equal ones
        is_kept_N1 = logprobs_NK.gather(1, best_N1) >= (math.log(least) if least else LOG_0 / 2)
        return torch.where(is_kept_N1, ids_NK.gather(1, best_N1), -1)[:, 0]


@dataclass(frozen=True)
class PaddedRows:
    """`TeacherRows` side by side, as wide as the longest; K and M are at least 1."""

    rows: TeacherRows
    head_ids_NK: Tensor  # int64; any id where padded
    kept_NK: Tensor  # bool; False pads a short row
    logprobs_NK: Tensor  # the teacher's, LOG_0 where padded
    draw_ids_NM: Tensor
    draw_weights_NM: Tensor  # 0 where padded

    @classmethod
    def of(cls, rows: TeacherRows, dtype: torch.dtype) -> "PaddedRows":
        """With values in this dtype."""
        head_ids_NK, kept_NK = _padded(rows.head_offsets, rows.head_ids)
        logprobs_NK = _padded(rows.head_offsets, rows.head_logprobs.to(dtype))[0]
        draw_ids_NM, drawn_NM = _padded(rows.draw_offsets, rows.draw_ids)
        weights_NM = _padded(rows.draw_offsets, rows.weights_of_draws(dtype))[0] * drawn_NM
        return cls(
            rows, head_ids_NK, kept_NK, logprobs_NK.masked_fill(~kept_NK, LOG_0), draw_ids_NM, weights_NM
        )

    @property
    def is_linear(self) -> bool:
        """True if losses of these rows are linear in what they read, so that gradients precede values."""
        return self.rows.kind == "sampled"


@dataclass(frozen=True)
class Reads:
    """All that the losses of N rows ask of their logits."""

    target_N: Tensor  # of the true next token
    # logsumexp: of `topk` rows over the ids that they do not keep (about LOG_0 where there are none), else of
    # all ids.
    log_sum_N: Tensor
    tempered_N: Tensor | None = None  # the same of the logits over T; where `is_tempered`
    head_NK: Tensor | None = None  # of kept ids; anything finite where padded, and so below
    draws_NM: Tensor | None = None


@dataclass(frozen=True)
class RowLosses:
    """Losses of N rows, in nats."""

    hard_N: Tensor  # cross-entropy with the true next token, at temperature 1
    soft_N: Tensor | None  # against the teacher, with the factor T squared; None without rows
    # KL(p || q) of `topk` rows over K + 1 buckets at temperature 1; of `sampled` rows an estimate of the
    # whole, at their own temperature, that may be below 0 in one row; of a whole teacher at temperature 1.
    # No gradient; None without a teacher.
    kl_N: Tensor | None


def check_loss(kind: str, loss: str) -> None:
    """Raises ValueError for a loss that these rows (or `whole`, all logits of a teacher) do not allow."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, found {loss!r}")
    if kind == "sampled" and loss != FORWARD_KL:
        raise ValueError(f"sampled rows allow the loss {FORWARD_KL} alone, found {loss!r}")
    if kind == "whole" and loss == RENORMALISED:
        raise ValueError(f"a whole teacher needs no loss {RENORMALISED!r}; take {FORWARD_KL!r}")


def is_tempered(kind: str, loss: str, temperature: float) -> bool:
    """Whether a loss of rows asks for a log-sum of logits over T, beside that at temperature 1."""
    return temperature != 1 and (kind == "sampled" or loss == RENORMALISED)


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
    check_loss("topk" if rows is None else rows.kind, loss)
    target_N = logits_NV.gather(1, targets_N[:, None])[:, 0]
    if rows is None:
        return losses_of(Reads(target_N, logits_NV.logsumexp(1)), None, loss=loss, temperature=temperature)
    padded = PaddedRows.of(rows, logits_NV.dtype)
    summed_NV = logits_NV
    if rows.kind == "topk":
        log_0 = torch.tensor(LOG_0, dtype=logits_NV.dtype, device=logits_NV.device)
        row_H = padded.kept_NK.nonzero()[:, 0]
        summed_NV = logits_NV.index_put((row_H, padded.head_ids_NK[padded.kept_NK]), log_0)
    tempered = is_tempered(rows.kind, loss, temperature)
    reads = Reads(
        target_N,
        summed_NV.logsumexp(1),
        (summed_NV / temperature).logsumexp(1) if tempered else None,
        logits_NV.gather(1, padded.head_ids_NK),
        logits_NV.gather(1, padded.draw_ids_NM),
    )
    return losses_of(reads, padded, loss=loss, temperature=temperature)


def losses_of(reads: Reads, padded: PaddedRows | None, *, loss: str, temperature: float) -> RowLosses:
    """As `row_losses`, from what they ask of the logits."""
    if padded is None:
        return RowLosses(reads.log_sum_N - reads.target_N, None, None)
    if padded.rows.kind == "sampled":
        kl_N = _sampled_kl(reads, padded, temperature)
        return RowLosses(reads.log_sum_N - reads.target_N, temperature**2 * kl_N, kl_N.detach())
    split = _Split.of(reads, padded)
    hard_N = split.log_sum_N - reads.target_N
    with torch.no_grad():
        kl_N = _bucket_divergence(split, FORWARD_KL, 1.0)
    if loss == RENORMALISED:
        soft_N = _renormalised(reads, split, temperature)
    else:
        soft_N = _bucket_divergence(split, loss, temperature)
    return RowLosses(hard_N, soft_N, kl_N)


def full_losses(
    logits_NV: Tensor,
    targets_N: Tensor,
    teacher_logits_NU: Tensor,
    *,
    loss: str = FORWARD_KL,
    temperature: float = 1.0,
) -> RowLosses:
    """Hard and soft loss of every row against all logits of a teacher: full distillation.

    Divergences over the whole vocabulary of the student at temperature T, times T squared.
    Raises ValueError for a loss that is not for a whole teacher.
    """
    check_loss("whole", loss)
    teacher_NU = teacher_logits_NU.to(logits_NV.dtype)

    def logprobs(temperature: float) -> tuple[Tensor, Tensor]:
        vocab_size = logits_NV.shape[1]
        log_p_NV = teacher_logprobs(teacher_NU, vocab_size, loss, temperature)
        return log_p_NV, (logits_NV / temperature).log_softmax(1)

    log_p_NV, log_q_NV = logprobs(temperature)
    if loss == FORWARD_KL:
        soft_N = _kl(log_p_NV, log_q_NV)
    elif loss == REVERSE_KL:
        soft_N = _kl(log_q_NV, log_p_NV)
    else:
        log_mix_NV = torch.logaddexp(log_p_NV, log_q_NV) - math.log(2)
        soft_N = 0.5 * (_kl(log_p_NV, log_mix_NV) + _kl(log_q_NV, log_mix_NV))
    hard_N = -logits_NV.log_softmax(1).gather(1, targets_N[:, None])[:, 0]
    with torch.no_grad():
        kl_N = _kl(*logprobs(1.0))
    return RowLosses(hard_N, temperature**2 * soft_N, kl_N)


def teacher_logprobs(
    teacher_logits_NU: Tensor, vocab_size: int, loss: str, temperature: float, out_NV: Tensor | None = None
) -> Tensor:
    """The teacher's log-probabilities at temperature T over the student's vocabulary, [N, V].

    Ids that the student lacks have no part in the softmax; those that the teacher lacks have none of its mass
    (for reverse KL, which asks for its logarithm, as little as fp32 can tell from none).
    """
    shared = min(vocab_size, teacher_logits_NU.shape[1])
    if out_NV is None:
        out_NV = teacher_logits_NU.new_empty(len(teacher_logits_NU), vocab_size)
    out_NV[:, shared:] = LOG_TAIL_UNSEEN if loss == REVERSE_KL else LOG_0
    torch.log_softmax(teacher_logits_NU[:, :shared] / temperature, 1, out=out_NV[:, :shared])
    return out_NV


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
    def of(cls, reads: Reads, padded: PaddedRows) -> "_Split":
        assert reads.head_NK is not None
        logits_NK = reads.head_NK.masked_fill(~padded.kept_NK, LOG_0)
        # log(1 - Q) over the ids outside: from Q itself, nothing of it is left where Q is near 1.
        log_in_N, log_out_N = logits_NK.logsumexp(1), reads.log_sum_N
        full_N = log_out_N < LOG_0 / 2
        tail_N = torch.where(full_N, 0.0, padded.rows.tail_mass.to(logits_NK.dtype))
        log_p_N2 = torch.stack([padded.logprobs_NK.logsumexp(1), tail_N.log().clamp(min=LOG_0)], 1)
        return cls(
            padded.kept_NK,
            logits_NK,
            padded.logprobs_NK,
            torch.logaddexp(log_in_N, log_out_N),
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


def _renormalised(reads: Reads, split: _Split, temperature: float) -> Tensor:
    """KL from the kept ids made to sum to 1 to the student's whole softmax, times T squared, [N].

    For comparison with the literature: it asks the student to put nothing outside the kept ids.
    """
    log_p_NK = (split.logprobs_NK / temperature).log_softmax(1)
    log_sum_N = split.log_sum_N
    if reads.tempered_N is not None:
        log_sum_N = torch.logaddexp((split.logits_NK / temperature).logsumexp(1), reads.tempered_N)
    log_q_NK = split.logits_NK / temperature - log_sum_N[:, None]
    return temperature**2 * (log_p_NK.exp() * (log_p_NK - log_q_NK) * split.kept_NK).sum(1)


def _sampled_kl(reads: Reads, padded: PaddedRows, temperature: float) -> Tensor:
    """Cross-entropy with the sampled target, less the teacher's entropy, [N]: in expectation KL(p || q).

    Its gradient on z / T is q minus the target, whose expectation over draws is p.
    Of tilted rows q is first multiplied by the row's mass, which is 1 on average too.
    """
    assert reads.head_NK is not None and reads.draws_NM is not None
    rows, dtype = padded.rows, reads.target_N.dtype
    log_sum_N1 = (reads.log_sum_N if reads.tempered_N is None else reads.tempered_N)[:, None]
    surprise_NK = log_sum_N1 - reads.head_NK / temperature
    head_N = (padded.logprobs_NK.exp() * surprise_NK * padded.kept_NK).sum(1)
    surprise_NM = log_sum_N1 - reads.draws_NM / temperature
    tail_N = (padded.draw_weights_NM * surprise_NM).sum(1)
    return head_N + tail_N - rows.entropy.to(dtype)


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
