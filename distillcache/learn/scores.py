"""A student on held-out rows: sums of a batch, that add up over batches and ranks, and the means of them.

Knows nothing of training, caches or where a batch comes from.

B sequences, T positions, V vocabulary, N rows, n rows of a chunk.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillcache.head import OutputHead
from distillcache.learn.objective import Objective, batch_logits
from distillcache.losses import TeacherRows, row_losses
from distillcache.metrics import NUM_SUMS, means, row_metrics, summed

__all__ = ["NUM_SCORE_SUMS", "Scores", "score_sums", "scores"]

NUM_SCORE_SUMS = 1 + NUM_SUMS


@dataclass(frozen=True)
class Scores:
    """A student's on held-out rows; None where the rows do not tell."""

    hard_loss: float  # nats a row
    perplexity: float
    bits_per_byte: float | None  # of the text that the rows' targets stand for
    # To the teacher, nats: of `topk` rows over K + 1 buckets at temperature 1, of `sampled` rows an estimate.
    kl: float
    top1_agreement: float | None  # share of rows
    calibration_error: float  # expected, of the likeliest id
    # Between what the share of drafts lies that the teacher would accept in speculative decoding.
    acceptance_min: float | None
    acceptance_max: float | None
    num_rows: int


@torch.no_grad()
def score_sums(head: OutputHead, objective: Objective, batch: Mapping[str, Any]) -> Tensor:
    """The loss and the metrics of a batch, summed over its rows: float64, on the CPU, [NUM_SCORE_SUMS].

    `batch` as `distillcache.learn.data.collate` makes it, with rows, on one device.
    """
    rows = TeacherRows(objective.row_kind, **batch["rows"])
    terms = objective.terms
    loss = torch.zeros((), dtype=torch.float64)
    total = torch.zeros(NUM_SUMS, dtype=torch.float64)
    start = 0
    for logits_nV, targets_n in batch_logits(head, batch):
        logits_nV = logits_nV.float()
        rows_n = rows[start : start + len(targets_n)]
        losses = row_losses(logits_nV, targets_n, rows_n, loss=terms.loss, temperature=terms.temperature)
        loss += terms.total(losses).sum().cpu()
        total += summed(
            row_metrics(
                logits_nV,
                targets_n,
                rows_n,
                temperature=objective.row_temperature,
                tau=objective.row_tau,
            )
        )
        start += len(targets_n)
    return torch.cat([loss[None], total])


def scores(sums: Tensor, num_bytes: int) -> tuple[float, Scores]:
    """The mean loss and the other means of at least one row, and of so many bytes of text."""
    found = means(sums[1:])
    loss = float(sums[0]) / found.num_rows
    assert found.kl is not None
    return loss, Scores(
        hard_loss=found.hard_loss,
        perplexity=found.perplexity,
        bits_per_byte=found.hard_loss * found.num_rows / math.log(2) / num_bytes if num_bytes else None,
        kl=found.kl,
        top1_agreement=found.top1_agreement,
        calibration_error=found.calibration_error,
        acceptance_min=found.acceptance_low,
        acceptance_max=found.acceptance_high,
        num_rows=found.num_rows,
    )
