"""Batches of a cache as tensors, packed or padded: what is held out, in which order the others come.

Everything follows from the seed, the epoch and the lengths, so a run that was stopped goes on with the very
batches that it had not seen.
Knows nothing of students or losses.

B sequences, T tokens of the longest, N supervised targets of all.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from distillcache.errors import ConfigError
from distillcache.packing import packed_positions
from distillcache_shards.cache import Batch, Cache
from distillcache_shards.rows import Rows

__all__ = [
    "IGNORED",
    "Batching",
    "CacheDataset",
    "Split",
    "TrainBatches",
    "batches_in_order",
    "collate",
    "loader",
    "row_tensors",
    "sampled_at",
    "split",
]

IGNORED = -100  # the label of a token that is no target, as torch's cross-entropy has it
# Sequences of a padded batch differ in length by at most this factor, so that few tokens are padding.
LENGTH_RATIO = 1.15
# Lengths that take each other's place in packed batches of bounded tokens: as much of a batch stays free.
PACKED_LENGTH_RATIO = 1.02


@dataclass(frozen=True)
class Batching:
    """How large a batch may be, and how it is laid out."""

    batch_size: int | None  # most sequences; None: no bound
    batch_tokens: int | None  # most tokens, padding included; a longer sequence stands alone
    packed: bool  # in one row without padding

    def room(self, length: int) -> int:
        """Sequences of a batch whose longest has that many tokens."""
        by_tokens = None if self.batch_tokens is None else max(1, self.batch_tokens // length)
        bounds = [each for each in (self.batch_size, by_tokens) if each is not None]
        return min(bounds)


def sampled_at(cache: Cache) -> tuple[float, float | torch.Tensor | None]:
    """Temperature and threshold of `sampled` rows: 1 of others, and no threshold where none was used.

    Tilted rows have one for each id, [V].
    """
    about = cache.plan["rows"]
    if cache.row_kind != "sampled":
        return 1.0, None
    temperature = float(about.get("temperature", 1.0))
    if cache.thresholds is not None:
        return temperature, torch.from_numpy(cache.thresholds)
    has_tau = about.get("method") == "threshold" and "units" in about
    return temperature, about["draw_units"] / about["units"] if has_tau else None


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
        """The sequences at these places, one read for all; of no place, one with nothing supervised."""
        if len(places) == 0:
            idle = self.cache.read(self.indices[:1], rows=False)
            return dataclasses.replace(idle, supervised=np.zeros_like(idle.supervised))
        return self.cache.read(self.indices[np.asarray(places, np.int64)], rows=self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, [len]."""
        return self.cache.sequence_lengths[self.indices].astype(np.int64)


def collate(batch: Batch, *, packed: bool = False) -> dict[str, Any]:
    """A batch as tensors, padded on the right, or packed into one row.

    `input_ids` and `labels` are [B, T] int64, or packed [1, T]; labels stand at their own tokens.
    Padded there is an `attention_mask`, packed `position_ids`, which start again with each sequence.
    `rows`, if they were read, are flat tensors by the names of `TeacherRows`, in the order of the labels.
    """
    tensors = _packed(batch) if packed else _padded(batch)
    if len(batch.rows):
        assert len(batch.rows) == batch.supervised.sum()
        tensors["rows"] = row_tensors(batch.rows)
    return tensors


def row_tensors(rows: Rows) -> dict[str, torch.Tensor]:
    """The arrays of rows, copied, by the names of `TeacherRows`; those that there are."""
    arrays = {name: array for name, array in vars(rows).items() if isinstance(array, np.ndarray)}
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _packed(batch: Batch) -> dict[str, Any]:
    tokens_T = batch.tokens.astype(np.int64)
    # A first token has no prediction; here it would be the one of the sequence before.
    assert not batch.supervised[batch.token_offsets[:-1]].any()
    return {
        "input_ids": torch.from_numpy(tokens_T)[None],
        "position_ids": packed_positions(np.diff(batch.token_offsets).tolist())[None],
        "labels": torch.from_numpy(np.where(batch.supervised, tokens_T, IGNORED))[None],
    }


def _padded(batch: Batch) -> dict[str, Any]:
    lengths_B = np.diff(batch.token_offsets)
    real_BT = np.arange(lengths_B.max()) < lengths_B[:, None]
    input_ids_BT = np.zeros(real_BT.shape, np.int64)
    input_ids_BT[real_BT] = batch.tokens
    labels_BT = np.full(real_BT.shape, IGNORED, np.int64)
    labels_BT[real_BT] = np.where(batch.supervised, batch.tokens.astype(np.int64), IGNORED)
    return {
        "input_ids": torch.from_numpy(input_ids_BT),
        "attention_mask": torch.from_numpy(real_BT.astype(np.int64)),
        "labels": torch.from_numpy(labels_BT),
    }


class TrainBatches(Sampler[list[int]]):
    """Batches of places in a dataset, each sequence once an epoch.

    Padded, the sequences of a batch are of like length; packed, any stand together.
    In every epoch other ones do, in another order, but there are as many batches.
    Of several ranks each takes every n-th, so that one step of all is the same sequences for any number; one
    that has nothing left for the last step gets a batch of no place.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        *,
        batching: Batching,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.batching, self.seed, self.rank, self.num_ranks = batching, seed, rank, num_ranks
        self.epoch = 0
        ratio = PACKED_LENGTH_RATIO if batching.packed else LENGTH_RATIO
        classes = np.zeros(len(lengths), np.int64)
        if batching.batch_tokens is not None or not batching.packed:
            longest = int(lengths.max())
            classes = np.floor(np.log(longest / np.maximum(lengths, 1)) / math.log(ratio)).astype(np.int64)
        # Longest first; a class counts as its longest sequence.
        numbers, classes = np.unique(classes, return_inverse=True)
        self._members = [np.flatnonzero(classes == number) for number in range(len(numbers))]
        self._longest = [int(lengths[members].max()) for members in self._members]
        # Packed, the same classes make up a batch in every epoch.
        self._patterns = self._packed_patterns(classes) if batching.packed else []
        self._num_batches = len(self._epoch(0))

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._num_batches / self.num_ranks)

    def __iter__(self) -> Iterator[list[int]]:
        yield from _of_rank(self._epoch(self.epoch), self.rank, self.num_ranks)

    def _epoch(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng((self.seed, epoch))
        shuffled = [random.permutation(members).tolist() for members in self._members]
        if self.batching.packed:
            batches = [[shuffled[number].pop() for number in pattern] for pattern in self._patterns]
        else:
            batches = self._padded_batches(shuffled)
        return [batches[number] for number in random.permutation(len(batches))]

    def _packed_patterns(self, classes: NDArray[np.int64]) -> list[list[int]]:
        """Batches as numbers of classes, one for each sequence, in an order of chance."""
        batch_tokens = self.batching.batch_tokens
        patterns: list[list[int]] = []
        room = tokens_left = 0
        for number in np.random.default_rng(self.seed).permutation(classes).tolist():
            if room == 0 or (batch_tokens is not None and self._longest[number] > tokens_left):
                patterns.append([])
                room = len(classes) if self.batching.batch_size is None else self.batching.batch_size
                tokens_left = batch_tokens or 0
            patterns[-1].append(number)
            room -= 1
            tokens_left -= self._longest[number]
        return patterns

    def _padded_batches(self, shuffled: list[list[int]]) -> list[list[int]]:
        batches: list[list[int]] = []
        left: list[tuple[int, int]] = []  # a place, and how large a batch that begins with it may be
        for places, longest in zip(shuffled, self._longest, strict=True):
            size = self.batching.room(longest)
            whole = len(places) - len(places) % size
            batches += [places[start : start + size] for start in range(0, whole, size)]
            left += [(place, size) for place in places[whole:]]
        while left:
            size = left[0][1]
            batches.append([place for place, _ in left[:size]])
            left = left[size:]
        return batches


def batches_in_order(
    lengths: NDArray[np.int64],
    *,
    batch_size: int | None,
    batch_tokens: int | None,
    rank: int = 0,
    num_ranks: int = 1,
) -> list[list[int]]:
    """Batches of places for an evaluation, longest first, each sequence once over all ranks.

    Every rank has as many, for which the last may be of no place: models in parts must be run together.
    """
    batching = Batching(batch_size, batch_tokens, packed=False)
    batches: list[list[int]] = []
    room = 0
    for place in np.argsort(-lengths, kind="stable").tolist():
        if room == 0:
            batches.append([])
            room = batching.room(int(lengths[place]))
        batches[-1].append(place)
        room -= 1
    return _of_rank(batches, rank, num_ranks)


def _of_rank(batches: list[list[int]], rank: int, num_ranks: int) -> list[list[int]]:
    """Every n-th, as many for every rank."""
    missing = -len(batches) % num_ranks
    return (batches + [[] for _ in range(missing)])[rank::num_ranks]


class _Loader(DataLoader[Batch]):
    """A loader that hands the epoch on to its batches, as Trainer asks of it."""

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, TrainBatches):
            self.batch_sampler.set_epoch(epoch)


def loader(
    dataset: CacheDataset,
    batches: TrainBatches | list[list[int]],
    *,
    packed: bool,
    workers: int,
    pin_memory: bool,
) -> DataLoader[Batch]:
    """Batches of a dataset as tensors, read by `workers` processes ahead of time, or when asked for.

    The processes live for one pass: those that torch keeps longer take seconds to end, if the collector of
    cycles finds them.
    """
    return _Loader(
        dataset,
        batch_sampler=batches,
        # Of a `Batch`, since the dataset reads many at once.
        collate_fn=functools.partial(collate, packed=packed),
        num_workers=workers,
        pin_memory=pin_memory,
    )
