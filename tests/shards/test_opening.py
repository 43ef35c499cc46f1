"""What opening and reading a cache costs: no shard is opened before it is asked for, and few stay open."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from distillcache_shards.cache import OPEN_SHARDS, Cache
from distillcache_shards.codecs import PackedBlock
from distillcache_shards.codecs.codec import WholeRows
from distillcache_shards.codecs.plain import Plain
from distillcache_shards.wanted import MOST_OPEN
from tests.shards.small_cache import SmallCache, small_cache

# Prints which files of a folder are opened: by opening it as a cache, then by reading its last sequence.
OPENED = """
import json, os, sys
from distillcache_shards.cache import Cache
opened = []
def hook(event, values):
    if event == "open" and str(values[0]).startswith(sys.argv[1]):
        opened.append(os.path.basename(values[0]))
    if event in ("os.listdir", "os.scandir"):
        opened.append(event)
sys.addaudithook(hook)
cache = Cache.open(sys.argv[1])
at_first, opened[:] = list(opened), []
cache[len(cache) - 1]
print(json.dumps([at_first, sorted(set(opened))]))
"""


def of_shards(number: int) -> SmallCache:
    """A cache of as many shards, one sequence each."""
    return small_cache(lengths=[4] * number, sequences_a_shard=1)


@pytest.mark.parametrize("num_shards", [1, 2_000])
def test_opening_opens_the_plan_and_the_index_alone(tmp_path: Path, num_shards: int) -> None:
    """For one shard as for thousands; reading a sequence opens its shard and no other."""
    last = num_shards - 1
    folder = of_shards(num_shards).write(tmp_path / "cache", shards=(last,))
    done = subprocess.run(
        [sys.executable, "-c", OPENED, folder], capture_output=True, text=True, check=True, timeout=60
    )
    opened = ["cache.json", "index.safetensors"], [f"shard-{last:05d}.safetensors"]
    assert json.loads(done.stdout) == list(opened)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More shards than stay open."""
    return of_shards(2 * OPEN_SHARDS).write(tmp_path_factory.mktemp("many") / "cache")


def num_open(folder: Path) -> int:
    """Files of a folder that this process has open."""
    links = (each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
    return sum(link.is_relative_to(folder) for link in links)


def test_reading_leaves_no_shard_open(many: Path) -> None:
    """However many are read, and in whatever order; nothing of their files stays in memory either."""
    cache = Cache.open(many)
    assert num_open(many) == 1  # the index
    for indices in (range(len(cache)), range(len(cache) - 1, -1, -1)):
        for index in indices:
            assert len(cache[index].tokens) == 4
            assert num_open(many) == 1
    maps = Path("/proc/self/maps").read_text()
    assert str(many / "index.safetensors") in maps
    assert str(many / "shard-") not in maps


def test_only_some_shards_stay_open(many: Path) -> None:
    """Of those that are asked for whole; a cache that is let go leaves none open."""
    cache = Cache.open(many)
    for number in [*range(cache.num_shards), 0]:
        assert cache.shard(number).num_tokens == 4
        assert num_open(many) <= 1 + OPEN_SHARDS
    assert num_open(many) == 1 + OPEN_SHARDS
    del cache
    assert num_open(many) == 0


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first byte of the checksum of each block that is decoded from now on: as good as its name."""
    found: list[int] = []
    opened = Plain.open

    def counted(codec: Plain, blocks: list[PackedBlock]) -> WholeRows:
        found.extend(hash(each.data.tobytes()) for each in blocks)
        return opened(codec, blocks)

    monkeypatch.setattr(Plain, "open", counted)
    return found


def test_a_batch_decodes_each_block_once(tmp_path: Path, decoded: list[int]) -> None:
    """In whatever order it asks for sequences of more blocks than are kept."""
    small = small_cache(lengths=[5] * 60, sequences_a_shard=60)
    cache = Cache.open(small.write(tmp_path / "cache"))
    cache.read([*range(0, 60, 2), *range(1, 60, 2)])
    assert cache.shard(0).num_blocks > MOST_OPEN
    assert len(decoded) == len(set(decoded)) == cache.shard(0).num_blocks


def test_neighbours_decode_their_block_once(tmp_path: Path, decoded: list[int]) -> None:
    """Read one after the other, each alone."""
    small = small_cache(lengths=[5] * 60, sequences_a_shard=60)
    cache = Cache.open(small.write(tmp_path / "cache"))
    for index in range(60):
        cache.read([index])
    assert len(decoded) == cache.shard(0).num_blocks < 40


def test_sequences_that_are_kept_keep_few_files_open(many: Path) -> None:
    """A list of sequences, of more shards than a process may have files, is no error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + OPEN_SHARDS + 16, hard))
    try:
        kept = list(Cache.open(many))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(kept) == 2 * OPEN_SHARDS
