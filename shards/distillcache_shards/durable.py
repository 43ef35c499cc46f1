"""Files that are whole or not there: written beside their name, synced, then renamed.

Knows nothing of what is in them.
"""

import contextlib
import errno
import os
import secrets
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from distillcache_shards.errors import CacheError

__all__ = ["PARTIAL", "disk_errors", "partials_of", "sync_folder", "write_whole"]

PARTIAL = ".partial"


def write_whole(file: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file so that its name never stands for half of it, not even after a power cut.

    Raises CacheError if the disk does not take it; then nothing is left behind, and what was there stays.
    """
    # A name of its own for every writer, so that two that try the same file do not meet.
    partial = file.with_name(
        f"{file.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}"
    )
    with disk_errors(file):
        try:
            with partial.open("wb") as stream:
                for part in parts:
                    stream.write(part)
                stream.flush()
                os.fsync(stream.fileno())
            partial.rename(file)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files; a no-op where folders cannot be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partials_of(file: Path) -> list[Path]:
    """What writers that were killed left of a file. Only who may write the file may remove them."""
    return sorted(file.parent.glob(f"{file.name}.*{PARTIAL}"))


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """A disk that fails, as one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space and start the same command again; nothing of what is done is lost"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "name a folder that may be written to"
        else:
            remedy = "check the disk and start the same command again"
        raise CacheError(f"{where}: cannot be written: {error.strerror or error}; {remedy}") from None
