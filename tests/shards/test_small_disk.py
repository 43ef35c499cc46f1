"""A disk that is really full: a clear error, nothing half written, and the same again when there is room.

The disk is a file system in memory of a few pages, mounted where only the writer sees it. Where a system does
not let a user mount one, the size of files is limited instead, which is another error of the same kind.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shards.writers import MAKERS, made

ROOT = Path(__file__).parents[2]
ALONE = ["unshare", "--user", "--map-root-user", "--mount"]
SMALL, LARGE = "128k", "8m"
WRITER = f"""
import json, resource, subprocess, sys
from pathlib import Path
from distillcache_shards.cache import Cache
from distillcache_shards.errors import CacheError
from tests.shards.writers import made
name, folder, is_disk = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "disk"
def room(size):
    if is_disk:
        how = ["-o", ("remount," if folder.is_mount() else "") + "size=" + size]
        subprocess.run(["mount", "-t", "tmpfs", *how, "tmpfs", folder], check=True)
    else:
        most = 3000 if size == "{SMALL}" else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
folder.mkdir()
room("{SMALL}")
said = ""
try:
    made(name).write(folder)
except CacheError as error:
    said = str(error)
left = {{each.name: each.stat().st_ino for each in folder.iterdir()}}
cache = Cache.open(folder)
wrong = [n for n in range(cache.num_shards) if n not in cache.missing_shards() and cache.faults_of_shard(n)]
room("{LARGE}")
for number in Cache.open(folder).missing_shards():
    made(name).write_shard(folder, number)
files = {{each.name: each.read_bytes().hex() for each in folder.iterdir()}}
again = [each for each, node in left.items() if (folder / each).stat().st_ino != node]
print(json.dumps([said, sorted(left), wrong, again, files]))
"""


def may_mount(folder: Path) -> bool:
    """Whether this system lets a user have a file system of his own."""
    try:
        done = subprocess.run([*ALONE, "mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.parametrize("name", MAKERS)
def test_a_full_disk_is_a_clear_error_and_the_rest_comes_after(name: str, tmp_path: Path) -> None:
    """One line that names the shard; whole shards alone are there, and are not written again."""
    folder, is_disk = tmp_path / "cache", may_mount(tmp_path)
    done = subprocess.run(
        [
            *(ALONE if is_disk else []),
            sys.executable,
            "-c",
            WRITER,
            name,
            folder,
            "disk" if is_disk else "files",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-800:]
    said, left, wrong, again, files = json.loads(done.stdout)
    words = "No space left on device" if is_disk else "File too large"
    assert said.startswith(f"{folder}/shard-000")
    assert said.endswith(
        f": cannot be written: {words}; free some space and start the same command again; "
        "nothing of what is done is lost"
    )
    assert all(each in files for each in left) and not any(each.endswith(".partial") for each in left)
    assert wrong == [] and again == []
    whole = made(name).write(tmp_path / "whole")
    assert files == {each.name: each.read_bytes().hex() for each in whole.iterdir()}
    if is_disk:
        assert 2 < len(left) < len(files)
