"""Files are whole or not there: when a disk fills, when a writer is killed, when two write at once."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillcache.inspect.facts import verify
from distillcache_shards.durable import disk_errors, partials_of, write_whole
from distillcache_shards.errors import CacheError
from tests.shards.small_cache import small_cache

ROOT = Path(__file__).parents[2]
# Plan and index are smaller than this, a shard is larger.
FULL_DISK = """
import resource, sys
from pathlib import Path
from distillcache_shards.errors import CacheError
from tests.shards.small_cache import small_cache
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    small_cache().write(Path(sys.argv[1]))
except CacheError as error:
    print(error)
"""
SLOW_WRITER = """
import sys
from pathlib import Path
from distillcache_shards.durable import write_whole
def parts():
    yield bytes(100_000)
    print("begun", flush=True)
    sys.stdin.read()
write_whole(Path(sys.argv[1]), parts())
"""


def run(code: str, argument: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_a_full_disk_is_one_line_and_no_partial(tmp_path: Path) -> None:
    """What was written before stays; the same again, with room, makes the whole."""
    folder = tmp_path / "cache"
    with run(FULL_DISK, folder) as writer:
        said = writer.communicate(timeout=60)[0]
    assert writer.returncode == 0
    assert said == (
        f"{folder}/shard-00000.safetensors: cannot be written: File too large; "
        "free some space and start the same command again; nothing of what is done is lost\n"
    )
    assert {file.name for file in folder.iterdir()} == {"cache.json", "index.safetensors"}
    small_cache().write(folder)
    assert verify(folder) == []


def test_a_killed_writer_leaves_its_partial_alone(tmp_path: Path) -> None:
    """The name stands for what was there before, and who may write the file finds the rest."""
    file = tmp_path / "file"
    write_whole(file, [b"before"])
    with run(SLOW_WRITER, file) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "begun\n"
        writer.kill()
    assert file.read_bytes() == b"before"
    assert [each.suffix for each in partials_of(file)] == [".partial"]
    assert partials_of(tmp_path / "other") == []


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """Whatever the failure is; nothing stands beside it."""

    def parts() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    write_whole(tmp_path / "file", [b"before"])
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", parts())
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


def test_who_reads_a_file_keeps_what_was_opened(tmp_path: Path) -> None:
    """A new file takes the name; the old one is never written to, since a reader maps it."""
    file = tmp_path / "file"
    write_whole(file, [b"before"])
    with file.open("rb", buffering=0) as reader:
        write_whole(file, [b"after and longer"])
        assert reader.read() == b"before"
    assert file.read_bytes() == b"after and longer"


def test_two_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    """Each has a partial of its own; the last one stands, whole."""
    file = tmp_path / "file"

    def parts() -> Iterator[bytes]:
        yield b"first "
        write_whole(file, [b"second"])
        assert file.read_bytes() == b"second"
        yield b"is last"

    write_whole(file, parts())
    assert file.read_bytes() == b"first is last"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EFBIG, "free some space"),
        (errno.EACCES, "name a folder that may be written to"),
        (errno.EPERM, "name a folder that may be written to"),
        (errno.EROFS, "name a folder that may be written to"),
        (errno.EIO, "check the disk"),
        (errno.ENOENT, "check the disk"),
    ],
)
def test_what_fails_on_a_disk_says_what_to_do(number: int, remedy: str) -> None:
    """By what the system says."""
    with pytest.raises(CacheError, match=f"^here: cannot be written: {os.strerror(number)}; {remedy}"):  # noqa: SIM117
        with disk_errors(Path("here")):
            raise OSError(number, os.strerror(number))


def test_a_folder_that_is_none_takes_no_file(tmp_path: Path) -> None:
    """One line, for a path through a file too."""
    write_whole(tmp_path / "file", [b""])
    for folder in ("none", "file"):
        with pytest.raises(CacheError, match=r"cannot be written: .*; check the disk"):
            write_whole(tmp_path / folder / "shard", [b""])
