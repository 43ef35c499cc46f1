"""Logits become the gradient of a loss on them, in their own memory, and the loss of every row comes back.

Formulas are those of `distillcache.losses`.
What rows of a teacher ask of the logits is a few ids and one or two log-sums, and autograd handles that much:
of all ids there is a softmax, weighed by the derivative by its log-sum, and the few are added.
Against a whole teacher the gradient is formed by hand.
Names end in an underscore where logits are overwritten.
Knows nothing of heads, hidden states or batches. Nothing here has a gradient.

n rows, V vocabulary, U the teacher's, K kept ids, M draws.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distillcache.losses import (
    FORWARD_KL,
    JS,
    LOG_0,
    PaddedRows,
    Reads,
    RowLosses,
    TeacherRows,
    is_tempered,
    losses_of,
    teacher_logprobs,
)

__all__ = ["Terms", "from_rows_", "from_teacher_"]

# Logits that are passed over while a CPU has them in its cache; elsewhere the start of a kernel costs more.
BLOCK_BYTES = {"cpu": 4 << 20}
BLOCK_BYTES_ELSEWHERE = 32 << 20


@dataclass(frozen=True)
class Terms:
    """total = alpha * hard + (1 - alpha) * soft"""

    alpha: float  # weight of the hard loss
    soft_loss: str | None  # None: the hard loss is all, and its weight 1
    temperature: float  # of the soft loss; without one that at which KL is reported

    @property
    def loss(self) -> str:
        """The soft loss, or a name that every kind of row allows."""
        return FORWARD_KL if self.soft_loss is None else self.soft_loss

    def total(self, losses: RowLosses) -> Tensor:
        """Of every row, [N]."""
        if self.soft_loss is None:
            return losses.hard_N
        assert losses.soft_N is not None
        return self.alpha * losses.hard_N + (1 - self.alpha) * losses.soft_N

    @property
    def weights(self) -> tuple[float, float]:
        """Of the hard and of the soft loss."""
        return (1.0, 0.0) if self.soft_loss is None else (self.alpha, 1 - self.alpha)


def _blocks(logits_nV: Tensor) -> Iterator[slice]:
    """Rows to pass over together."""
    block_bytes = BLOCK_BYTES.get(logits_nV.device.type, BLOCK_BYTES_ELSEWHERE)
    step = max(1, block_bytes // (logits_nV.element_size() * logits_nV.shape[1]))
    for start in range(0, len(logits_nV), step):
        yield slice(start, min(start + step, len(logits_nV)))


def from_rows_(
    logits_nV: Tensor,
    targets_n: Tensor,
    rows: TeacherRows | None,
    terms: Terms,
    *,
    with_gradient: bool,
) -> RowLosses:
    """Losses against rows; logits become their gradient.

    What is read of the logits is a few ids and one or two log-sums, so the gradient is a softmax for each
    log-sum, weighed by the derivative there, and the derivatives at those ids.
    """
    n, vocab_size = logits_nV.shape
    first_n1 = torch.arange(n, device=logits_nV.device)[:, None] * vocab_size
    flat = logits_nV.view(-1)
    padded = None if rows is None else PaddedRows.of(rows, logits_nV.dtype)
    places = [first_n1[:, 0] + targets_n]
    if padded is not None:
        places += [first_n1 + padded.head_ids_NK, first_n1 + padded.draw_ids_NM]
    read = [flat[each] for each in places]
    tempered = rows is not None and is_tempered(rows.kind, terms.loss, terms.temperature)
    log_sum_n = torch.empty_like(read[0])
    tempered_n = torch.empty_like(log_sum_n) if tempered else None

    # Where losses are linear in what they read, their derivatives come first, and the softmax is weighed
    # while the cache still has it.
    is_linear = padded is None or padded.is_linear
    slopes: Reads | None = None
    if is_linear and with_gradient:
        log_sum_n.zero_()
        slopes = _slopes(_reads(read, log_sum_n, log_sum_n if tempered else None), padded, terms)
    elif not is_linear:
        assert padded is not None
        flat[places[1][padded.kept_NK]] = LOG_0

    spare_nV = torch.empty_like(logits_nV) if tempered and not is_linear else None
    for block in _blocks(logits_nV):
        z_nV = logits_nV[block]
        soft_nV = None
        if tempered_n is not None:
            soft_nV = torch.div(z_nV, terms.temperature, out=None if spare_nV is None else spare_nV[block])
            tempered_n[block] = _soften_(soft_nV)
        log_sum_n[block] = _soften_(z_nV)
        if slopes is not None and padded is not None:  # of the hard loss alone the weight is 1
            _weigh_(z_nV, soft_nV, slopes, block, terms)
    reads = _reads(read, log_sum_n, tempered_n)
    losses = losses_of(reads, padded, loss=terms.loss, temperature=terms.temperature)
    if with_gradient:
        if slopes is None:
            slopes = _slopes(reads, padded, terms)
            for block in _blocks(logits_nV):
                _weigh_(logits_nV[block], None if spare_nV is None else spare_nV[block], slopes, block, terms)
        added = [slopes.target_N, slopes.head_NK, slopes.draws_NM][: len(places)]
        for place, slope in zip(places, added, strict=True):
            assert slope is not None
            flat.index_add_(0, place.reshape(-1), slope.reshape(-1))
    return losses


def _reads(read: list[Tensor], log_sum_n: Tensor, tempered_n: Tensor | None) -> Reads:
    return Reads(read[0], log_sum_n, tempered_n, *read[1:])


def _soften_(logits_nV: Tensor) -> Tensor:
    """Logits become their softmax, and their log-sum comes back, [n]."""
    largest_n = logits_nV.amax(1)
    torch.softmax(logits_nV, 1, out=logits_nV)
    # The probability of the largest is 1 over the sum of exponentials.
    return largest_n - logits_nV.amax(1).log_()


def _slopes(reads: Reads, padded: PaddedRows | None, terms: Terms) -> Reads:
    """Derivatives of the total by what was read."""
    names = [name for name, value in vars(reads).items() if value is not None]
    with torch.enable_grad():
        leaves = {name: getattr(reads, name).detach().requires_grad_() for name in names}
        losses = losses_of(Reads(**leaves), padded, loss=terms.loss, temperature=terms.temperature)
        total = terms.total(losses).sum()
    slopes = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return Reads(**dict(zip(names, slopes, strict=True)))


def _weigh_(soft_nV: Tensor, tempered_nV: Tensor | None, slopes: Reads, block: slice, terms: Terms) -> None:
    """Softmaxes become the gradient by way of the log-sums."""
    soft_nV.mul_(slopes.log_sum_N[block, None])
    if tempered_nV is not None:
        assert slopes.tempered_N is not None
        soft_nV.addcmul_(tempered_nV, slopes.tempered_N[block, None], value=1 / terms.temperature)


def from_teacher_(
    logits_nV: Tensor, targets_n: Tensor, teacher_nU: Tensor, terms: Terms, *, with_gradient: bool
) -> RowLosses:
    """Losses against all logits of a teacher; logits become their gradient."""
    hard_n = torch.empty(len(logits_nV), dtype=logits_nV.dtype, device=logits_nV.device)
    soft_n, kl_n = torch.empty_like(hard_n), torch.empty_like(hard_n)
    hard_weight, soft_weight = terms.weights
    for block in _blocks(logits_nV):
        z_nV, t_nU = logits_nV[block], teacher_nU[block]
        width, temperature = z_nV.shape[1], terms.temperature
        log_q1_nV = z_nV.log_softmax(1)
        hard_n[block] = -log_q1_nV.gather(1, targets_n[block, None])[:, 0]
        log_p1_nV = teacher_logprobs(t_nU, width, terms.loss, 1.0)
        kl_n[block] = _expectation(log_p1_nV.exp(), log_p1_nV - log_q1_nV)
        if temperature == 1:
            log_p_nV, log_q_nV = log_p1_nV, log_q1_nV
        else:
            log_p_nV = teacher_logprobs(t_nU, width, terms.loss, temperature)
            log_q_nV = z_nV.div_(temperature).log_softmax(1)
        # By q: of every divergence here the derivative by z is q times this less its mean under q.
        q_nV = log_q_nV.exp()
        if terms.loss == FORWARD_KL:
            p_nV = log_p_nV.exp()
            divergence_n = _expectation(p_nV, log_p_nV - log_q_nV)
            gradient_nV = q_nV - p_nV
        elif terms.loss == JS:
            log_mix_nV = torch.logaddexp(log_p_nV, log_q_nV).sub_(math.log(2))
            surplus_nV = log_q_nV - log_mix_nV
            mean_n = _expectation(q_nV, surplus_nV)
            divergence_n = (mean_n + _expectation(log_p_nV.exp(), log_p_nV - log_mix_nV)) / 2
            gradient_nV = surplus_nV.sub_(mean_n[:, None]).mul_(q_nV).div_(2)
        else:
            surplus_nV = log_q_nV - log_p_nV
            divergence_n = _expectation(q_nV, surplus_nV)
            gradient_nV = surplus_nV.sub_(divergence_n[:, None]).mul_(q_nV)
        soft_n[block] = divergence_n.mul_(temperature**2)
        if with_gradient:
            torch.exp(log_q1_nV, out=z_nV)
            z_nV.mul_(hard_weight).add_(gradient_nV, alpha=soft_weight * temperature)
    if with_gradient:
        at_target_n = torch.full_like(hard_n, -hard_weight)
        logits_nV.scatter_add_(1, targets_n[:, None], at_target_n[:, None])
    return RowLosses(hard_n, soft_n, kl_n)


def _expectation(p_nV: Tensor, of_nV: Tensor) -> Tensor:
    """Sum over the vocabulary of p times something, [n]."""
    found: Tensor = torch.linalg.vecdot(p_nV, of_nV)
    return found
