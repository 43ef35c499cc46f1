"""Losses of many positions, of which one chunk of logits exists at a time, with gradients from the same pass.

A chunk's logits come from one product with the head's matrix, turn into the gradient on logits in their own
buffer, and leave as what they add to the gradients of hidden states and head: the backward pass only scales.
So memory does not grow with positions, and nothing is computed twice.
Knows nothing of models, batches or optimisers.

Tried and left out: a compiled chunk, since passes over logits are 5 to 10 % of the time of the products and
half of them is the exponential.
Kernels for CUDA (Liger, Cut Cross Entropy) know no rows of a teacher, and beside the products there is little
left to save.

N rows, n rows of a chunk, V vocabulary, U the teacher's, D hidden size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from distillcache.linear_head import HeadPass, LinearHead
from distillcache.logit_gradients import Terms, from_rows_, from_teacher_
from distillcache.losses import RowLosses, TeacherRows, check_loss, is_tempered

__all__ = ["SUMS", "TeacherLogits", "Terms", "chunked_sums", "sums_of"]

# What is summed over rows.
SUMS = ("loss", "hard", "soft", "kl", "rows")
# All buffers of a chunk. Products want many rows, since each chunk reads and writes the head's matrix.
CHUNK_BYTES = 80 << 20

# Logits of a whole teacher at rows start to stop, [n, U], without gradient.
TeacherLogits = Callable[[int, int], Tensor]


def chunked_sums(
    head: LinearHead,
    hidden_ND: Tensor,
    targets_N: Tensor,
    terms: Terms,
    *,
    rows: TeacherRows | None = None,
    teacher: TeacherLogits | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss, summed over N rows, with a gradient, and without one all `SUMS`, [5].

    Against `rows`, or against a whole `teacher`, or neither.
    The gradient can be taken once. Raises ValueError for a loss that the teacher's kind does not allow.
    """
    assert rows is None or teacher is None
    check_loss("whole" if teacher is not None else "topk" if rows is None else rows.kind, terms.loss)
    job = _Job(head, targets_N, terms, rows, teacher)
    inputs = (hidden_ND.to(head.weight_VD.device), head.weight_VD, head.bias_V)
    needs = [torch.is_grad_enabled() and each is not None and each.requires_grad for each in inputs]
    if not any(needs):
        sums, _ = job.run(inputs[0], (False, False, False))
        return sums[0], sums
    total, sums = _InOnePass.apply(job, *inputs)  # type: ignore[no-untyped-call]
    return total, sums


def sums_of(losses: RowLosses, terms: Terms) -> Tensor:
    """`SUMS` of rows, [5]; the first may have a gradient."""
    total_N = terms.total(losses)
    zero = total_N.new_zeros(())
    return torch.stack(
        [
            total_N.sum(),
            losses.hard_N.detach().sum(),
            zero if losses.soft_N is None else losses.soft_N.detach().sum(),
            zero if losses.kl_N is None else losses.kl_N.sum(),
            zero + len(total_N),
        ]
    )


class _InOnePass(torch.autograd.Function):
    """Values and gradients at once; backward only scales."""

    @staticmethod
    def forward(
        ctx: Any, job: "_Job", hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sums, ctx.gradients = job.run(hidden_ND, ctx.needs_input_grad[1:])
        ctx.mark_non_differentiable(sums)
        return sums[0].clone(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> Any:
        # In place, and let go of, so that the largest of them need not be copied to become `.grad`.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of a loss in chunks can be taken once; compute it again")
        return None, *(None if each is None else each.mul_(scale) for each in gradients)


@dataclass(frozen=True)
class _Job:
    """What is to be summed, whatever the hidden states are."""

    head: LinearHead
    targets_N: Tensor
    terms: Terms
    rows: TeacherRows | None
    teacher: TeacherLogits | None

    @torch.no_grad()
    def run(
        self, hidden_ND: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
        """`SUMS`, and the gradients of their first by hidden states, weight and bias, where needed."""
        num_rows, spares = len(hidden_ND), self._spares()
        row_bytes = self.head.vocab_size * (self.head.logit_bytes() + spares * self.head.sum_dtype.itemsize)
        num_chunks = max(1, math.ceil(num_rows / max(1, CHUNK_BYTES // row_bytes)))
        chunk_rows = math.ceil(num_rows / num_chunks)  # all of about one size
        passing = HeadPass(
            self.head,
            hidden_ND,
            chunk_rows,
            hidden_grad=needs[0],
            weight_grad=needs[1],
            bias_grad=needs[2],
        )
        sums = torch.zeros(len(SUMS), dtype=self.head.sum_dtype, device=hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, num_rows, max(1, chunk_rows)):
                stop = min(start + chunk_rows, num_rows)
                logits_nV = self.head.capped_(passing.uncapped(start, stop))
                sums += self._chunk(logits_nV, start, stop, any(needs))
                if any(needs):
                    passing.backward(start, stop, logits_nV)
        gradients = (passing.hidden_grad_ND, passing.weight_grad_VD, passing.bias_grad_V)
        likes = (hidden_ND, self.head.weight_VD, self.head.bias_V)
        return sums, tuple(  # type: ignore[return-value]
            None if each is None or like is None else each.to(like.dtype)
            for each, like in zip(gradients, likes, strict=True)
        )

    def _spares(self) -> int:
        """Buffers as large as the logits that a chunk takes beside them."""
        spares = int(self.head.cap is not None) + int(self.teacher is not None)
        if self.rows is not None and self.rows.kind != "sampled":
            spares += int(is_tempered(self.rows.kind, self.terms.loss, self.terms.temperature))
        return spares

    def _chunk(self, logits_nV: Tensor, start: int, stop: int, with_gradient: bool) -> Tensor:
        """`SUMS` of a chunk, whose logits become the gradient on them before the cap, if one is asked for."""
        targets_n = self.targets_N[start:stop]
        slope_nV = None
        if with_gradient and self.head.cap is not None:
            slope_nV = self.head.slope(logits_nV)
        if self.teacher is not None:
            teacher_nU = self.teacher(start, stop).to(logits_nV)
            losses = from_teacher_(logits_nV, targets_n, teacher_nU, self.terms, with_gradient=with_gradient)
        else:
            rows = None if self.rows is None else self.rows[start:stop]
            losses = from_rows_(logits_nV, targets_n, rows, self.terms, with_gradient=with_gradient)
        if slope_nV is not None:
            logits_nV.mul_(slope_nV)
        return sums_of(losses, self.terms)
