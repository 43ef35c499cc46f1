"""Byte streams of a block, each compressed on its own, since each has statistics of its own.

Knows nothing of rows. Layout: FORMAT.md, "Streams".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from distillcache_shards.codecs.codec import EncodedBlock
from distillcache_shards.errors import CorruptError

__all__ = ["pack_streams", "unpack_streams"]

U8 = NDArray[np.uint8]

# Huffman coding alone: what repeats here does so by chance, and a match costs more than the bytes it saves.
ENTROPY_ONLY = zstandard.ZstdCompressionParameters.from_level(
    1, strategy=zstandard.STRATEGY_FAST, min_match=7, write_checksum=False, write_content_size=True
)


def pack_streams(streams: Sequence[NDArray[Any]]) -> EncodedBlock:
    """The compressed length of each stream as u32, then one zstandard frame each."""
    compressor = zstandard.ZstdCompressor(compression_params=ENTROPY_ONLY)
    frames = [compressor.compress(each.tobytes()) if each.size else b"" for each in streams]
    lengths = np.array([len(each) for each in frames], "<u4").tobytes()
    return EncodedBlock(lengths + b"".join(frames), sum(each.nbytes for each in streams))


def unpack_streams(data: U8, count: int, expanded_bytes: int) -> list[U8]:
    """`count` streams. Never more than `expanded_bytes` are made room for. Raises CorruptError."""
    place = 4 * count
    if len(data) < place:
        raise CorruptError(f"is shorter than its {count} lengths; found {len(data)} bytes")
    lengths = data[:place].copy().view("<u4").astype(np.int64).tolist()
    if place + sum(lengths) != len(data):
        raise CorruptError(f"has streams of {sum(lengths)} bytes; found {len(data) - place}")
    decompressor = zstandard.ZstdDecompressor()
    streams, room = [], expanded_bytes
    try:
        for length in lengths:
            frame = data[place : place + length].tobytes()
            place += length
            size = zstandard.frame_content_size(frame) if length else 0
            if not 0 <= size <= room:
                raise CorruptError(f"would expand past the {expanded_bytes} bytes that are declared")
            room -= size
            whole = decompressor.decompress(frame, allow_extra_data=False) if length else b""
            streams.append(np.frombuffer(whole, np.uint8))
    except zstandard.ZstdError as error:
        raise CorruptError(f"is no zstandard frame: {error}") from None
    if room:
        raise CorruptError(f"expands to {expanded_bytes - room} bytes, where {expanded_bytes} are declared")
    return streams
