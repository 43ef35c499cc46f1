"""A cache, read and verified in a process that may have no more than a gigabyte.

`python -m tests.hostile.confined FOLDER` prints the lines that a user would read, as JSON.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

from distillcache_shards.cache import Cache
from distillcache_shards.errors import DistillcacheError

__all__ = ["MOST_BYTES", "ROOT", "confine", "lines_within_a_gigabyte", "problems"]

MOST_BYTES = 1 << 30  # of address space, so all that is mapped or asked for counts
MOST_SECONDS = 60.0
ROOT = Path(__file__).parents[2]


def confine() -> None:
    """No more than a gigabyte for this process from now on."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


def problems(folder: Path) -> list[str]:
    """What `verify` finds in the index and the shards. Raises CacheError if the cache does not open."""
    cache = Cache.open(folder)
    found = cache.faults_of_index()
    for number in range(cache.num_shards):
        try:
            found += cache.faults_of_shard(number)
        except DistillcacheError as error:
            found.append(str(error))
    return found


def lines_within_a_gigabyte(folder: Path) -> tuple[str, list[str]]:
    """The error of a reader, empty if there is none, and the problems that `verify` finds."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.confined", folder],
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-600:]
    said, found = json.loads(done.stdout)
    return said, found


def _main(folder: Path) -> None:
    said = ""
    try:
        cache = Cache.open(folder)
        for index in range(len(cache)):
            _ = cache[index]
    except DistillcacheError as error:
        said = str(error)
    try:
        found = problems(folder)
    except DistillcacheError as error:
        found = [str(error)]
    print(json.dumps([said, found]))


if __name__ == "__main__":
    confine()
    _main(Path(sys.argv[1]))
