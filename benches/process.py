"""Work in a process of its own, and what the system counts of it: memory at its highest, bytes written.

Linux alone.
"""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["bytes_written", "in_a_process", "peak_bytes", "resident_bytes", "watch_peak"]

Result = TypeVar("Result")


def in_a_process(work: Callable[..., Result], *args: object) -> Result:
    """What a fresh process returns, which took nothing over from this one."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def watch_peak() -> int:
    """Let the high-water mark of this process begin here; the bytes that it holds now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes()


def resident_bytes() -> int:
    """Memory that this process holds."""
    return 1024 * _count("status", "VmRSS")


def peak_bytes() -> int:
    """The most that it held, since its start or `watch_peak`."""
    return 1024 * _count("status", "VmHWM")


def bytes_written() -> int:
    """What it handed to `write` and its kin, files and pipes."""
    return _count("io", "wchar")


def _count(file: str, name: str) -> int:
    for line in Path(f"/proc/self/{file}").read_text().splitlines():
        found, value = line.split(":", 1)
        if found == name:
            return int(value.split()[0])
    raise AssertionError(name)
