"""A cache in several processes: torch's loaders, forked and spawned, and a reader that is killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from distillcache_shards.cache import Batch, Cache
from distillcache_shards.workers import num_cores
from tests.shards.compact_cache import compact_sampled_cache, compact_tilted_cache, compact_topk_cache
from tests.shards.small_cache import assert_same_rows

LENGTHS = [(17 * n) % 40 + 2 for n in range(48)]
MAKERS = {"topk": compact_topk_cache, "sampled": compact_sampled_cache, "tilted": compact_tilted_cache}
ROOT = Path(__file__).parents[2]
# Reads on and on, and says so once it has begun.
READS = """
import sys
from distillcache_shards.cache import Cache
cache = Cache.open(sys.argv[1], threads=2)
print("reads", flush=True)
while True:
    cache.read(range(len(cache)))
"""


class Batches(Dataset[Batch]):
    """A batch of each five neighbours."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache) // 5

    def __getitem__(self, place: int) -> Batch:
        return self.cache.read(range(5 * place, 5 * place + 5))


class Cores(Dataset[int]):
    """How many threads a reader of a worker would have."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> int:
        return num_cores()


def as_it_is(batches: list[Batch]) -> Batch:
    """The one batch of a list of one."""
    return batches[0]


@pytest.mark.parametrize(
    ("start", "kind", "threads"),
    [("fork", "topk", None), ("fork", "sampled", 2), ("spawn", "sampled", 2), ("fork", "tilted", 2)],
)
def test_workers_of_a_loader_read_what_one_process_reads(
    tmp_path: Path, start: str, kind: str, threads: int | None
) -> None:
    """Two workers, of a cache that was read from before, also by threads."""
    cache = Cache.open(MAKERS[kind](lengths=LENGTHS).write(tmp_path / "cache"), threads=threads)
    before = set(threading.enumerate())
    here = [Batches(cache)[place] for place in range(9)]
    assert set(threading.enumerate()) <= before
    loader = DataLoader(Batches(cache), num_workers=2, multiprocessing_context=start, collate_fn=as_it_is)
    found = list(loader)
    assert len(found) == 9
    for there, wanted in zip(found, here, strict=True):
        assert_same_rows(there.rows, wanted.rows)
        for name in ("indices", "records", "tokens", "supervised", "token_offsets", "row_offsets"):
            np.testing.assert_array_equal(getattr(there, name), getattr(wanted, name))


def test_a_worker_has_one_thread() -> None:
    """Workers are many already."""
    loader = DataLoader(
        Cores(), num_workers=2, multiprocessing_context="fork", collate_fn=lambda each: each[0]
    )
    assert list(loader) == [1, 1]


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT])
def test_a_reader_that_is_killed_leaves_the_folder_as_it_was(
    tmp_path: Path, ended_by: signal.Signals
) -> None:
    """In the midst of a read, at some moments; the next reader finds the same."""
    folder = compact_topk_cache(lengths=LENGTHS).write(tmp_path / "cache")
    before = {each.name: each.read_bytes() for each in folder.iterdir()}
    for moment in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", READS, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout is not None and process.stdout.readline() == b"reads\n"
        try:
            process.wait(timeout=0.01 + 0.03 * moment)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, ended_by)
        for _ in range(12):
            try:
                _, said = process.communicate(timeout=5)
                break
            except subprocess.TimeoutExpired:
                # Python drops an interrupt that comes while it tidies up an object: the user presses again.
                os.kill(process.pid, ended_by)
        assert process.returncode != 0
        assert ended_by == signal.SIGKILL or b"KeyboardInterrupt" in said
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == before
