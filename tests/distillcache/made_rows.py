"""Rows of a made-up teacher at the edges of what a cache may hold, and the dense losses in float64."""

import dataclasses

import torch
from torch import Tensor

from distillcache.chunked_loss import Terms
from distillcache.linear_head import LinearHead
from distillcache.losses import TeacherRows, full_losses, row_losses

__all__ = ["dense_total", "factors", "in_dtype", "random_logprobs", "sampled", "tilted", "topk"]


def random_logprobs(num_rows: int, vocab_size: int, *, scale: float = 3.0, seed: int = 1) -> Tensor:
    """A teacher's, float64 [N, V]."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_rows, vocab_size, generator=generator, dtype=torch.float64)
    return logits.log_softmax(1)


def topk(logprobs_NV: Tensor, counts: list[int]) -> TeacherRows:
    """Rows that keep as many ids as `counts` says, in turns."""
    kept = [counts[n % len(counts)] for n in range(len(logprobs_NV))]
    values, ids = logprobs_NV.sort(descending=True, stable=True)
    return TeacherRows(
        "topk",
        torch.tensor([0, *kept]).cumsum(0),
        torch.cat([ids[n, :k] for n, k in enumerate(kept)]).int(),
        torch.cat([values[n, :k] for n, k in enumerate(kept)]),
        torch.stack([values[n, k:].exp().sum() for n, k in enumerate(kept)]),
        torch.zeros(len(kept) + 1, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int32),
        -(logprobs_NV.exp() * logprobs_NV).sum(1),
    )


def sampled(logprobs_NV: Tensor, tau: float = 1 / 12) -> TeacherRows:
    """Threshold sampling with draws by chance; the same id may be drawn twice."""
    heads, draws = [], []
    generator = torch.Generator().manual_seed(2)
    for p_V in logprobs_NV.exp():
        heads.append((p_V >= tau).nonzero()[:, 0])
        tail_V = torch.where(p_V < tau, p_V, 0.0)
        count = int(torch.ceil(tail_V.sum() / tau))
        draws.append(torch.multinomial(tail_V, count, replacement=True, generator=generator))
    return TeacherRows(
        "sampled",
        torch.tensor([0, *map(len, heads)]).cumsum(0),
        torch.cat(heads).int(),
        torch.cat([each[ids] for each, ids in zip(logprobs_NV, heads, strict=True)]),
        torch.stack([1 - each.exp()[ids].sum() for each, ids in zip(logprobs_NV, heads, strict=True)]),
        torch.tensor([0, *map(len, draws)]).cumsum(0),
        torch.cat(draws).int(),
        -(logprobs_NV.exp() * logprobs_NV).sum(1),
    )


def factors(vocab_size: int) -> Tensor:
    """Of a tilt, from a quarter to 4, neighbours far apart, [V]."""
    return 2 ** (4 * (torch.arange(vocab_size, dtype=torch.float64) * 0.618 % 1) - 2)


def tilted(logprobs_NV: Tensor, tau: float = 1 / 12, *, seed: int = 2) -> TeacherRows:
    """Threshold sampling of p times `factors`: a draw weighs tau over the factor; a row's mass is not 1."""
    generator = torch.Generator().manual_seed(seed)
    factors_V = factors(logprobs_NV.shape[1])
    tilted_NV = logprobs_NV.exp() * factors_V
    heads, draws = [], []
    for tilted_V in tilted_NV:
        by_weight = tilted_V.argsort(descending=True, stable=True)
        heads.append(by_weight[tilted_V[by_weight] >= tau])
        ends_V = torch.where(tilted_V < tau, tilted_V, 0.0).cumsum(0)
        points = tau * (torch.arange(len(ends_V)) + torch.rand(1, generator=generator, dtype=torch.float64))
        draws.append(torch.searchsorted(ends_V, points[points < ends_V[-1]], right=True))
    kept = [each[ids] for each, ids in zip(logprobs_NV, heads, strict=True)]
    draw_ids = torch.cat(draws)
    return TeacherRows(
        "sampled",
        torch.tensor([0, *map(len, heads)]).cumsum(0),
        torch.cat(heads).int(),
        torch.cat(kept),
        torch.stack([1 - each.exp().sum() for each in kept]),
        torch.tensor([0, *map(len, draws)]).cumsum(0),
        draw_ids.int(),
        -(logprobs_NV.exp() * logprobs_NV).sum(1),
        tau / factors_V[draw_ids],
    )


def in_dtype(rows: TeacherRows, dtype: torch.dtype) -> TeacherRows:
    """The same rows, their values rounded."""
    values = {name: value for name, value in vars(rows).items() if isinstance(value, Tensor)}
    floats = {name: value for name, value in values.items() if value.is_floating_point()}
    return dataclasses.replace(rows, **{name: value.to(dtype) for name, value in floats.items()})


def dense_total(
    head: LinearHead,
    hidden_ND: Tensor,
    targets_N: Tensor,
    terms: Terms,
    rows: TeacherRows | None,
    teacher_logits_NU: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The summed loss from whole logits by autograd, and the sums of hard loss, soft loss and KL."""
    logits_NV = head.hidden_scale * hidden_ND @ head.weight_VD.t()
    if head.bias_V is not None:
        logits_NV = logits_NV + head.bias_scale * head.bias_V
    if head.cap is not None:
        logits_NV = head.cap * (logits_NV / head.cap).tanh()
    if teacher_logits_NU is not None:
        losses = full_losses(
            logits_NV, targets_N, teacher_logits_NU, loss=terms.loss, temperature=terms.temperature
        )
    else:
        losses = row_losses(logits_NV, targets_N, rows, loss=terms.loss, temperature=terms.temperature)
    zero = logits_NV.new_zeros(1)
    soft_N = zero if losses.soft_N is None else losses.soft_N
    kl_N = zero if losses.kl_N is None else losses.kl_N
    return terms.total(losses).sum(), losses.hard_N.sum(), soft_N.sum(), kl_N.sum()
