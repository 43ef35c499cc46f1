"""The rows that a batch wants: the blocks they are in, and where they go in the batch's arrays.

Blocks are expanded and decoded in chunks, those together that the batch wants one after the other, whatever
shards they come from; of a block, only the rows that are wanted.
Knows nothing of how bytes are found in a file.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs import Codec, OpenRows, PackedBlock
from distillcache_shards.directory import Directory
from distillcache_shards.errors import CorruptError
from distillcache_shards.rows import Rows
from distillcache_shards.workers import Workers

__all__ = ["OpenBlocks", "Wanted"]

# Rows that are decoded together, and bytes of their blocks: fewer are paid by the call, more by the cache of
# the processor.
CHUNK_ROWS, FEWEST_CHUNK_ROWS, CHUNK_BYTES = 4096, 512, 1 << 20
# Neighbours in a block are often read one after the other.
MOST_OPEN = 8


@dataclass(eq=False)
class Chunk:
    """Blocks that are decoded together."""

    blocks: list[tuple[Directory, int]] = field(default_factory=list)
    packed: list[PackedBlock] = field(default_factory=list)
    num_rows: int = 0
    num_bytes: int = 0
    rows: OpenRows | None = None

    def has_room(self, packed: PackedBlock, most_rows: int) -> bool:
        """Whether one block more would not make it too large."""
        return (
            self.num_rows + packed.num_rows <= most_rows
            and self.num_bytes + packed.expanded_bytes <= CHUNK_BYTES
        )

    def add(self, directory: Directory, block: int, packed: PackedBlock) -> int:
        """One block more; its first row among those of all."""
        self.blocks.append((directory, block))
        self.packed.append(packed)
        self.num_rows += packed.num_rows
        self.num_bytes += packed.expanded_bytes
        return self.num_rows - packed.num_rows

    def open(self, codec: Codec) -> None:
        """Expands them. Raises CorruptError, which names the block at fault."""
        try:
            self.rows = codec.open(self.packed)
        except CorruptError:
            self._name_fault(codec)
            raise

    def read(self, codec: Codec, spans: list[tuple[int, int]], out: Rows) -> None:
        """Decodes some rows. Raises CorruptError, which names the block at fault."""
        assert self.rows is not None
        try:
            self.rows.read(spans, out)
        except CorruptError:
            self._name_fault(codec)
            raise

    def _name_fault(self, codec: Codec) -> None:
        for (directory, block), packed in zip(self.blocks, self.packed, strict=True):
            try:
                codec.decode(packed.data, packed.num_rows, packed.expanded_bytes)
            except CorruptError as error:
                raise directory.fault(block, str(error)) from None


class OpenBlocks:
    """A few blocks that were expanded for some of their rows, by shard and number."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[int, int], tuple[Chunk, int]] = OrderedDict()

    def get(self, shard: int, block: int, directory: Directory) -> tuple[Chunk, int] | None:
        """Its chunk and the first row in it, unless it is of a file that is no more."""
        found = self._found.get((shard, block))
        return found if found and any(each is directory for each, _ in found[0].blocks) else None

    def keep(self, shard: int, block: int, chunk: Chunk, row: int) -> None:
        """For the next batch; those longest kept make room."""
        self._found.pop((shard, block), None)
        self._found[shard, block] = chunk, row
        if len(self._found) > MOST_OPEN:
            self._found.popitem(last=False)


@dataclass(eq=False)
class Part:
    """Rows of one chunk that stand together in the batch."""

    chunk: Chunk
    spans: list[tuple[int, int]]
    start: int  # of the rows of the batch
    end: int

    def follow(self, start: int, end: int) -> None:
        """Rows `start` to `end` of the chunk come next."""
        if self.spans and self.spans[-1][1] == start:
            self.spans[-1] = self.spans[-1][0], end
        else:
            self.spans.append((start, end))
        self.end += end - start


class Wanted:
    """Rows in the order of the batch."""

    def __init__(self, codec: Codec, kept: OpenBlocks) -> None:
        self._codec, self._kept = codec, kept
        self._num_rows = 0
        self._pieces: list[tuple[tuple[int, int], int, int]] = []  # a block, and rows of it
        self._directories: dict[tuple[int, int], Directory] = {}
        self._unused: dict[tuple[int, int], int] = {}  # rows of each block that nobody wanted
        # The chunk of each, and its first row there.
        self._found: dict[tuple[int, int], tuple[Chunk, int]] = {}
        self.blocks: dict[int, list[int]] = {}  # to be read, of each shard
        self.packed: dict[tuple[int, int], PackedBlock] = {}  # as they were read

    def add(self, shard: int, directory: Directory, start: int, end: int) -> None:
        """Rows of a shard, that come next in the batch."""
        self._num_rows += end - start
        for block in directory.blocks_of(start, end):
            key = shard, block
            first, last = directory.block_rows[block : block + 2].tolist()
            if key not in self._directories:
                self._directories[key] = directory
                self._unused[key] = last - first
                kept = self._kept.get(shard, block, directory)
                if kept:
                    self._found[key] = kept
                else:
                    self.blocks.setdefault(shard, []).append(block)
            self._pieces.append((key, max(start, first) - first, min(end, last) - first))
            self._unused[key] -= min(end, last) - max(start, first)

    def decoded(self, workers: Workers) -> Rows:
        """All of them, once their blocks were read. Raises CorruptError."""
        workers.each(lambda chunk: chunk.open(self._codec), self._chunks(workers.num_threads))
        parts = self._parts()
        tilted = self._codec.tilted is not None
        out = Rows.room(self._codec.kind, *self._offsets(parts), tilted=tilted)
        workers.each(lambda part: part.chunk.read(self._codec, part.spans, out[part.start : part.end]), parts)
        for key, num_unused in self._unused.items():
            if num_unused > 0:
                self._kept.keep(*key, *self._found[key])
        return out

    def _chunks(self, num_threads: int) -> list[Chunk]:
        """The blocks that were read, in the order in which they are wanted first."""
        most_rows = min(CHUNK_ROWS, max(FEWEST_CHUNK_ROWS, self._num_rows // num_threads))
        chunks: list[Chunk] = []
        for key, directory in self._directories.items():
            if key in self.packed:
                if not chunks or not chunks[-1].has_room(self.packed[key], most_rows):
                    chunks.append(Chunk())
                self._found[key] = chunks[-1], chunks[-1].add(directory, key[1], self.packed[key])
        return chunks

    def _parts(self) -> list[Part]:
        parts: list[Part] = []
        place = 0
        for key, start, end in self._pieces:
            chunk, row = self._found[key]
            if not parts or parts[-1].chunk is not chunk:
                parts.append(Part(chunk, [], place, place))
            parts[-1].follow(row + start, row + end)
            place = parts[-1].end
        return parts

    def _offsets(self, parts: list[Part]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of kept ids and of draws."""
        heads, draws = np.zeros((2, self._num_rows + 1), np.int64)
        for part in parts:
            rows, place = part.chunk.rows, part.start + 1
            assert rows is not None
            from_heads, from_draws = rows.head_offsets, rows.draw_offsets
            for start, end in part.spans:
                there = slice(place, place + end - start)
                np.subtract(from_heads[start + 1 : end + 1], from_heads[start:end], out=heads[there])
                np.subtract(from_draws[start + 1 : end + 1], from_draws[start:end], out=draws[there])
                place = there.stop
        return heads.cumsum(out=heads), draws.cumsum(out=draws)
