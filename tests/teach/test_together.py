"""Several processes teach into one folder: the bytes of one, and nothing is taught twice."""

import json
import signal
from pathlib import Path

import pytest

from tests.teach.processes import Command, wait_until
from tests.teach.teaching import MANY_SHARDS, command_line, contents


@pytest.mark.parametrize(
    ("processes", "cold"),
    [(2, False), (3, False), pytest.param(2, True, marks=pytest.mark.slow)],
    ids=["two", "three", "two new interpreters"],
)
def test_processes_share_the_work(
    processes: int, cold: bool, teacher: Path, long_corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """They begin at the same time on a folder that is not there yet."""
    cache = tmp_path / "cache"
    arguments = [*command_line(cache, teacher, long_corpus, **MANY_SHARDS), "--json"]
    running = [Command(arguments, tmp_path / str(number), cold=cold) for number in range(processes)]
    assert [each.wait() for each in running] == [0] * processes, [each.err for each in running]
    reports = [json.loads(each.out) for each in running]
    assert contents(cache) == contents(uninterrupted)
    assert sum(each["tokens_taught"] for each in reports) == reports[0]["tokens"]
    # One may end while another still writes; the last sees all of it.
    assert min(each["shards_missing"] for each in reports) == 0


def test_one_of_two_that_is_killed_leaves_its_shard_to_the_next(
    teacher: Path, long_corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """The other is not disturbed; at most what the dead one was at is missing, until the same command."""
    cache = tmp_path / "cache"
    arguments = [*command_line(cache, teacher, long_corpus, **MANY_SHARDS), "--json"]
    first, second = (Command(arguments, tmp_path / name) for name in ("first", "second"))
    wait_until(lambda: len(list(cache.glob("shard-*.safetensors"))) >= 10)
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert second.wait() == 0, second.err
    # One is taught while the last is written, so two.
    assert json.loads(second.out)["shards_missing"] <= 2
    third = Command(arguments, tmp_path / "third")
    assert third.wait() == 0, third.err
    assert contents(cache) == contents(uninterrupted)
