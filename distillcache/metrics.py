"""What is measured of a student at supervised positions, beside losses: agreement, calibration, acceptance.

Per row, from whole logits of N positions and either what a cache kept of the teacher or all its logits; then
sums, in float64, that may be added over chunks, batches and ranks; then their means.
Knows nothing of models, caches, chunks or batches. Nothing here has a gradient.

N rows, V vocabulary, H kept ids of all rows, D draws of all rows, M bins of confidence.

Notation: p the teacher, q the student, R the teacher's mass outside the kept ids.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distillcache.losses import TeacherRows, row_losses

__all__ = [
    "NUM_BINS",
    "NUM_SUMS",
    "Bin",
    "Means",
    "RowMetrics",
    "acceptance_bounds",
    "exact_metrics",
    "means",
    "perplexity",
    "row_metrics",
    "stderr_of_mean",
    "summed",
]

NUM_BINS = 15
# What `summed` sums, in its order; after these come count, confidence and correct answers of every bin.
SUMS = ("rows", "hard", "correct", "kl_rows", "kl", "asked", "agree", "bounded", "accept_low", "accept_high")
NUM_SUMS = len(SUMS) + 3 * NUM_BINS


@dataclass(frozen=True)
class RowMetrics:
    """Of N rows. What only a teacher can tell is None without one."""

    hard_N: Tensor  # cross-entropy with the true next token, nats
    confidence_N: Tensor  # the student's largest probability
    correct_N: Tensor  # bool: its likeliest id is the true next token
    kl_N: Tensor | None = None  # KL(p || q), nats; as in `RowLosses` where the teacher is known by rows
    agree_N: Tensor | None = None  # int8: 1 where both have the same likeliest id, 0 where not, -1 unknown
    # The probability that q's draft of one token is accepted, sum over ids of min(p, q), lies between these.
    accept_low_N: Tensor | None = None
    accept_high_N: Tensor | None = None


@torch.no_grad()
def row_metrics(
    logits_NV: Tensor,
    targets_N: Tensor,
    rows: TeacherRows | None = None,
    *,
    temperature: float = 1.0,
    tau: float | Tensor | None = None,
) -> RowMetrics:
    """Metrics against what a cache kept, from the student's logits in fp32 or wider.

    `temperature`: at which `sampled` rows were drawn; KL and acceptance are then those at this temperature.
    `tau`: the threshold of `sampled` rows, or of tilted ones each id's, [V]; None for rows that were drawn
    without one: what is drawn often is not surely likely, so they tell no likeliest id and nothing of
    acceptance.
    """
    top = _top(logits_NV, targets_N)
    if rows is None:
        return RowMetrics(row_losses(logits_NV, targets_N).hard_N, *top)
    losses = row_losses(logits_NV, targets_N, rows, temperature=temperature)
    if rows.kind == "sampled" and tau is None:
        return RowMetrics(losses.hard_N, *top, losses.kl_N)
    # What a tilted row does not keep is below some threshold, but not below every one.
    teachers_N = rows.top1(float(tau.max()) if isinstance(tau, Tensor) else 0.0)
    agree_N = (logits_NV.argmax(1) == teachers_N).to(torch.int8).masked_fill(teachers_N < 0, -1)
    low_N, high_N = acceptance_bounds(logits_NV, rows, temperature=temperature, tau=tau)
    return RowMetrics(losses.hard_N, *top, losses.kl_N, agree_N, low_N, high_N)


@torch.no_grad()
def exact_metrics(logits_NV: Tensor, targets_N: Tensor, teacher_logprobs_NW: Tensor) -> RowMetrics:
    """Metrics against the teacher's whole distribution at temperature 1, -inf where an id is not valid.

    W, the teacher's vocabulary, may differ from V by padding; valid ids are below both.
    """
    width = min(logits_NV.shape[1], teacher_logprobs_NW.shape[1])
    log_p_NW = teacher_logprobs_NW[:, :width]
    log_q_NV = logits_NV.log_softmax(1)
    log_q_NW = log_q_NV[:, :width]
    p_NW = log_p_NW.exp()
    # 0 log 0 is 0, where -inf times 0 would be no number.
    terms_NW = torch.where(p_NW > 0, p_NW * (log_p_NW - log_q_NW), 0.0)
    accept_N = torch.minimum(p_NW, log_q_NW.exp()).sum(1)
    return RowMetrics(
        -log_q_NV.gather(1, targets_N[:, None])[:, 0],
        *_top(logits_NV, targets_N),
        terms_NW.sum(1),
        (logits_NV.argmax(1) == log_p_NW.argmax(1)).to(torch.int8),
        accept_N,
        accept_N,
    )


def _top(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    top = logits_NV.max(1)
    return (top.values - logits_NV.logsumexp(1)).exp(), top.indices == targets_N


@torch.no_grad()
def acceptance_bounds(
    logits_NV: Tensor,
    rows: TeacherRows,
    *,
    temperature: float = 1.0,
    tau: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Between what the sum of min(p, q) lies, each [N]: the acceptance of speculative decoding.

    That a draft from q is accepted with this probability: Leviathan et al. 2023, theorem 3.5.
    On the kept ids it is known. Outside, both bounds follow from the masses, and at most min(R, 1 - Q) is
    accepted.
    `sampled` rows say more, by `tau`, below which every p outside the head lies, of tilted rows each below
    its own:
    min(p, q) is at most min(tau, q), and at least p min(1, q / tau), whose sum the draws estimate without
    bias.
    Their bounds hold on average over rows and, since head values were rounded, the upper one but for a part
    of a rounding step, where q lies within the same step as p.
    """
    scaled_NV = logits_NV / temperature
    log_sum_N = scaled_NV.logsumexp(1)
    zero_N = torch.zeros_like(log_sum_N)

    def at(offsets_N1: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of the ids of each row: which row it is, and q."""
        numbers_N = torch.arange(len(rows), device=ids.device)
        row_of = torch.repeat_interleave(numbers_N, offsets_N1.diff(), output_size=len(ids))
        return row_of, (scaled_NV[row_of, ids.long()] - log_sum_N[row_of]).exp()

    row_H, q_H = at(rows.head_offsets, rows.head_ids)
    head_N = zero_N.index_add(0, row_H, torch.minimum(rows.head_logprobs.to(q_H.dtype).exp(), q_H))
    tail_N = rows.tail_mass.to(logits_NV.dtype)
    if rows.kind == "sampled" and tau is not None:
        tau_V = _over(tau, logits_NV)
        row_D, q_D = at(rows.draw_offsets, rows.draw_ids)
        shared_D = (q_D / tau_V[rows.draw_ids.long()]).clamp(max=1)
        low_N = head_N.index_add(0, row_D, rows.weights_of_draws(q_D.dtype) * shared_D)
        capped_NV = torch.minimum((scaled_NV - log_sum_N[:, None]).exp_(), tau_V)
        rest_N = capped_NV.sum(1).index_add(0, row_H, -capped_NV[row_H, rows.head_ids.long()])
    else:
        low_N = head_N
        rest_N = 1 - zero_N.index_add(0, row_H, q_H)
    high_N = head_N + torch.minimum(tail_N, rest_N.clamp(min=0))
    return torch.minimum(low_N, high_N), high_N


def _over(tau: float | Tensor, logits_NV: Tensor) -> Tensor:
    """Thresholds of the student's ids, [V]: 0 of those that the teacher lacks."""
    if not isinstance(tau, Tensor):
        return logits_NV.new_full((logits_NV.shape[1],), tau)
    tau_V = logits_NV.new_zeros(logits_NV.shape[1])
    width = min(len(tau_V), len(tau))
    tau_V[:width] = tau[:width]
    return tau_V


def summed(metrics: RowMetrics) -> Tensor:
    """Sums over rows, float64 [NUM_SUMS], on the CPU: to be added to others, then given to `means`."""

    def total(values_N: Tensor | None) -> float:
        return 0.0 if values_N is None else float(values_N.cpu().double().sum())

    num_rows = len(metrics.hard_N)
    agree_N = metrics.agree_N
    values = {
        "rows": num_rows,
        "hard": total(metrics.hard_N),
        "correct": total(metrics.correct_N),
        "kl_rows": 0 if metrics.kl_N is None else num_rows,
        "kl": total(metrics.kl_N),
        "asked": 0 if agree_N is None else total(agree_N >= 0),
        "agree": 0 if agree_N is None else total(agree_N == 1),
        "bounded": 0 if metrics.accept_low_N is None else num_rows,
        "accept_low": total(metrics.accept_low_N),
        "accept_high": total(metrics.accept_high_N),
    }
    confidence_N = metrics.confidence_N.cpu().double()
    # Bins of equal width, open below and closed above: ((m - 1) / M, m / M].
    bin_N = (confidence_N * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    bins_3M = torch.zeros(3, NUM_BINS, dtype=torch.float64)
    parts = (torch.ones_like(confidence_N), confidence_N, metrics.correct_N.cpu().double())
    for row_M, values_N in zip(bins_3M, parts, strict=True):
        row_M.index_add_(0, bin_N, values_N)
    plain = torch.tensor([values[name] for name in SUMS], dtype=torch.float64)
    return torch.cat([plain, bins_3M.flatten()])


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence falls in one bin; all 0 where there are none."""

    num_rows: int
    confidence: float  # mean
    accuracy: float


@dataclass(frozen=True)
class Means:
    """Over rows. None where no row tells."""

    num_rows: int
    hard_loss: float  # nats
    perplexity: float
    accuracy: float  # share of rows whose true next token is the student's likeliest
    kl: float | None  # nats
    top1_agreement: float | None
    num_asked: int  # rows that tell the teacher's likeliest id
    acceptance_low: float | None
    acceptance_high: float | None
    calibration_error: float  # expected, of the likeliest id
    bins: tuple[Bin, ...]


def means(sums: Tensor) -> Means:
    """Means of what `summed` gave, added up; of at least one row.

    Expected calibration error: sum over bins of their share of rows times |accuracy - mean confidence|
    (Guo et al. 2017, equation 3), of 15 bins.
    """
    sum_of = dict(zip(SUMS, sums.tolist(), strict=False))
    rows = sum_of["rows"]
    counts_M, confidence_M, correct_M = sums[len(SUMS) :].view(3, NUM_BINS).tolist()
    found = zip(counts_M, confidence_M, correct_M, strict=True)
    bins = tuple(Bin(round(n), c / max(n, 1), right / max(n, 1)) for n, c, right in found)

    def mean(name: str, count: str) -> float | None:
        return sum_of[name] / sum_of[count] if sum_of[count] else None

    hard_loss = sum_of["hard"] / rows
    return Means(
        num_rows=round(rows),
        hard_loss=hard_loss,
        perplexity=perplexity(hard_loss),
        accuracy=sum_of["correct"] / rows,
        kl=mean("kl", "kl_rows"),
        top1_agreement=mean("agree", "asked"),
        num_asked=round(sum_of["asked"]),
        acceptance_low=mean("accept_low", "bounded"),
        acceptance_high=mean("accept_high", "bounded"),
        calibration_error=sum(each.num_rows * abs(each.accuracy - each.confidence) for each in bins) / rows,
        bins=bins,
    )


def perplexity(hard_loss: float) -> float:
    """exp of a cross-entropy in nats; infinite where a float cannot hold it."""
    return math.exp(hard_loss) if hard_loss < 700 else math.inf


def stderr_of_mean(sums_G: Tensor, counts_G: Tensor) -> float | None:
    """Standard error of sum(sums) / sum(counts), of G groups that are independent of each other.

    Rows of one text are not: their errors are added up by text first (the linearised variance of a ratio,
    Cochran 1977, equation 6.13). None for fewer than two groups.
    """
    num_groups = len(sums_G)
    if num_groups < 2:
        return None
    sums_G, counts_G = sums_G.double(), counts_G.double()
    total = counts_G.sum()
    residuals_G = sums_G - sums_G.sum() / total * counts_G
    return float((num_groups / (num_groups - 1) * residuals_G.square().sum()).sqrt() / total)
