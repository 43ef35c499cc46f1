"""Sound files in a wrong place, of one plan or of another, and what a checksum of 32 bits leaves."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from distillcache_shards.errors import CorruptError, MismatchError
from tests.hostile.blocks import content_of
from tests.hostile.confined import problems
from tests.hostile.forge import Forgery, forge
from tests.hostile.refusal import assert_refused, read_all
from tests.hostile.subjects import SUBJECTS, subject, twin

SHARD, OTHER, INDEX = "shard-00000.safetensors", "shard-00001.safetensors", "index.safetensors"
# Of CRC-32 as zlib computes it, its first bit (of x^32) first.
POLYNOMIAL = [1, *(0x04C11DB7 >> bit & 1 for bit in range(31, -1, -1))]


@pytest.fixture(params=SUBJECTS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A cache and its twin: the same sequences and counts, other rows and another plan."""
    return subject(request.param).write(tmp_path / "cache"), twin(request.param).write(tmp_path / "twin")


def test_a_shard_in_anothers_place_is_refused(both: tuple[Path, Path]) -> None:
    """Of the same plan, and sound: each says which one it is."""
    folder, _ = both
    shutil.copyfile(folder / OTHER, folder / SHARD)
    assert_refused(folder, SHARD, "is shard 1 under another's name; rename it", MismatchError)


def test_a_shard_of_the_twin_is_refused(both: tuple[Path, Path]) -> None:
    """Nothing but the plan tells it from the right one."""
    folder, other = both
    shutil.copyfile(other / SHARD, folder / SHARD)
    assert_refused(folder, SHARD, "belongs to another plan", MismatchError)


def test_the_index_of_the_twin_is_refused(both: tuple[Path, Path]) -> None:
    """Its tables would turn every id into another one, and every block would still be sound."""
    folder, other = both
    if (folder / INDEX).read_bytes() == (other / INDEX).read_bytes():
        # Without tables the twins differ in their rows alone, and share their index.
        read_all(folder)
        return
    shutil.copyfile(other / INDEX, folder / INDEX)
    assert_refused(folder, INDEX, "is the index of another plan", MismatchError)


def test_the_plan_of_the_twin_is_refused(both: tuple[Path, Path]) -> None:
    """The shards do not belong to it, nor does an index with other tables."""
    folder, other = both
    shutil.copyfile(other / "cache.json", folder / "cache.json")
    assert_refused(folder, "safetensors", "another plan", MismatchError)


def test_a_table_of_the_twin_is_refused(tmp_path: Path) -> None:
    """Put into the index, and the index sealed again: the plan knows the header of its own."""
    folder = subject("compact topk").write(tmp_path / "cache")
    theirs = Forgery.of(twin("compact topk").write(tmp_path / "twin") / INDEX).arrays["codec.fronts"]
    forge(folder / INDEX, lambda it: it.arrays.update({"codec.fronts": theirs}))
    assert_refused(folder, INDEX, "is the index of another plan", MismatchError)


def test_a_block_of_another_place_is_found_by_its_counts(tmp_path: Path) -> None:
    """Two blocks in each other's place, with their checksums: of other counts they are refused."""
    folder = subject("compact topk").write(tmp_path / "cache")

    def change(it: Forgery) -> None:
        for name in ("block_bytes", "block_expanded_bytes", "block_crc32"):
            it.arrays[name][:2] = it.arrays[name][1::-1].copy()
        starts = it.arrays["block_start"]
        a, b, c = (int(each) for each in starts[:3])
        rows = it.arrays["rows"]
        it.arrays["rows"] = np.concatenate([rows[b:c], rows[a:b], rows[c:]])
        starts[1] = c - b

    sizes = np.diff(Forgery.of(folder / SHARD).arrays["block_rows"])
    assert sizes[0] != sizes[1]
    forge(folder / SHARD, change)
    assert_refused(folder, SHARD, "block 0 ", CorruptError)


@pytest.mark.parametrize("name", ["plain topk", "compact topk", "compact sampled", "compact tilted"])
def test_what_a_checksum_of_32_bits_leaves(name: str, tmp_path: Path) -> None:
    """A wrong pattern that is a multiple of the polynomial passes, one in 4 thousand million by chance.

    The tensor's checksum does not help, being of the same polynomial: only the decoder is left to refuse.
    """
    folder = subject(name).write(tmp_path / "cache")
    sound, block = (folder / SHARD).read_bytes(), content_of(Forgery.of(folder / SHARD), 0)
    start = sound.index(block)
    told = ""
    for first in range(0, 8 * len(block) - 33, 11):
        bits = np.unpackbits(np.frombuffer(block, np.uint8), bitorder="little")
        bits[first : first + 33] ^= np.array(POLYNOMIAL, np.uint8)
        (folder / SHARD).unlink()
        wrong = np.packbits(bits, bitorder="little").tobytes()
        (folder / SHARD).write_bytes(sound[:start] + wrong + sound[start + len(block) :])
        told += " ".join(problems(folder))
    assert "fails its checksum" not in told
    assert "block 0 " in told
