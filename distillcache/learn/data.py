"""Batches of a cache as padded tensors: which sequences are held out, in which order the others come.

Everything follows from the seed, the epoch and the lengths, so a run that was stopped goes on with the very
batches that it had not seen.
Knows nothing of students or losses.

B sequences, T tokens of the longest, N supervised targets of all.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from distillcache.errors import ConfigError
from distillcache_shards.cache import Batch, Cache

__all__ = [
    "IGNORED",
    "CacheDataset",
    "Split",
    "TrainBatches",
    "batches_in_order",
    "collate",
    "loader",
    "split",
]

IGNORED = -100  # the label of a token that is no target, as torch's cross-entropy has it
# Sequences of a batch differ in length by at most this factor, so that few tokens are padding.
LENGTH_RATIO = 1.15


@dataclass(frozen=True)
class Split:
    """Numbers of sequences, rising: no text is in both."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    num_repeated: int  # left out of training: their text is held out under another record


def split(cache: Cache, held_out: float, seed: int) -> Split:
    """Hold out a share of the records: a document's pieces stay together, and so do equal texts.

    At least one record is held out unless the share is 0.
    Raises ConfigError if nothing is left to train on.
    """
    records = cache.records()
    numbers = np.unique(records)
    num_held = math.ceil(held_out * len(numbers))
    chosen = np.random.default_rng(seed).permutation(numbers)[:num_held]
    is_held = np.isin(records, chosen)
    repeated = np.zeros_like(is_held)
    if num_held:
        hashes = np.concatenate([cache.shard(shard).hashes for shard in range(cache.num_shards)])
        keys = np.ascontiguousarray(hashes).view("V16").reshape(-1)
        same = np.unique(keys, return_inverse=True)[1]
        repeated = np.isin(same, same[is_held]) & ~is_held
    train = np.flatnonzero(~is_held & ~repeated)
    if len(train) == 0:
        raise ConfigError(
            f"--held-out: leaves nothing to train on, of {len(numbers)} records; "
            "lower it, 0 holds nothing out, or teach a larger corpus"
        )
    return Split(train.astype(np.int64), np.flatnonzero(is_held).astype(np.int64), int(repeated.sum()))


class CacheDataset(Dataset[Batch]):
    """Some sequences of a cache, read many at a time; may go to other processes, which open it themselves."""

    def __init__(self, cache: Cache, indices: NDArray[np.int64], *, rows: bool) -> None:
        self.cache = cache
        self.indices = indices
        self.rows = rows  # whether what the teacher said is read too

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Batch:
        return self.__getitems__([place])

    def __getitems__(self, places: Sequence[int]) -> Batch:
        """The sequences at these places, one read for all."""
        return self.cache.read(self.indices[np.asarray(places, np.int64)], rows=self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, [len]."""
        return self.cache.sequence_lengths[self.indices].astype(np.int64)


def collate(batch: Batch) -> dict[str, Any]:
    """A batch as tensors, padded on the right.

    `input_ids`, `attention_mask` and `labels` are [B, T] int64; labels stand at their own tokens.
    `rows`, if they were read, are flat tensors by the names of `TeacherRows`, in the order of the labels.
    """
    lengths_B = np.diff(batch.token_offsets)
    real_BT = np.arange(lengths_B.max()) < lengths_B[:, None]
    input_ids_BT = np.zeros(real_BT.shape, np.int64)
    input_ids_BT[real_BT] = batch.tokens
    labels_BT = np.full(real_BT.shape, IGNORED, np.int64)
    labels_BT[real_BT] = np.where(batch.supervised, batch.tokens.astype(np.int64), IGNORED)
    tensors: dict[str, Any] = {
        "input_ids": torch.from_numpy(input_ids_BT),
        "attention_mask": torch.from_numpy(real_BT.astype(np.int64)),
        "labels": torch.from_numpy(labels_BT),
    }
    if len(batch.rows):
        assert len(batch.rows) == batch.supervised.sum()
        tensors["rows"] = {
            name: torch.from_numpy(np.array(getattr(batch.rows, name)))
            for name in (
                "head_offsets",
                "head_ids",
                "head_logprobs",
                "tail_mass",
                "draw_offsets",
                "draw_ids",
                "entropy",
            )
        }
    return tensors


class TrainBatches(Sampler[list[int]]):
    """Batches of places in a dataset, of sequences of like length, each sequence once an epoch.

    In every epoch other ones stand together, in another order, but there are as many batches.
    Of several ranks each takes every n-th, so that one step of all is the same sequences for any number.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        *,
        batch_size: int,
        batch_tokens: int | None,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.seed, self.rank, self.num_ranks = seed, rank, num_ranks
        self.epoch = 0
        longest = int(lengths.max())
        classes = np.floor(np.log(longest / np.maximum(lengths, 1)) / math.log(LENGTH_RATIO)).astype(np.int64)
        # Longest first; a class has one size of batch, which its longest sequence allows.
        self._members = [np.flatnonzero(classes == each) for each in np.unique(classes)]
        longest_of = [int(lengths[members].max()) for members in self._members]
        self._sizes = [_room(each, batch_size, batch_tokens) for each in longest_of]
        self._num_batches = len(self._epoch(0))

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._num_batches / self.num_ranks)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self._epoch(self.epoch)
        # The last step of all ranks is filled up with batches from the start.
        batches += batches[: len(self) * self.num_ranks - len(batches)]
        yield from batches[self.rank :: self.num_ranks]

    def _epoch(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng((self.seed, epoch))
        batches: list[list[int]] = []
        left: list[tuple[int, int]] = []  # a place, and how large a batch that begins with it may be
        for members, size in zip(self._members, self._sizes, strict=True):
            shuffled = random.permutation(members).tolist()
            whole = len(shuffled) - len(shuffled) % size
            batches += [shuffled[start : start + size] for start in range(0, whole, size)]
            left += [(place, size) for place in shuffled[whole:]]
        while left:
            size = left[0][1]
            batches.append([place for place, _ in left[:size]])
            left = left[size:]
        return [batches[number] for number in random.permutation(len(batches))]


def batches_in_order(
    lengths: NDArray[np.int64],
    *,
    batch_size: int,
    batch_tokens: int | None,
    rank: int = 0,
    num_ranks: int = 1,
) -> list[list[int]]:
    """Batches of places for an evaluation, longest first, each sequence once over all ranks."""
    batches: list[list[int]] = []
    room = 0
    for place in np.argsort(-lengths, kind="stable").tolist():
        if room == 0:
            batches.append([])
            room = _room(int(lengths[place]), batch_size, batch_tokens)
        batches[-1].append(place)
        room -= 1
    return batches[rank::num_ranks]


def _room(length: int, batch_size: int, batch_tokens: int | None) -> int:
    """Sequences of a batch whose longest has that many tokens."""
    return batch_size if batch_tokens is None else max(1, min(batch_size, batch_tokens // length))


class _Loader(DataLoader[Batch]):
    """A loader that hands the epoch on to its batches, as Trainer asks of it."""

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, TrainBatches):
            self.batch_sampler.set_epoch(epoch)


def loader(
    dataset: CacheDataset, batches: TrainBatches | list[list[int]], *, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Batches of a dataset as tensors, read by `workers` processes ahead of time, or when asked for.

    The processes live for one pass: those that torch keeps longer take seconds to end, if the collector of
    cycles finds them.
    """
    return _Loader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,  # type: ignore[arg-type]  # of a `Batch`, since the dataset reads many at once
        num_workers=workers,
        pin_memory=pin_memory,
    )
