"""Two writers on one folder at once: the bytes of one, whoever is first at a shard."""

from pathlib import Path

import pytest

from distillcache.inspect.facts import verify
from tests.shards.writers import Writers, made

EVEN, ODD, ALL = range(0, 20, 2), range(1, 20, 2), range(20)
WAYS = {
    "other shards": (EVEN, ODD, True),
    "the same shards": (ALL, ALL, True),
    "the same shards from both ends": (ALL, ALL[::-1], True),
    # As where the system has no locks: the last one's bytes stand, and they are the first one's.
    "the same shards without claims": (ALL, ALL, False),
}


@pytest.mark.parametrize(("one", "two", "claims"), WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", ["compact-topk", "compact-sampled", "compact-tilted"])
def test_two_writers_make_the_bytes_of_one(
    name: str, one: range, two: range, claims: bool, tmp_path: Path
) -> None:
    """Nothing is left beside the shards either."""
    small = made(name)
    whole = small.write(tmp_path / "whole", shards=ALL)
    folder = small.write(tmp_path / "cache", shards=[])
    with Writers() as writers:
        started = [writers.start(name, folder, shards, claims=claims) for shards in (one, two)]
        assert [writers.wait(each) for each in started] == [0, 0]
    assert {each.name: each.read_bytes() for each in folder.iterdir()} == {
        each.name: each.read_bytes() for each in whole.iterdir()
    }
    assert [each for each in verify(folder) if "is not taught yet" not in str(each)] == []
