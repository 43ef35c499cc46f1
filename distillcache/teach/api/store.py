"""All that a server said, in one file beside the answers of a run: appended, synced, never written again.

What an answer cost is counted elsewhere, after what it said is on the disk here.
Knows nothing of what was said.
"""

import asyncio
import os
import zlib
from pathlib import Path

from distillcache.errors import TeacherError

__all__ = ["STORE_FILE", "SaidStore"]

STORE_FILE = "said.bin"


class SaidStore:
    """`said.bin` of a folder. Texts in it are found by the references that `keep` gives."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / STORE_FILE

    async def keep(self, data: bytes) -> str:
        """Append data, and return where they stand when they are on the disk. Raises OSError.

        What a crash left half written has no reference, and stays where it is.
        """
        # Written in one go on the loop's own thread, so that two do not mix; only the disk is waited for.
        with self.path.open("ab") as file:
            offset = file.tell()
            file.write(data)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        return f"{offset}:{len(data)}:{zlib.crc32(data):08x}"

    def load(self, reference: str) -> bytes:
        """The data of a reference. Raises TeacherError where they are not as they were."""
        try:
            offset, size, checksum = reference.split(":")
            with self.path.open("rb") as file:
                file.seek(int(offset))
                data = file.read(int(size))
            if len(data) == int(size) and f"{zlib.crc32(data):08x}" == checksum:
                return data
        except ValueError:
            offset = "?"
        raise TeacherError(
            f"{self.path}: damaged at byte {offset}; restore the file, or name another folder by --answers "
            "to ask again"
        )
