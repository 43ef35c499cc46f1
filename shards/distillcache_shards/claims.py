"""Claims: several processes, on one machine or many, teach into one folder and never the same shard at once.

A claim is a locked file beside the shard; the system lets go of it however its holder ends.
Where the system has no such locks, one process at a time must teach into a folder.
"""

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillcache_shards.durable import PARTIAL

# Absent on Windows.
fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None

__all__ = ["CLAIM", "claimed", "remove_leftovers"]

CLAIM = ".claim"


@contextlib.contextmanager
def claimed(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether the file is this process's to write, as long as the context lasts; with `wait` it always is.

    Raises OSError.
    """
    if fcntl is None:
        yield True
        return
    claim = file.with_name(file.name + CLAIM)
    while True:
        descriptor = os.open(claim, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            yield False
            return
        # Its last holder may have removed the file between our opening it and locking it.
        if _is_named(descriptor, claim):
            break
        os.close(descriptor)
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            claim.unlink()
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left: claims, and files half written. Raises OSError.

    Whatever a process that lives has claimed stays.
    """
    for claim in folder.glob(f"*{CLAIM}"):
        with claimed(claim.with_name(claim.name.removesuffix(CLAIM))):
            pass
    for partial in folder.glob(f"*.safetensors.*{PARTIAL}"):
        name, _, _ = partial.name.partition(".safetensors.")
        with claimed(folder / f"{name}.safetensors") as ours:
            if ours:
                partial.unlink(missing_ok=True)


def _is_named(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
