"""`verify`: every byte is read, and what is not sound is told with its file, its place and its remedy."""

from pathlib import Path

import pytest

from distillcache.inspect.facts import verify
from distillcache_shards.container import REPAIR, Container
from distillcache_shards.shard import shard_file
from tests.inspect.word_cache import word_cache
from tests.shards.small_cache import small_cache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound cache with a tokenizer."""
    word_cache(tmp_path / "cache")
    return tmp_path / "cache"


def problems(folder: Path) -> list[str]:
    return [str(each) for each in verify(folder)]


def damage(file: Path, place: int) -> None:
    """One bit of a file, turned."""
    content = bytearray(file.read_bytes())
    content[place] ^= 16
    file.write_bytes(content)


def test_a_sound_cache_has_no_problem(folder: Path) -> None:
    """Whatever else lies beside it under names that are none of a shard's."""
    (folder / "notes.txt").write_text("mine")
    assert verify(folder) == []


def test_a_damaged_block_is_told_with_its_bytes(folder: Path) -> None:
    """The block, where it lies in the file, and what to do; then the array that it is in."""
    file = shard_file(folder, 1)
    container = Container(file)
    rows_start, rows_end = container.span("rows")
    starts, sizes = (container.any_array(name).tolist() for name in ("block_start", "block_bytes"))
    start = rows_start + starts[2]
    damage(file, start + 5)
    assert problems(folder) == [
        f"{file}: block 2 fails its checksum, bytes {start} to {start + sizes[2]}; {REPAIR}",
        f"{file}: tensor `rows` fails its checksum, bytes {rows_start} to {rows_end}; {REPAIR}",
    ]


def test_damage_between_blocks_is_found(folder: Path) -> None:
    """No reader would notice: it is in bytes that are only there to align the next block."""
    container = Container(shard_file(folder, 0))
    starts, sizes = (container.any_array(name).tolist() for name in ("block_start", "block_bytes"))
    gap = next(n for n, size in enumerate(sizes) if starts[n] + size < starts[n + 1])
    damage(container.file, container.span("rows")[0] + starts[gap] + sizes[gap])
    (problem,) = problems(folder)
    assert "shard-00000.safetensors: tensor `rows` fails its checksum" in problem


def test_every_damaged_shard_is_told(folder: Path) -> None:
    """One does not hide another, nor does one that is missing."""
    damage(shard_file(folder, 0), -1)
    shard_file(folder, 1).unlink()
    shard_file(folder, 2).write_bytes(b"")
    names = [problem.split(": ")[0] for problem in problems(folder)]
    assert sorted(set(names)) == [str(shard_file(folder, number)) for number in range(3)]


def test_a_missing_shard_is_told(folder: Path) -> None:
    """A cache that is not finished is not whole."""
    shard_file(folder, 1).unlink()
    (problem,) = problems(folder)
    assert problem.startswith(f"{shard_file(folder, 1)}: is not taught yet; finish it")


def test_a_shard_of_another_plan_is_told(folder: Path, tmp_path: Path) -> None:
    """In place of one, and beyond the last one."""
    other = small_cache(seed=1).write(tmp_path / "other")
    shard_file(folder, 1).write_bytes(shard_file(other, 1).read_bytes())
    shard_file(folder, 3).write_bytes(shard_file(other, 2).read_bytes())
    (folder / "shard-x.safetensors").write_bytes(b"")
    placed, beyond, unnamed = problems(folder)
    assert placed.startswith(f"{shard_file(folder, 1)}: belongs to another plan, ")
    assert placed.endswith("; move it out of this folder")
    more = "is no shard of this plan, of 3 shards; move it out of here"
    assert (beyond, unnamed) == (f"{shard_file(folder, 3)}: {more}", f"{folder}/shard-x.safetensors: {more}")


def test_a_shard_under_two_names_is_told(folder: Path) -> None:
    """One file is one shard."""
    (folder / "shard-1.safetensors").write_bytes(shard_file(folder, 1).read_bytes())
    (problem,) = problems(folder)
    assert problem.startswith(f"{folder}/shard-1.safetensors: is no")


def test_an_altered_tokenizer_is_told(folder: Path) -> None:
    """One that has changed, and one that is missing."""
    file = folder / "tokenizer" / "tokenizer.json"
    damage(file, 40)
    assert problems(folder) == [f"{file}: is not what was written; {REPAIR}"]
    file.unlink()
    assert problems(folder) == [f"{file}: no such file; {REPAIR}"]


def test_a_damaged_index_is_told_as_any_file(folder: Path) -> None:
    """With its name and what to do, where a reader would not have noticed."""
    file = folder / "index.safetensors"
    start, end = Container(file).span("sequence_record")
    damage(file, start)
    (problem,) = problems(folder)
    fault = f"tensor `sequence_record` fails its checksum, bytes {start} to {end}"
    assert problem.startswith(f"{file}: {fault}; ")
