"""Thousands of mutated shards of every codec: a named error or the untouched data, in a gigabyte and in time.

An accident that a reader lets pass has changed nothing, and `verify` finds every one. A forgery, whose
checksums are right, may be other sound rows at most: checksums find accidents; they are no signature.
"""

import json
import subprocess
import sys

import pytest

from tests.hostile.confined import ROOT
from tests.hostile.subjects import SUBJECTS

# The mass takes some two minutes on one core.
QUICK, MASS = 100, 2_750
MOST_SECONDS = 900.0


def outcomes(name: str, first: int, count: int) -> dict[str, int]:
    """What became of so many mutants, in a process that may have a gigabyte; none may be wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.mutations", name, str(first), str(count)],
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        cwd=ROOT,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-600:])
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert sum(found["told"].values()) == count
    told: dict[str, int] = found["told"]
    assert "accident, other rows" not in told
    return told


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_mutated_shard_is_refused_or_untouched(name: str) -> None:
    """Flipped, cut, spliced, moved, replaced; forged offsets, headers, sizes, values, streams and bombs."""
    told = outcomes(name, 0, QUICK)
    # Most are refused, and some of the forged ones reach the end of the decoder.
    assert told["accident, refused"] > QUICK // 3 and told["forged, refused"] > QUICK // 4
    assert told["forged, other rows"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_twenty_thousand_mutated_shards_are_refused_or_untouched(name: str) -> None:
    """24,750 in all, other seeds than those of the quick sample."""
    assert len(SUBJECTS) * MASS >= 20_000
    outcomes(name, QUICK, MASS)
