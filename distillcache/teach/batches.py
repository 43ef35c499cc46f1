"""Batches of a shard's sequences for a teacher: of like length, in an order that the shard alone decides.

Knows nothing of models or rows.

B sequences, T positions, N supervised positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillcache_shards.shard import Sequences

__all__ = ["TeacherBatch", "batch_members", "make_batch"]


@dataclass(frozen=True)
class TeacherBatch:
    """Sequences padded on the right, and where in them something is supervised."""

    members: NDArray[np.int64]  # [B], their numbers in the shard
    ids_BT: Tensor  # int64
    mask_BT: Tensor  # int64, 0 for padding
    sequences_N: Tensor  # int64, rising
    positions_N: Tensor  # int64; the supervised target is one token further
    rows_N: NDArray[np.int64]  # the row of the shard that each position makes
    num_tokens: int  # without padding


def batch_members(input_lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of the sequences of each batch, longest first, at most `batch_tokens` with padding, or one."""
    order = np.argsort(-input_lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(input_lengths[order[start]])))
        yield order[start : start + size]
        start += size


def input_lengths(sequences: Sequences) -> NDArray[np.int64]:
    """Tokens of each sequence that a teacher has to read: up to the one before the last supervised."""
    last = np.zeros(len(sequences), np.int64)
    places = np.flatnonzero(sequences.supervised)
    owner = np.searchsorted(sequences.offsets, places, side="right") - 1
    np.maximum.at(last, owner, places - sequences.offsets[owner])
    return last


def make_batch(sequences: Sequences, members: NDArray[np.int64], lengths: NDArray[np.int64]) -> TeacherBatch:
    """One batch of a shard. `lengths` are those of `input_lengths`, of all sequences of the shard."""
    width = int(lengths[members].max())
    ids_BT = np.zeros((len(members), width), np.int64)
    mask_BT = np.zeros((len(members), width), np.int64)
    row_offsets = sequences.row_offsets
    owners, positions, rows = [], [], []
    for b, member in enumerate(members.tolist()):
        start, length = int(sequences.offsets[member]), int(lengths[member])
        ids_BT[b, :length] = sequences.tokens[start : start + length]
        mask_BT[b, :length] = 1
        # The target at t + 1 is predicted at t.
        found = np.flatnonzero(sequences.supervised[start + 1 : start + length + 1])
        owners.append(np.full(len(found), b))
        positions.append(found)
        rows.append(row_offsets[member] + np.arange(len(found)))
    return TeacherBatch(
        members,
        torch.from_numpy(ids_BT),
        torch.from_numpy(mask_BT),
        torch.from_numpy(np.concatenate(owners)),
        torch.from_numpy(np.concatenate(positions)),
        np.concatenate(rows),
        int(lengths[members].sum()),
    )
