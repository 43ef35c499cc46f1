"""Forged blocks: the content of a block taken apart, changed and packed again, as FORMAT.md says it is made.

Made without the codecs, so that what no writer would write can be written.
"""

import itertools
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import zstandard

from tests.golden.reader import Sections
from tests.golden.reader import numbers as read_numbers
from tests.hostile.forge import Forgery

__all__ = ["blown_up", "content_of", "framed", "in_streams", "numbers", "set_block", "stream_parts"]


def framed(content: bytes) -> bytes:
    """One zstandard frame that says its size."""
    return zstandard.ZstdCompressor(write_content_size=True).compress(content)


def blown_up(before: bytes, num_zeros: int, after: bytes = b"") -> bytes:
    """A frame, small and true, of these bytes around so many zeros. Made in a megabyte."""
    size = len(before) + num_zeros + len(after)
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=size)
    megabyte = bytes(1 << 20)
    parts = [compressor.compress(before), *(compressor.compress(megabyte) for _ in range(num_zeros >> 20))]
    parts.append(compressor.compress(bytes(num_zeros & ((1 << 20) - 1)) + after))
    return b"".join([*parts, compressor.flush()])


def numbers(values: Sequence[int]) -> tuple[bytes, bytes]:
    """Numbers as their first bytes and more."""
    first, lower, upper = bytearray(), bytearray(), bytearray()
    for value in values:
        if value < 192:
            first.append(value)
        elif value < 12_480:
            first.append(192 + (value - 192) // 256)
            lower.append((value - 192) % 256)
        else:
            first.append(240 + (value - 12_480 >> 16))
            lower.append((value - 12_480) & 255)
            upper.append((value - 12_480 >> 8) & 255)
    return bytes(first), bytes(lower + upper)


def stream_parts(forgery: Forgery, block: int) -> list[bytes]:
    """The streams of a block of a compact codec, that is sound: twelve of `compact-tilted`, else ten."""
    plan = forgery.description["plan"]
    num_rows = int(np.diff(forgery.arrays["block_rows"])[block])
    content = zstandard.decompress(content_of(forgery, block))
    take, places = Sections(content, planes=False), [0]

    def many(count: int) -> np.ndarray:
        found = read_numbers(take, count)
        places.extend([places[-1] + count, take.place])
        return found

    def bytes_(count: int) -> None:
        take(np.dtype("u1"), count)
        places.append(take.place)

    counts = many(num_rows)
    kept = int(counts.sum())
    tilted = plan["codec"]["id"] == "compact-tilted"
    draws = int(many(num_rows).sum()) if tilted else 0
    bytes_(num_rows)
    if plan["rows"]["kind"] == "topk":
        bytes_(2 * num_rows)
        bytes_(2 * num_rows)
        many(kept)
        many(kept)
    else:
        steps = np.split(many(kept)[::-1], np.cumsum(counts))[:-1]
        units, draw_units = (plan["codec"]["params"][name] for name in ("units", "draw_units"))
        if not tilted:
            draws = sum(-(-(units - int(np.cumsum(each[::-1]).sum())) // draw_units) for each in steps)
        many(kept)
        many(draws)
    bytes_(num_rows)
    assert places[-1] == len(content) and len(places) == (13 if tilted else 11)
    return [content[start:end] for start, end in itertools.pairwise(places)]


def content_of(forgery: Forgery, block: int) -> bytes:
    """The bytes of a block."""
    start = int(forgery.arrays["block_start"][block])
    return forgery.arrays["rows"][start : start + int(forgery.arrays["block_bytes"][block])].tobytes()


def set_block(forgery: Forgery, block: int, data: bytes, expanded_bytes: int) -> None:
    """Another block in place of one, under its own checksum; those after it move."""
    arrays = forgery.arrays
    starts = arrays["block_start"].astype(np.int64)
    padded = np.frombuffer(data + bytes(-len(data) % 8), np.uint8)
    before, after = arrays["rows"][: starts[block]], arrays["rows"][starts[block + 1] :]
    arrays["rows"] = np.concatenate([before, padded, after])
    starts[block + 1 :] += len(padded) - (starts[block + 1] - starts[block])
    arrays["block_start"] = starts.astype("<u8")
    arrays["block_bytes"][block], arrays["block_expanded_bytes"][block] = len(data), expanded_bytes
    arrays["block_crc32"][block] = zlib.crc32(data)


def in_streams(block: int, change: Callable[[list[bytes]], object]) -> Callable[[Forgery], None]:
    """The streams of a block, changed in their list."""

    def forged(it: Forgery) -> None:
        parts = stream_parts(it, block)
        change(parts)
        content = b"".join(parts)
        set_block(it, block, framed(content), len(content))

    return forged
