"""Heads, hidden states and rows for the tests of losses in chunks, and the two ways to form a loss."""

from typing import Any

import torch
from torch import Tensor

from distillcache.chunked_loss import Terms, chunked_sums
from distillcache.linear_head import LinearHead
from distillcache.losses import LOSSES, TeacherRows
from tests.distillcache.made_rows import dense_total, in_dtype, random_logprobs, sampled, tilted, topk

N, V, D = 23, 90, 16
TEMPERATURES = (0.5, 1.0, 2.5, 4.0)
# What is learned from, and with which losses.
KINDS = [
    ("none", None),
    *(("topk", loss) for loss in LOSSES),
    ("sampled", "forward-kl"),
    ("tilted", "forward-kl"),
]
WHOLE = [("whole", loss) for loss in LOSSES if loss != "renormalised"]
HEADS = {
    "plain": {},
    "bias": {"bias": True, "bias_scale": 0.5, "hidden_scale": 0.25},
    "cap": {"cap": 2.0, "hidden_scale": 1.5},
}


def head_of(around: str, *, scale: float = 0.6, vocab_size: int = V) -> LinearHead:
    """A head of random parameters, float64."""
    settings: dict[str, Any] = dict(HEADS[around])
    generator = torch.Generator().manual_seed(5)
    weight_VD = scale * torch.randn(vocab_size, D, generator=generator, dtype=torch.float64)
    bias_V = torch.randn(vocab_size, generator=generator, dtype=torch.float64)
    return LinearHead(weight_VD, bias_V if settings.pop("bias", False) else None, **settings)


def hidden_of(num_rows: int = N, *, seed: int = 6) -> Tensor:
    return torch.randn(num_rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets_of(num_rows: int, vocab_size: int = V) -> Tensor:
    """Some of them are kept ids, some not."""
    return torch.arange(num_rows) * 7 % vocab_size


def rows_of(kind: str, num_rows: int = N, vocab_size: int = V) -> TeacherRows | None:
    """Rows of unequal size, some empty, one of all ids."""
    logprobs_NV = random_logprobs(num_rows, vocab_size)
    if kind == "topk":
        return topk(logprobs_NV, [4, 1, 0, 12, vocab_size - 1, 2, vocab_size])
    makers = {"sampled": sampled, "tilted": tilted}
    return makers[kind](logprobs_NV) if kind in makers else None


def as_leaves(
    head: LinearHead, hidden_ND: Tensor, dtype: torch.dtype
) -> tuple[LinearHead, Tensor, list[Tensor]]:
    """The same, rounded, and what gets gradients."""
    weight_VD = head.weight_VD.detach().to(dtype, copy=True).requires_grad_()
    bias_V = None if head.bias_V is None else head.bias_V.detach().to(dtype, copy=True).requires_grad_()
    hidden_ND = hidden_ND.detach().to(dtype, copy=True).requires_grad_()
    leaves = [hidden_ND, weight_VD] + ([] if bias_V is None else [bias_V])
    return LinearHead(weight_VD, bias_V, head.hidden_scale, head.bias_scale, head.cap), hidden_ND, leaves


def both(
    head: LinearHead,
    hidden_ND: Tensor,
    terms: Terms,
    rows: TeacherRows | None = None,
    teacher_NU: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Loss, hard, soft, KL and gradients: in chunks and fp32, and dense in float64 of the same numbers."""
    results = []
    targets_N = targets_of(len(hidden_ND), len(head.weight_VD))
    rows = None if rows is None else in_dtype(rows, torch.float32)
    teacher_NU = None if teacher_NU is None else teacher_NU.float()
    for dtype in (torch.float32, torch.float64):
        # Through fp32 in both cases, so that what differs is arithmetic alone.
        rounded_head, rounded_hidden, _ = as_leaves(head, hidden_ND, torch.float32)
        ours_head, ours_hidden, leaves = as_leaves(rounded_head, rounded_hidden.detach(), dtype)
        if dtype == torch.float32:
            teacher = None if teacher_NU is None else (lambda start, stop: teacher_NU[start:stop])
            loss, sums = chunked_sums(ours_head, ours_hidden, targets_N, terms, rows=rows, teacher=teacher)
            values = [loss, *sums[1:4]]
            assert sums[0] == loss.detach() and sums[4] == len(hidden_ND)
        else:
            wide = None if rows is None else in_dtype(rows, dtype)
            whole = None if teacher_NU is None else teacher_NU.double()
            values = list(dense_total(ours_head, ours_hidden, targets_N, terms, wide, whole))
        gradients = torch.autograd.grad(values[0], leaves)
        results.append([*(each.detach().double() for each in values), *(each.double() for each in gradients)])
    return results[0], results[1]


def close(found: list[Tensor], wanted: list[Tensor], *, smallest: float = 1e-2) -> None:
    """Values in proportion to themselves (or to a nat), gradients to their largest element.

    That is a difference of probabilities, which fp32 rounds at 1e-7 of 1, however small it is.
    """
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.isfinite().all()
        size = float(theirs.abs().max())
        least = 1.0 if theirs.ndim == 0 else smallest
        assert float((ours - theirs).abs().max()) <= 1e-5 * max(size, least)
