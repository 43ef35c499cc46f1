"""Every bench runs, asserts its answers and prints numbers; how large they are is no test's business."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHES = sorted(each.stem for each in (ROOT / "benches").glob("bench_*.py"))


def test_there_are_benches() -> None:
    """What the next claim is about."""
    assert len(BENCHES) >= 6


@pytest.mark.slow
@pytest.mark.parametrize("bench", BENCHES)
def test_a_bench_has_a_quick_look(bench: str) -> None:
    """With one thread, and without a teacher or text of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"benches.{bench}", "--quick", "--json"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures
    assert all(math.isfinite(each) for each in figures.values() if isinstance(each, int | float))
