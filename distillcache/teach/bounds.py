"""How many of a row's likeliest ids are kept: all K, or as few as hold the mass that is asked for.

Knows nothing of logits or files.
"""

from dataclasses import dataclass

import numpy as np

from distillcache.teach.rows_config import RowsConfig
from distillcache_shards.rows import TOPK, Rows

__all__ = ["Bounds"]


@dataclass(frozen=True)
class Bounds:
    """Bounds of `topk` rows beside their K, which is the ceiling.

    A row keeps the fewest ids that hold `top_p` of its mass, none below `least_probability`, but always
    `fewest` of what it had.
    """

    top_p: float | None = None
    least_probability: float | None = None
    fewest: int = 1

    def __post_init__(self) -> None:
        assert self.top_p is None or 0 < self.top_p <= 1
        assert self.least_probability is None or 0 < self.least_probability <= 1
        assert self.fewest >= 0

    @classmethod
    def of(cls, config: RowsConfig) -> "Bounds | None":
        """Those of the settings, None if all K are kept."""
        if config.top_p is None and config.min_p is None:
            return None
        return cls(config.top_p, config.min_p, 1 if config.min_k is None else config.min_k)

    def bound(self, rows: Rows) -> Rows:
        """The rows within these bounds, in the same order; what is let go joins the tail."""
        assert rows.kind == TOPK
        counts_N = np.diff(rows.head_offsets)
        p_H = np.exp(rows.head_logprobs.astype(np.float64))
        row_H = np.repeat(np.arange(len(rows)), counts_N)
        nth_H = np.arange(len(p_H)) - rows.head_offsets[:-1][row_H]
        kept_H = np.ones(len(p_H), np.bool_)
        if self.top_p is not None:
            # The mass before an id, one row at a time: what other rows hold must not round it.
            p_NK = np.zeros((len(rows), int(counts_N.max(initial=0)) + 1))
            p_NK[row_H, nth_H + 1] = p_H
            kept_H &= p_NK.cumsum(1)[row_H, nth_H] < self.top_p
        if self.least_probability is not None:
            kept_H &= p_H >= self.least_probability
        kept_H |= nth_H < self.fewest
        let_go_N = np.bincount(row_H[~kept_H], p_H[~kept_H], len(rows))
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.bincount(row_H[kept_H], minlength=len(rows)), out=offsets[1:])
        return Rows(
            TOPK,
            offsets,
            rows.head_ids[kept_H],
            rows.head_logprobs[kept_H],
            np.minimum(rows.tail_mass + let_go_N, 1.0).astype(np.float32),
            rows.draw_offsets,
            rows.draw_ids,
            rows.entropy,
        )
