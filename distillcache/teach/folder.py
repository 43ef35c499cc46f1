"""The cache folder as `teach` finds it and prepares it: what it is already, its plan, index and tokenizer.

Knows nothing of shards or teachers.
"""

import contextlib
import hashlib
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillcache.tokenizer import save_tokenizer
from distillcache_shards.cache import TOKENIZER_FOLDER
from distillcache_shards.claims import claimed
from distillcache_shards.codecs import Tables
from distillcache_shards.container import Container
from distillcache_shards.durable import disk_errors, partials_of, write_whole
from distillcache_shards.errors import CacheError, MismatchError
from distillcache_shards.index import INDEX_FILE, Index, IndexData
from distillcache_shards.plan import PLAN_FILE, Plan

__all__ = ["existing_plan", "existing_tables", "folder_bytes", "nearest_folder", "planning", "prepare_folder"]


def existing_plan(folder: Path) -> Plan | None:
    """The plan of a folder that is a cache, None for one that may become it. Raises CacheError for others."""
    if (folder / PLAN_FILE).exists():
        return Plan.read(folder)
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise CacheError(f"{folder}: is a file; name a folder for the cache")
    ours = (INDEX_FILE, TOKENIZER_FOLDER, f".{TOKENIZER_FOLDER}-", PLAN_FILE, "shard-")
    foreign = sorted(each.name for each in folder.iterdir() if not each.name.startswith(ours))
    if foreign:
        raise CacheError(
            f"{folder}: is neither empty nor a cache; found {foreign[0]}; name another folder for the cache"
        )
    return None


def existing_tables(folder: Path, plan: Plan) -> Tables | None:
    """The codec's tables of a cache, None if its index is lost or damaged."""
    try:
        return Index(folder, plan.num_sequences, plan.num_shards, plan.index_header_sha256).tables
    except CacheError:
        return None


@contextlib.contextmanager
def planning(folder: Path) -> Iterator[Plan | None]:
    """Nobody else plans in the folder meanwhile; gives the plan that it has, perhaps of another process.

    Makes the folder. Raises CacheError if the disk fails.
    """
    with contextlib.ExitStack() as claim:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            claim.enter_context(claimed(folder / PLAN_FILE, wait=True))
        yield existing_plan(folder)


def prepare_folder(folder: Path, plan: Plan, index: IndexData, tokenizer: Any) -> None:
    """Put index, tokenizer and plan into the folder, the plan last; what is there already is left alone.

    Within `planning`.
    """
    with disk_errors(folder):
        if not (folder / PLAN_FILE).exists():
            _require_own_shards(folder, plan)
        for name in (PLAN_FILE, INDEX_FILE):
            for partial in partials_of(folder / name):
                partial.unlink()
        for left in folder.glob(f".{TOKENIZER_FOLDER}-*"):
            shutil.rmtree(left)
        if _sha256(folder / INDEX_FILE) != plan.index_sha256:
            write_whole(folder / INDEX_FILE, index.parts())
        written = _tokenizer_files(folder)
        if not written or written != plan.about.get("tokenizer_files", written):
            save_tokenizer(tokenizer, folder / TOKENIZER_FOLDER)
        if not (folder / PLAN_FILE).exists():
            plan.about["tokenizer_files"] = _tokenizer_files(folder)
            plan.write(folder)


def _require_own_shards(folder: Path, plan: Plan) -> None:
    """Raises MismatchError for a shard of another plan in a folder that has none, or has lost it."""
    for file in sorted(folder.glob("shard-*.safetensors")):
        try:
            theirs = Container(file).description.get("plan_sha256")
        except CacheError:
            continue  # damaged, and so to be made again
        if theirs != plan.sha256:
            raise MismatchError(
                f"{file}: belongs to another plan than this command's, and the folder has lost its "
                f"{PLAN_FILE}; repeat the command that made it, or name another folder"
            )


def _tokenizer_files(folder: Path) -> dict[str, str | None]:
    files = sorted((folder / TOKENIZER_FOLDER).glob("*"))
    return {each.name: _sha256(each) for each in files if each.is_file()}


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the first above it that exists."""
    return next(each for each in (folder, *folder.absolute().parents) if each.is_dir())


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder and below."""
    total = 0
    for each in folder.rglob("*"):
        # Other processes come and go with files of theirs.
        with contextlib.suppress(FileNotFoundError):
            status = each.stat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
