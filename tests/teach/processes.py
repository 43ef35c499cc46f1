"""Commands in processes of their own, to be killed, interrupted or run side by side.

A new interpreter takes seconds to import torch: most tests fork theirs from one that has done so.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distillcache_cli.app import run

__all__ = ["Command", "wait_until"]

WAIT_SECONDS = 120.0
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["distillcache_cli.app", "distillcache.teach.run"])


def wait_until(true: Callable[[], object]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Command:
    """`distillcache ARGUMENTS`, begun: in a new interpreter if `cold`, else in a fork of a warm one.

    What it prints goes to `stdout` and `stderr` in `folder`.
    """

    def __init__(self, arguments: list[str], folder: Path, *, cold: bool = False) -> None:
        folder.mkdir(exist_ok=True)
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._cold: subprocess.Popen[bytes] | None = None
        if cold:
            with self._out.open("wb") as out, self._err.open("wb") as err:
                self._cold = subprocess.Popen(
                    [sys.executable, "-m", "distillcache_cli", *arguments],
                    stdout=out,
                    stderr=err,
                )
            self.pid = self._cold.pid
        else:
            self._warm = FORKS.Process(target=_run, args=(arguments, self._out, self._err))
            self._warm.start()
            assert self._warm.pid is not None
            self.pid = self._warm.pid

    @property
    def code(self) -> int | None:
        """The exit code, a signal's number negative; None while it runs."""
        return self._cold.poll() if self._cold is not None else self._warm.exitcode

    def send(self, signal_number: int) -> None:
        """Send a signal, if it still runs."""
        if self.code is None:
            os.kill(self.pid, signal_number)

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""
        wait_until(lambda: self.code is not None)
        assert self.code is not None
        return self.code

    @property
    def out(self) -> str:
        """What it printed."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it said beside that."""
        return self._err.read_text()


def _run(arguments: list[str], out: Path, err: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.exit(run(arguments))
