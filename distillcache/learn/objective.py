"""What is minimised: alpha * hard + (1 - alpha) * soft, summed over the supervised positions of a batch.

Logits of all positions never exist at once: hidden states of the supervised ones go through the output head
in chunks, as `distillcache.chunked_loss` does it where the head is a matrix.
Of another head each chunk's logits are formed again in the backward pass, and of a model that cannot be run
apart they are whole.
Knows nothing of optimisers, caches or where a batch comes from.

B sequences, T positions, V vocabulary, N rows, D hidden size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distillcache.chunked_loss import SUMS, TeacherLogits, Terms, chunked_sums, sums_of
from distillcache.head import OutputHead
from distillcache.learn.data import IGNORED
from distillcache.losses import TeacherRows, full_losses, row_losses

__all__ = ["SUMS", "Objective", "batch_logits", "batch_sums"]

# Logits of one chunk in fp32, where autograd forms their gradient. From 32 MiB on, glibc takes every buffer
# anew from the system, which cost half as much again (V = 49,152, one core); below 16 MiB the head's matrix
# is read too often.
CHUNK_BYTES = 24 << 20


@dataclass(frozen=True)
class Objective:
    """What is minimised on a cache with one kind of row."""

    alpha: float  # weight of the hard loss
    soft_loss: str | None  # None: there is none
    temperature: float  # of the soft loss
    row_kind: str  # the cache's
    row_temperature: float  # at which `sampled` rows were drawn; 1 for `topk`
    # Their threshold, of tilted rows one for each id, [V]; None for rows without one.
    # It is the cache's, so the same at every step; and tensors do not compare to one answer.
    row_tau: float | Tensor | None = field(compare=False)

    @property
    def terms(self) -> Terms:
        """What is summed. Without a soft loss KL is reported at the temperature of the rows."""
        has_soft = self.soft_loss is not None
        return Terms(self.alpha, self.soft_loss, self.temperature if has_soft else self.row_temperature)


def batch_sums(
    head: OutputHead,
    objective: Objective,
    batch: Mapping[str, Any],
    *,
    teacher: OutputHead | None = None,
    num_ids: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss, summed over the rows of a batch, and without gradient all `SUMS`, [5].

    `batch` as `distillcache.learn.data.collate` makes it, on one device; without rows only a hard loss.
    Packed sequences come with `position_ids` in place of an `attention_mask`.
    `teacher`: a whole one to learn from, in place of rows, of which `num_ids` ids count: the tokenizer's.
    The gradient can be taken once.
    """
    assert teacher is None or "rows" not in batch
    inputs = _Inputs.of(batch)
    parts = _Parts(
        terms=objective.terms,
        targets_N=inputs.targets_N,
        rows=TeacherRows(objective.row_kind, **batch["rows"]) if "rows" in batch else None,
        teacher=None if teacher is None else _teacher_logits(teacher, inputs, num_ids),
    )
    if head.whole_logits:
        return _whole(head, inputs, parts)
    hidden_ND, linear = inputs.hidden(head), head.linear()
    if linear is None:
        return _computed_twice(head, hidden_ND, parts)
    return chunked_sums(
        linear,
        hidden_ND,
        parts.targets_N,
        parts.terms,
        rows=parts.rows,
        teacher=parts.teacher,
    )


def batch_logits(head: OutputHead, batch: Mapping[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [n, V] and targets [n] of the rows of a batch, in their order, a chunk at a time."""
    inputs = _Inputs.of(batch)
    start = 0
    for logits_nV in inputs.logits(head):
        targets_n = inputs.targets_N[start : start + len(logits_nV)].to(logits_nV.device)
        yield logits_nV, targets_n
        start += len(targets_n)


@dataclass(frozen=True)
class _Inputs:
    """What a model is given, and the positions where its predictions count."""

    batch: Mapping[str, Any]
    sequences_N: Tensor
    positions_N: Tensor
    targets_N: Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> "_Inputs":
        """Every position before a supervised token."""
        labels_BT = batch["labels"]
        sequences_N, positions_N = (labels_BT[:, 1:] != IGNORED).nonzero(as_tuple=True)
        return cls(batch, sequences_N, positions_N, labels_BT[sequences_N, positions_N + 1])

    def hidden(self, head: OutputHead) -> Tensor:
        """Hidden states there, [N, D]."""
        batch = self.batch
        hidden_BTD = head.hidden(batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids"))
        places_N = self.sequences_N * hidden_BTD.shape[1] + self.positions_N
        # Not by two indices, whose gradient is summed one element at a time.
        return hidden_BTD.flatten(0, 1).index_select(0, places_N.to(hidden_BTD.device))

    def logits(self, head: OutputHead) -> Iterator[Tensor]:
        """Logits there, in chunks."""
        return head.rows_logits(
            self.batch["input_ids"],
            self.batch.get("attention_mask"),
            self.sequences_N,
            self.positions_N,
            _chunk_rows(head),
            position_ids=self.batch.get("position_ids"),
        )


@dataclass(frozen=True)
class _Parts:
    """What logits of a batch are held against, of which any rows in one piece can be asked for."""

    terms: Terms
    targets_N: Tensor
    rows: TeacherRows | None
    teacher: TeacherLogits | None

    def sums(self, logits_nV: Tensor, start: int) -> Tensor:
        """`SUMS` of these logits of rows from `start` on, [5], by autograd."""
        stop = start + len(logits_nV)
        targets_n = self.targets_N[start:stop].to(logits_nV.device)
        loss, temperature = self.terms.loss, self.terms.temperature
        if self.teacher is not None:
            teacher_nU = self.teacher(start, stop).to(logits_nV)
            losses = full_losses(logits_nV, targets_n, teacher_nU, loss=loss, temperature=temperature)
        else:
            rows = None if self.rows is None else self.rows[start:stop]
            losses = row_losses(logits_nV, targets_n, rows, loss=loss, temperature=temperature)
        return sums_of(losses, self.terms)


def _whole(head: OutputHead, inputs: _Inputs, parts: _Parts) -> tuple[Tensor, Tensor]:
    """Of a model that must be run whole, whose logits are kept for the backward pass."""
    sums = torch.zeros(len(SUMS), device=parts.targets_N.device)
    start = 0
    for logits_nV in inputs.logits(head):
        sums = sums + parts.sums(logits_nV, start)
        start += len(logits_nV)
    return sums[0], sums.detach()


def _computed_twice(head: OutputHead, hidden_ND: Tensor, parts: _Parts) -> tuple[Tensor, Tensor]:
    """Of a head that is more than a matrix: each chunk's logits are formed again in the backward pass."""
    sums = torch.zeros(len(SUMS), device=parts.targets_N.device)
    step = _chunk_rows(head)
    for start in range(0, len(hidden_ND), step):
        sums = sums + checkpoint(
            lambda hidden_nD, start: parts.sums(head.logits(hidden_nD), start),
            hidden_ND[start : start + step],
            start,
            use_reentrant=False,
            # Such a head may drop out: the same again.
            preserve_rng_state=head.model.training,
        )
    return sums[0], sums.detach()


def _chunk_rows(head: OutputHead) -> int:
    return max(1, CHUNK_BYTES // (4 * int(head.model.config.get_text_config().vocab_size)))


@torch.no_grad()
def _teacher_logits(teacher: OutputHead, inputs: _Inputs, num_ids: int | None) -> TeacherLogits:
    """Of a whole teacher, a chunk at a time, unless its logits must be whole."""
    if teacher.whole_logits:
        found = list(inputs.logits(teacher))
        whole_NU = torch.cat(found) if found else torch.zeros(0, 1)
        return lambda start, stop: whole_NU[start:stop, :num_ids]
    hidden_ND, linear = inputs.hidden(teacher), teacher.linear()
    make = teacher.logits if linear is None else linear.logits

    @torch.no_grad()
    def logits(start: int, stop: int) -> Tensor:
        return make(hidden_ND[start:stop])[:, :num_ids]

    return logits
