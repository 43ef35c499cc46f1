"""What it is to refuse a cache: one line for whoever has to mend it, and no more memory than that takes."""

import re
import tracemalloc
from pathlib import Path

import pytest

from distillcache.inspect.facts import verify
from distillcache_shards.cache import Cache
from distillcache_shards.errors import DistillcacheError
from tests.hostile.line import assert_line

# Several times what reading a small cache takes, a small part of what the files here claim to be.
MOST_BYTES = 16 << 20


def read_all(folder: Path) -> object:
    """Every sequence of a cache with its rows."""
    cache = Cache.open(folder)
    return cache.read(range(len(cache)))


def assert_refused(folder: Path, where: str, fault: str, kind: type[DistillcacheError]) -> None:
    """A reader raises `kind` with one line of file, fault (a pattern) and remedy; `verify` finds it too."""
    tracemalloc.start()
    try:
        with pytest.raises(kind) as caught:
            read_all(folder)
        assert_found(folder, where, fault)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert_line(str(caught.value), where, fault)


def assert_found(folder: Path, where: str, fault: str) -> None:
    """`verify` tells of it, as a problem or, where the cache does not open, as the error."""
    try:
        lines = [str(each) for each in verify(folder)]
    except DistillcacheError as error:
        lines = [str(error)]
    found = [line for line in lines if where in line and re.search(fault, line)]
    assert found, lines
    for line in lines:
        assert_line(line, "", "")
