"""Claims: one holder at a time, however many want it, and none when its holder is gone."""

import subprocess
import sys
from pathlib import Path

import pytest

from distillcache_shards.claims import CLAIM, claimed, remove_leftovers

HOLDER = """
import sys
from pathlib import Path
from distillcache_shards.claims import claimed
with claimed(Path(sys.argv[1]), wait=len(sys.argv) > 2) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""
# Adds one to a number, many times; without a claim some of it would be lost.
COUNTER = """
import sys
from pathlib import Path
from distillcache_shards.claims import claimed
file = Path(sys.argv[1])
for _ in range(200):
    with claimed(file, wait=True) as mine:
        assert mine
        file.write_text(str(int(file.read_text()) + 1))
"""


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What is claimed; it need not be there."""
    return tmp_path / "shard"


def test_two_processes_do_not_hold_one_claim(file: Path) -> None:
    """The second is told at once, and has it when the first has let go; another file is free."""
    with start(HOLDER, file) as holder:
        assert said(holder) == "True"
        with claimed(file) as mine:
            assert not mine
        with claimed(file.with_name("other")) as mine:
            assert mine
        holder.communicate(timeout=60)
    with claimed(file) as mine:
        assert mine
        with start(HOLDER, file) as second:
            assert said(second) == "False"
            second.communicate(timeout=60)
    assert list(file.parent.iterdir()) == []


def test_a_claim_of_a_killed_holder_is_free(file: Path) -> None:
    """The system lets go of it; the file that it leaves stops nobody."""
    with start(HOLDER, file) as holder:
        assert said(holder) == "True"
        holder.kill()
    assert file.with_name(file.name + CLAIM).exists()
    with claimed(file) as mine:
        assert mine


def test_who_waits_gets_it(file: Path) -> None:
    """As soon as the holder is done, and not before."""
    with claimed(file) as mine:
        assert mine
        waiting = start(HOLDER, file, "wait")
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=0.5)
        with claimed(file) as again:
            assert not again
    with waiting:
        assert said(waiting) == "True"
        waiting.communicate(timeout=60)


def test_no_two_hold_it_while_many_come_and_go(file: Path) -> None:
    """The file of a claim is removed and made anew all the time, and never locked twice."""
    file.write_text("0")
    counters = [start(COUNTER, file) for _ in range(3)]
    for counter in counters:
        with counter:
            assert counter.wait(timeout=60) == 0
    assert file.read_text() == "600"


def test_a_claim_is_let_go_of_when_its_holder_fails(file: Path) -> None:
    """An error inside passes through."""
    with pytest.raises(ZeroDivisionError), claimed(file):
        _ = 1 / 0
    with claimed(file) as mine:
        assert mine


def test_stale_claims_are_removed_and_held_ones_stay(file: Path) -> None:
    """What killed holders left."""
    stale = file.with_name("stale" + CLAIM)
    stale.touch()
    with claimed(file) as mine:
        assert mine
        remove_leftovers(file.parent)
        assert not stale.exists()
        with claimed(file) as again:
            assert not again
