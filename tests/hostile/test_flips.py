"""One wrong byte: `verify` finds it, and a reader raises an error of ours or reads what is right.

Anywhere in a small cache: every byte of its shard, its index and its plan.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillcache.inspect.facts import verify
from distillcache_shards.cache import Batch, Cache
from distillcache_shards.container import Container
from distillcache_shards.errors import DistillcacheError
from distillcache_shards.rows import SAMPLED, Rows
from tests.shards.small_cache import small_cache

SHARD, INDEX, PLAN = "shard-00000.safetensors", "index.safetensors", "cache.json"
TWO: dict[str, Any] = {"lengths": (7, 4), "sequences_a_shard": 1}
HALF, ZSTD = {"logprobs": "f16"}, {"level": 9, "logprobs": "f16"}
SMALL = {
    "plain": small_cache(codec="plain", params=HALF, **TWO),
    "zstd": small_cache(codec="zstd", params=ZSTD, kind=SAMPLED, **TWO),
}


@dataclass(frozen=True)
class Flips:
    """One of the files of a small cache."""

    codec: str
    name: str
    arrays_alone: bool = False  # headers are the same for all codecs

    def __iter__(self) -> Iterator[tuple[int, Path]]:
        """Every byte, and the cache with one bit of it wrong."""
        with tempfile.TemporaryDirectory() as folder:
            file = SMALL[self.codec].write(Path(folder)) / self.name
            content = file.read_bytes()
            first = Container(file).data_start if self.arrays_alone else 0
            with file.open("r+b", buffering=0) as stream:
                for place, byte in list(enumerate(content))[first:]:
                    os.pwrite(stream.fileno(), bytes([byte ^ 1 << place % 8]), place)
                    yield place, Path(folder)
                    os.pwrite(stream.fileno(), bytes([byte]), place)

    def __str__(self) -> str:
        return f"{self.codec} {self.name}"


FLIPS = [Flips("plain", SHARD), Flips("plain", INDEX), Flips("plain", PLAN), Flips("zstd", SHARD, True)]


def everything(batch: Batch) -> list[np.ndarray]:
    """All arrays of sequences and rows."""
    of_rows = [getattr(batch.rows, each.name) for each in fields(Rows)[1:]]
    of_batch = [getattr(batch, each.name) for each in fields(Batch) if each.name != "rows"]
    return of_batch + [array for array in of_rows if array is not None]


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    """Equal to the bit."""
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(found, wanted, strict=True))


def changes(flips: Flips, asked: Callable[[Path], list[np.ndarray]], tmp_path: Path) -> list[int]:
    """The bytes that, when they are wrong, give other arrays and not an error of ours."""
    wanted = asked(SMALL[flips.codec].write(tmp_path / "sound"))
    found = []
    for place, folder in flips:
        with contextlib.suppress(DistillcacheError):
            if not same(asked(folder), wanted):
                found.append(place)
    return found


@pytest.mark.parametrize("flips", FLIPS, ids=str)
def test_verify_finds_every_byte_that_is_wrong(flips: Flips) -> None:
    """Of a shard, of the index, of the plan: length, header, arrays and padding."""
    missed = []
    for place, folder in flips:
        with contextlib.suppress(DistillcacheError):
            if not verify(folder):
                missed.append(place)
    assert missed == []


@pytest.mark.parametrize("flips", FLIPS, ids=str)
def test_no_byte_makes_a_reader_silently_wrong(flips: Flips, tmp_path: Path) -> None:
    """It raises an error of ours, or the arrays are equal to the bit."""
    assert changes(flips, lambda folder: everything(Cache.open(folder).read(range(2))), tmp_path) == []


def test_no_byte_makes_the_index_silently_wrong(tmp_path: Path) -> None:
    """What is asked of the index alone: records, lengths, rows of sequences, and where a text is."""

    def asked(folder: Path) -> list[np.ndarray]:
        cache = Cache.open(folder)
        places = [cache.find(tokens) for tokens in SMALL["plain"].tokens]
        arrays = [cache.records(), cache.sequence_lengths, cache.sequence_row_counts, cache.shard_bounds()]
        return [*arrays, np.array([-1 if place is None else place for place in places])]

    assert changes(Flips("plain", INDEX), asked, tmp_path) == []
