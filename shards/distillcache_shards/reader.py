"""Batches of sequences out of the files of shards: tokens read and rows decoded into the batch's own arrays.

What is kept is small and does not grow with the cache: where in each file things lie, and a few blocks.
Knows nothing of plans, or of how rows are coded.

B sequences of a batch.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.batch import Batch
from distillcache_shards.codecs import Codec
from distillcache_shards.directory import Directory
from distillcache_shards.rows import Rows
from distillcache_shards.shard import Shard
from distillcache_shards.wanted import OpenBlocks, Wanted
from distillcache_shards.workers import Workers, num_cores

__all__ = ["Reader"]

I64 = NDArray[np.int64]

# Of 8,000 shards or so, of the usual size.
DIRECTORY_BYTES = 1 << 26


@dataclass(eq=False)
class Run:
    """Neighbouring sequences of one shard that are neighbours in the batch too."""

    shard: int
    directory: Directory
    start: int  # of the sequences of the shard
    end: int
    place: int  # of the first in the batch

    @property
    def span(self) -> slice:
        """Of the batch."""
        return slice(self.place, self.place + self.end - self.start)


class Reader:
    """Reads batches of sequences from shards, which `open_shard` opens and checks."""

    def __init__(
        self,
        codec: Codec,
        token_dtype: np.dtype[Any],
        num_threads: int | None,
        open_shard: Callable[[int], Shard],
    ) -> None:
        self._codec, self._token_dtype = codec, token_dtype
        self._num_threads = num_threads  # None: asked at each read, for it may be in a worker by then
        self._open_shard = open_shard
        self._directories: OrderedDict[int, Directory] = OrderedDict()
        self._directory_bytes = 0
        self._open_blocks = OpenBlocks()

    def read(self, indices_B: I64, shard_B: I64, place_B: I64, *, rows: bool) -> Batch:
        """Sequences at these places of these shards, in this order. Raises CacheError."""
        runs = self._runs(shard_B, place_B)
        token_counts_B, row_counts_B, records_B = np.zeros((3, len(indices_B)), np.int64)
        wanted = Wanted(self._codec, self._open_blocks)
        of_shard: dict[int, list[Run]] = {}
        for run in runs:
            directory, start, end = run.directory, run.start, run.end
            of_shard.setdefault(run.shard, []).append(run)
            records_B[run.span] = directory.records[start:end]
            token_counts_B[run.span] = np.diff(directory.token_offsets[start : end + 1])
            if rows:
                row_counts_B[run.span] = np.diff(directory.row_offsets[start : end + 1])
                wanted.add(run.shard, directory, *directory.row_offsets[[start, end]].tolist())
        token_offsets, row_offsets = _offsets(token_counts_B), _offsets(row_counts_B)
        tokens_T = np.empty(int(token_offsets[-1]), self._token_dtype)
        supervised_T = np.empty(len(tokens_T), np.bool_)

        def fetch(shard: int) -> None:
            """What is wanted of one file."""
            directory = of_shard[shard][0].directory
            with directory.opened() as stream:
                for run in of_shard[shard]:
                    start, there = int(directory.token_offsets[run.start]), run.span
                    tokens = slice(int(token_offsets[there.start]), int(token_offsets[there.stop]))
                    directory.read_tokens(stream, start, tokens_T[tokens])
                    directory.read_mask(stream, start, supervised_T[tokens])
                for block in wanted.blocks.get(shard, ()):
                    wanted.packed[shard, block] = directory.read_block(stream, block)

        # Here alone: to hand over what takes some microseconds costs more than it saves.
        for shard in of_shard:
            fetch(shard)
        with Workers(self._num_threads or num_cores()) as workers:
            found = wanted.decoded(workers) if rows else Rows.empty(self._codec.kind)
        return Batch(indices_B, records_B, tokens_T, supervised_T, token_offsets, found, row_offsets)

    def _runs(self, shard_B: I64, place_B: I64) -> list[Run]:
        if not len(shard_B):
            return []
        breaks_B = (np.diff(shard_B) != 0) | (np.diff(place_B) != 1)
        firsts = [0, *(np.flatnonzero(breaks_B) + 1).tolist(), len(shard_B)]
        shards, places = shard_B.tolist(), place_B.tolist()
        # The same directory for all runs of a shard, whatever happens to its file meanwhile.
        directories = {shard: self._directory(shard) for shard in dict.fromkeys(shards)}
        return [
            Run(shards[first], directories[shards[first]], places[first], places[end - 1] + 1, first)
            for first, end in pairwise(firsts)
        ]

    def _directory(self, shard: int) -> Directory:
        found = self._directories.pop(shard, None)
        if found is not None and not found.is_current():
            self._directory_bytes -= found.num_bytes
            found = None
        if found is None:
            found = Directory.of(self._open_shard(shard))
            self._directory_bytes += found.num_bytes
            while self._directory_bytes > DIRECTORY_BYTES and self._directories:
                self._directory_bytes -= self._directories.popitem(last=False)[1].num_bytes
        self._directories[shard] = found
        return found


def _offsets(counts: I64) -> I64:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
