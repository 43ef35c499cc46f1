"""A writer that is killed at a chosen step of writing a shard: no shard is lost, and none is wrong."""

import signal
from pathlib import Path

import pytest

from distillcache.inspect.facts import verify
from distillcache_shards.cache import Cache
from distillcache_shards.shard import shard_file
from tests.shards.writers import AFTER_RENAME, NUM_SHARDS, STEPS, Writers, made


def shards_in(folder: Path) -> dict[int, bytes]:
    """Whatever has the name of a shard."""
    files = {number: shard_file(folder, number) for number in range(NUM_SHARDS)}
    return {number: file.read_bytes() for number, file in files.items() if file.exists()}


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("compact-topk", 3 * len(STEPS)),
        pytest.param("compact-topk", 100, marks=pytest.mark.slow),
        pytest.param("zstd", 100, marks=pytest.mark.slow),
    ],
)
def test_a_writer_killed_at_every_step_loses_nothing(name: str, kills: int, tmp_path: Path) -> None:
    """Before, in and after the write, the sync, the rename and the sync of the folder, each several times.

    Every time what has the name of a shard is that shard to the byte, and those before are there; at the end
    the folder is that of a writer that nobody killed.
    """
    small = made(name)
    whole = small.write(tmp_path / "whole")
    wanted = shards_in(whole)
    folder = small.write(tmp_path / "cache", shards=[])
    before: list[int] = []
    with Writers() as writers:
        for kill in range(kills):
            step = STEPS[kill % len(STEPS)]
            missing = [number for number in range(NUM_SHARDS) if number not in before]
            code = writers.wait(writers.start(name, folder, missing, dies_at=step))
            assert code == -signal.SIGKILL, step
            found = shards_in(folder)
            assert found.items() <= wanted.items()
            # A shard has its name from the rename on, and one that has it keeps it.
            new = missing[:1] if step in AFTER_RENAME else []
            assert sorted(found) == sorted([*before, *new]), step
            cache = Cache.open(folder)
            assert cache.missing_shards() == [each for each in missing if each not in new]
            for number in new:
                assert cache.faults_of_shard(number) == []
            before = sorted(found)
        assert 0 < len(before) < NUM_SHARDS
        assert writers.wait(writers.start(name, folder, range(NUM_SHARDS))) == 0
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == {
        each.name: each.read_bytes() for each in whole.iterdir()
    }
    assert verify(folder) == []
