"""Byte streams of a block, one after another in one frame, each with statistics of its own.

How long a stream is follows from those before it.
Several blocks are read at once, a stream of all of them at a time: to call numpy costs more than 100 rows.
Knows nothing of rows. Layout: FORMAT.md, "Streams".
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from distillcache_shards.codecs.codec import EncodedBlock, PackedBlock
from distillcache_shards.errors import CorruptError
from distillcache_shards.limits import MAX_BLOCK_BYTES

__all__ = ["Streams", "expand", "pack_streams"]

U8 = NDArray[np.uint8]

# Huffman coding alone: what repeats here does so by chance, and a match costs more than the bytes it saves.
ENTROPY_ONLY = zstandard.ZstdCompressionParameters.from_level(
    1, strategy=zstandard.STRATEGY_FAST, min_match=7, write_checksum=False, write_content_size=True
)
# No two threads may use a context, and to make one takes as long as to expand a hundred rows.
_of_thread = threading.local()


def pack_streams(streams: Sequence[NDArray[Any]]) -> EncodedBlock:
    """One zstandard frame, in which each stream begins a block of its own and so has its own code."""
    total = sum(each.nbytes for each in streams)
    packer = zstandard.ZstdCompressor(compression_params=ENTROPY_ONLY).compressobj(size=total)
    parts = []
    for each in streams:
        if each.size:
            parts += [packer.compress(each.tobytes()), packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return EncodedBlock(b"".join([*parts, packer.flush()]), total)


def expand(data: U8, expanded_bytes: int) -> U8:
    """The content of one frame. Never more than `expanded_bytes` are made room for. Raises CorruptError."""
    if expanded_bytes > MAX_BLOCK_BYTES:
        raise CorruptError(f"would expand to {expanded_bytes} bytes, where {MAX_BLOCK_BYTES} are the most")
    try:
        declared = zstandard.frame_content_size(data.data)
        if declared != expanded_bytes:
            raise CorruptError(f"would expand to {declared} bytes, where {expanded_bytes} are declared")
        whole = _decompressor().decompress(data.data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptError(f"is no zstandard frame: {error}") from None
    return np.frombuffer(whole, np.uint8)


def _decompressor() -> zstandard.ZstdDecompressor:
    try:
        found: zstandard.ZstdDecompressor = _of_thread.decompressor
    except AttributeError:
        found = _of_thread.decompressor = zstandard.ZstdDecompressor()
    return found


class Streams:
    """The streams of some blocks, to be taken in order."""

    def __init__(self, blocks: Sequence[PackedBlock]) -> None:
        self._wholes = [expand(each.data, each.expanded_bytes) for each in blocks]
        self._places = [0] * len(blocks)

    def take(self, counts: Sequence[int], *, backwards: bool = False) -> U8:
        """The next `counts` bytes of each block, those of the first block first, or last.

        Raises CorruptError if there are fewer.
        """
        parts = []
        for number, count in enumerate(counts):
            start, whole = self._places[number], self._wholes[number]
            self._places[number] = end = start + count
            if end > len(whole):
                raise CorruptError(f"is shorter than its rows; found {len(whole)} bytes")
            parts.append(whole[start:end])
        return parts[0] if len(parts) == 1 else np.concatenate(parts[::-1] if backwards else parts)

    def end(self) -> None:
        """Raises CorruptError unless all was taken."""
        for place, whole in zip(self._places, self._wholes, strict=True):
            if place != len(whole):
                raise CorruptError(f"is longer than its rows; found {len(whole)} bytes")
