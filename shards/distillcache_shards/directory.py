"""Where in its file a shard keeps what a reader wants; small, so that it is kept for many shards.

The file is opened for a read and closed after it: nothing of it stays in memory, and a file that was cut or
that cannot be read is an error and no signal.
Knows nothing of other shards or of what rows are.
"""

import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs import PackedBlock
from distillcache_shards.container import REPAIR
from distillcache_shards.errors import CorruptError
from distillcache_shards.shard import Shard

__all__ = ["Directory"]

I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Directory:
    """n sequences and b blocks of one shard, that was opened and checked."""

    file: Path
    identity: tuple[int, ...]
    token_offsets: I64  # [n + 1]
    row_offsets: I64  # [n + 1]
    records: I64  # [n]
    block_rows: I64  # [b + 1]
    block_start: I64  # [b], in the file
    block_bytes: NDArray[np.uint32]  # [b]
    block_expanded: NDArray[np.uint32]  # [b]
    block_crc32: NDArray[np.uint32]  # [b]
    tokens_start: int
    masks_start: int

    @classmethod
    def of(cls, shard: Shard) -> "Directory":
        """Of a shard that is open."""
        return cls(
            shard.file,
            _identity(os.stat(shard.file)),
            shard.token_offsets.astype(np.int64),
            shard.row_offsets.astype(np.int64),
            shard.records.astype(np.int64),
            shard.block_rows.astype(np.int64),
            shard.block_start[:-1].astype(np.int64) + shard.container.span("rows")[0],
            shard.block_bytes.copy(),
            shard.block_expanded.copy(),
            shard.block_crc32.copy(),
            shard.container.span("tokens")[0],
            shard.container.span("supervised")[0],
        )

    @cached_property
    def num_bytes(self) -> int:
        """What it takes in memory, about."""
        arrays = (getattr(self, each.name) for each in fields(self))
        return 2000 + sum(each.nbytes for each in arrays if isinstance(each, np.ndarray))

    def is_current(self) -> bool:
        """Whether its file is still the one that was checked."""
        try:
            return _identity(os.stat(self.file)) == self.identity
        except OSError:
            return False

    @contextmanager
    def opened(self) -> Iterator[io.FileIO]:
        """Its file. Raises CorruptError if it cannot be read."""
        try:
            with io.FileIO(self.file) as stream:
                yield stream
        except OSError as error:
            raise CorruptError(f"{self.file}: cannot be read: {error.strerror}; check the disk") from None

    def blocks_of(self, start: int, end: int) -> range:
        """The blocks that hold the rows `start` to `end`."""
        if start >= end:
            return range(0)
        first = int(self.block_rows.searchsorted(start, side="right")) - 1
        return range(first, int(self.block_rows.searchsorted(end, side="left")))

    def read_tokens(self, stream: io.FileIO, start: int, out: NDArray[Any]) -> None:
        """The tokens from `start` on, as many as there is room for."""
        self._fill(stream, self.tokens_start + start * out.itemsize, out)

    def read_mask(self, stream: io.FileIO, start: int, out: NDArray[np.bool_]) -> None:
        """Which of these tokens are supervised."""
        first = start // 8
        bits = np.empty(-(-(start + len(out)) // 8) - first, np.uint8)
        self._fill(stream, self.masks_start + first, bits)
        out[:] = np.unpackbits(bits, bitorder="little")[start - 8 * first :][: len(out)].view(np.bool_)

    def read_block(self, stream: io.FileIO, block: int) -> PackedBlock:
        """One block. Raises CorruptError if it fails its checksum."""
        data = np.empty(int(self.block_bytes[block]), np.uint8)
        self._fill(stream, int(self.block_start[block]), data)
        if zlib.crc32(data.data) != self.block_crc32[block]:
            raise self.fault(block, "fails its checksum")
        num_rows = int(self.block_rows[block + 1] - self.block_rows[block])
        return PackedBlock(data, num_rows, int(self.block_expanded[block]))

    def fault(self, block: int, text: str) -> CorruptError:
        """What to raise for a block that is not sound."""
        return CorruptError(f"{self.file}: block {block} {text}; {REPAIR}")

    def _fill(self, stream: io.FileIO, start: int, out: NDArray[Any]) -> None:
        stream.seek(start)
        left = out.view(np.uint8).data
        while len(left):
            count = stream.readinto(left)
            if not count:
                raise CorruptError(f"{self.file}: ends within its tensors; {REPAIR}")
            left = left[count:]


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """By this a file is known to be the one that was checked."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
