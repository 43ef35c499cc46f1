"""What is minimised: alpha * hard + (1 - alpha) * soft, summed over the supervised positions of a batch.

Logits of all positions never exist at once: hidden states of the supervised ones go through the output head
in chunks, whose logits are formed again in the backward pass instead of being kept.
Knows nothing of optimisers, caches or where a batch comes from.

B sequences, T positions, V vocabulary, N rows, D hidden size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distillcache.head import OutputHead
from distillcache.learn.data import IGNORED
from distillcache.losses import TeacherRows, row_losses

__all__ = ["SUMS", "Objective", "Scores", "batch_sums"]

# Logits of one chunk in fp32. From 32 MiB on, glibc takes every buffer anew from the system, which cost half
# as much again (V = 49,152, one core); below 16 MiB the head's matrix is read too often.
CHUNK_BYTES = 24 << 20
# What is summed over rows; `agree` of those of which the teacher's most likely id is known, `asked`.
SUMS = ("loss", "hard", "soft", "kl", "rows", "agree", "asked")


@dataclass(frozen=True)
class Objective:
    """What is minimised on a cache with one kind of row."""

    alpha: float  # weight of the hard loss
    soft_loss: str | None  # None: there is none
    temperature: float  # of the soft loss
    row_kind: str  # the cache's
    row_temperature: float  # at which `sampled` rows were drawn; 1 for `topk`


@dataclass(frozen=True)
class Scores:
    """A student's on held-out rows, in nats a row."""

    hard_loss: float
    perplexity: float
    # To the teacher: of `topk` rows over K + 1 buckets at temperature 1, of `sampled` rows an estimate.
    kl: float
    top1_agreement: float | None  # share of rows; None where no row tells the teacher's first id
    num_rows: int


def batch_sums(
    head: OutputHead, objective: Objective, batch: Mapping[str, Any], *, agreement: bool
) -> tuple[Tensor, Tensor]:
    """The loss, summed over the rows of a batch, and without gradient all `SUMS`, [7].

    `batch` as `distillcache.learn.data.collate` makes it, on one device; without rows only a hard loss.
    `agreement`: also count where the likeliest ids of student and teacher are the same.
    """
    labels_BT = batch["labels"]
    sequences_N, positions_N = (labels_BT[:, 1:] != IGNORED).nonzero(as_tuple=True)
    targets_N = labels_BT[sequences_N, positions_N + 1]
    rows = TeacherRows(objective.row_kind, **batch["rows"]) if "rows" in batch else None
    vocab_size = head.model.config.get_text_config().vocab_size
    chunk = max(1, CHUNK_BYTES // (4 * vocab_size))

    def part(logits_nV: Tensor, start: int) -> Tensor:
        stop = start + len(logits_nV)
        return _chunk_sums(
            objective, logits_nV, targets_N[start:stop], rows[start:stop] if rows else None, agreement
        )

    def part_of_hidden(hidden_nD: Tensor, start: int) -> Tensor:
        return part(head.logits(hidden_nD), start)

    sums = torch.zeros(len(SUMS), device=labels_BT.device)
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    if head.whole_logits:
        start = 0
        for logits_nV in head.rows_logits(ids_BT, mask_BT, sequences_N, positions_N, chunk):
            sums = sums + part(logits_nV, start)
            start += len(logits_nV)
    else:
        hidden_ND = head.hidden(ids_BT, mask_BT)[sequences_N, positions_N]
        for start in range(0, len(targets_N), chunk):
            sums = sums + checkpoint(
                part_of_hidden,
                hidden_ND[start : start + chunk],
                start,
                use_reentrant=False,
                preserve_rng_state=False,
            )
    return sums[0], sums.detach()


def _chunk_sums(
    objective: Objective, logits_nV: Tensor, targets_n: Tensor, rows: TeacherRows | None, agreement: bool
) -> Tensor:
    """`SUMS` of one chunk, [7]; the first has a gradient."""
    if objective.soft_loss is None:
        temperature = objective.row_temperature
        losses = row_losses(logits_nV, targets_n, rows, temperature=temperature)
        total_n = losses.hard_N
    else:
        assert rows is not None
        temperature = objective.temperature
        losses = row_losses(logits_nV, targets_n, rows, loss=objective.soft_loss, temperature=temperature)
        assert losses.soft_N is not None
        total_n = objective.alpha * losses.hard_N + (1 - objective.alpha) * losses.soft_N
    zero = total_n.new_zeros(())
    agree = asked = zero
    if agreement and rows is not None:
        top1_n = rows.top1()
        agree = (logits_nV.argmax(1) == top1_n).sum().to(zero)
        asked = (top1_n >= 0).sum().to(zero)
    return torch.stack(
        [
            total_n.sum(),
            losses.hard_N.detach().sum(),
            zero if losses.soft_N is None else losses.soft_N.detach().sum(),
            zero if losses.kl_N is None else losses.kl_N.sum(),
            zero + len(targets_n),
            agree,
            asked,
        ]
    )


def scores(sums: Mapping[str, float]) -> Scores:
    """Means of summed rows. Needs at least one row."""
    rows = sums["rows"]
    hard_loss = sums["hard"] / rows
    return Scores(
        hard_loss=hard_loss,
        perplexity=perplexity(hard_loss),
        kl=sums["kl"] / rows,
        top1_agreement=sums["agree"] / sums["asked"] if sums["asked"] else None,
        num_rows=round(rows),
    )


def perplexity(hard_loss: float) -> float:
    """exp of a cross-entropy in nats; infinite where a float cannot hold it."""
    return math.exp(hard_loss) if hard_loss < 700 else math.inf
