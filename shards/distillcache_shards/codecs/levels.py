"""Levels of log-probabilities: fine steps where a probability is large, coarse ones where it is small.

An error of e nats in the log-probability of an id of probability p costs p e^2 / 2 nats of KL, so steps in
proportion to p^(-1/2) give all ids the same share of it, for the fewest bits; below some p they grow no more.
Knows nothing of ids or bytes.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.errors import CorruptError
from distillcache_shards.rows import Rows

__all__ = [
    "COARSEST_STEP",
    "FINEST_STEP",
    "LOWEST",
    "level_cells",
    "levels_kl",
    "make_levels",
    "nearest_levels",
    "require_levels",
    "widest_of",
]

F32 = NDArray[np.float32]

LOWEST = -128.0  # nats; what is less likely comes back as that
MAX_LEVELS = 1 << 12
FINEST_STEP, COARSEST_STEP = 1e-3, 0.5
# Log-probabilities are looked up in cells of this many nats.
CELL = 1 / 1024


def widest_of(step: float) -> float:
    """The widest step that goes with a finest one: a bound that costs 1 % of the bytes.

    Without it KL would be as small, but at a temperature of 2 or more rare ids count as much as likely ones.
    """
    return min(1.0, 4.5 * math.sqrt(step))


def make_levels(step: float, widest: float) -> F32:
    """Log-probabilities from 0 to LOWEST, each `step` / sqrt(p) below the last, at most `widest`, in nats."""
    found = [0.0]
    while found[-1] > LOWEST:
        found.append(found[-1] - min(widest, step * math.exp(-found[-1] / 2)))
    assert len(found) <= MAX_LEVELS
    return np.array(found, np.float32)


def require_levels(levels: NDArray[Any] | None) -> F32:
    """The same. Raises CorruptError, without a place, if these are no levels."""
    if (
        levels is None
        or levels.dtype != np.float32
        or levels.ndim != 1
        or not 2 <= len(levels) <= MAX_LEVELS
        or levels[0] != 0
        or not bool(np.isfinite(levels).all())
        or not bool((np.diff(levels) < 0).all())
    ):
        raise CorruptError("has no levels of log-probability among its tables")
    return levels


def level_cells(levels: F32) -> NDArray[np.uint16]:
    """The level nearest to the middle of each cell of log-probability, from 0 down past the last level."""
    middles = -(np.arange(int(-levels[-1] / CELL) + 2) + 0.5) * CELL
    return np.searchsorted(-(levels[1:] + levels[:-1]) / 2, -middles).astype(np.uint16)


def nearest_levels(cells: NDArray[np.uint16], logprobs: F32) -> NDArray[np.uint32]:
    """The level nearest to each log-probability, but for half a cell; the lowest for what is below it."""
    place = np.minimum(logprobs * np.float32(-1 / CELL), np.float32(len(cells) - 1))
    found: NDArray[np.uint16] = cells.take(np.maximum(place, 0).astype(np.int32))
    return found.astype(np.uint32)


def levels_kl(levels: F32, rows: Rows) -> float:
    """Mean KL(before || after) in nats of rounding `topk` rows to these levels, tail mass too.

    Over the kept ids and one bucket for all others; what comes back is scaled to a sum of 1, as a loss would.
    """
    cells = level_cells(levels)
    log_p_H = np.minimum(rows.head_logprobs.astype(np.float64), 0.0)
    log_q_H = levels.astype(np.float64)[nearest_levels(cells, rows.head_logprobs)]
    tail_N = rows.tail_mass.astype(np.float64)
    log_tail_N = np.log(np.maximum(tail_N, np.exp(LOWEST)))
    log_tail_back_N = levels.astype(np.float64)[nearest_levels(cells, log_tail_N.astype(np.float32))]
    row_H = np.repeat(np.arange(len(rows)), np.diff(rows.head_offsets))
    total_N = np.bincount(row_H, np.exp(log_p_H), len(rows)) + tail_N
    total_back_N = np.bincount(row_H, np.exp(log_q_H), len(rows)) + np.exp(log_tail_back_N) * (tail_N > 0)
    head_kl_N = np.bincount(row_H, np.exp(log_p_H) * (log_p_H - log_q_H), len(rows))
    kl_N = head_kl_N + tail_N * (log_tail_N - log_tail_back_N)
    return float((kl_N / total_N - np.log(total_N) + np.log(total_back_N)).mean())
