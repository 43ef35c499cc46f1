"""Sequences of a cache, as they are handed to a reader: one, or many one after another.

Knows nothing of files.

L tokens of a sequence, B sequences and T tokens of a batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.rows import Rows

__all__ = ["Batch", "CachedSequence"]


@dataclass(frozen=True, eq=False)
class CachedSequence:
    """One sequence of L tokens. Row j is the prediction of the j-th token that is supervised."""

    index: int
    record: int
    tokens: NDArray[Any]  # [L], u16 or u32
    supervised: NDArray[np.bool_]  # [L], the first is False
    rows: Rows
    content_hash: bytes


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences one after another; number b is `tokens[token_offsets[b]:token_offsets[b + 1]]`."""

    indices: NDArray[np.int64]  # [B]
    records: NDArray[np.int64]  # [B]
    tokens: NDArray[Any]  # [T], u16 or u32
    supervised: NDArray[np.bool_]  # [T]
    token_offsets: NDArray[np.int64]  # [B + 1]
    rows: Rows
    row_offsets: NDArray[np.int64]  # [B + 1]

    def __len__(self) -> int:
        return len(self.indices)
