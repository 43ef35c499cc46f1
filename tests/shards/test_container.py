"""Containers: files that any safetensors reader opens, equal for equal input, and checked by ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from distillcache_shards.container import Container, container_parts
from distillcache_shards.errors import CorruptError, MissingShardError
from tests.hostile.forge import Forgery
from tests.shards.small_cache import BIG_VOCABULARY, small_cache

ARRAYS: dict[str, np.ndarray] = {
    "letters": np.arange(5, dtype="u1"),
    "none": np.zeros(0, "<u4"),
    "halves": np.arange(3, dtype="<u2"),
    "table": np.arange(6, dtype="<u4").reshape(2, 3),
    "longs": np.array([1 << 60, 7], "<u8"),
    "values": np.array([-0.5, 3e-9, 7], "<f4"),
}


def write(file: Path, description: dict[str, Any] | None = None, **arrays: np.ndarray) -> Path:
    file.write_bytes(b"".join(container_parts(description or {}, arrays or ARRAYS)))
    return file


def test_the_safetensors_library_reads_what_we_read(tmp_path: Path) -> None:
    """Every file of a cache: the same names, types, shapes and values."""
    folders = [small_cache(vocab_size=size).write(tmp_path / str(size)) for size in (300, BIG_VOCABULARY)]
    files = [file for folder in folders for file in folder.glob("*.safetensors")]
    assert len(files) == 8
    for file in [*files, write(tmp_path / "own.safetensors")]:
        container, theirs = Container(file), load_file(file)
        assert set(container.names()) == set(theirs)
        for name, array in theirs.items():
            ours = container.any_array(name)
            assert (ours.dtype, ours.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(ours, array)
        with safe_open(file, "np") as opened:
            assert json.loads(opened.metadata()["distillcache"]) == container.description


def test_a_second_writer_makes_the_same_bytes(tmp_path: Path) -> None:
    """One that knows the specification and none of this code: every file has the one spelling there is."""
    for file in small_cache().write(tmp_path / "cache").glob("*.safetensors"):
        assert Forgery.of(file).sealed() == file.read_bytes()


def test_equal_input_makes_equal_bytes(tmp_path: Path) -> None:
    """Whatever the order of names and keys, the byte order of numbers, or the layout in memory."""
    one = write(tmp_path / "one", {"a": 1, "b": [2]})
    mixed = {name: ARRAYS[name].astype(ARRAYS[name].dtype.newbyteorder(">")) for name in reversed(ARRAYS)}
    mixed["table"] = np.asfortranarray(mixed["table"])
    two = write(tmp_path / "two", {"b": [2], "a": 1}, **mixed)
    assert one.read_bytes() == two.read_bytes()
    other = write(tmp_path / "other", {"a": 1, "b": [3]})
    assert other.read_bytes() != one.read_bytes()


def test_every_array_is_aligned(tmp_path: Path) -> None:
    """To its elements, and to 8 bytes where its size is a multiple of 8: it is read in place."""
    for file in small_cache().write(tmp_path / "cache").glob("*.safetensors"):
        container = Container(file)
        assert container.data_start % 8 == 0
        end = container.data_start
        for name in container.names():
            array, (start, stop) = container.any_array(name), container.span(name)
            assert start == end and stop == start + array.nbytes
            assert start % (8 if array.nbytes % 8 == 0 else array.itemsize) == 0
            assert array.flags.aligned and not array.flags.owndata
            end = stop
        assert end == file.stat().st_size == container.num_bytes


def test_arrays_cannot_be_written_to(tmp_path: Path) -> None:
    """A view of a file that others read too."""
    array = Container(write(tmp_path / "file")).array("longs", "U64", 2)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("longs", "U32", (2,)),
        ("longs", "U64", (3,)),
        ("longs", "U64", (2, 1)),
        ("longs", "U64", ()),
        ("table", "U32", (3, None)),
    ],
)
def test_an_array_of_another_type_or_shape_is_refused(
    tmp_path: Path, name: str, dtype: str, shape: tuple[int | None, ...]
) -> None:
    """With what was wanted and what was found."""
    container = Container(write(tmp_path / "file"))
    with pytest.raises(CorruptError, match=f"tensor `{name}` must be {dtype} .*, found U.*; run"):
        container.array(name, dtype, *shape)


def test_an_array_is_asked_for_by_what_it_is(tmp_path: Path) -> None:
    """None stands for any length; one that is not there is named."""
    container = Container(write(tmp_path / "file"))
    np.testing.assert_array_equal(container.array("table", "U32", None, 3), ARRAYS["table"])
    assert container.array("none", "U32", 0).shape == (0,)
    assert "table" in container and "chair" not in container
    with pytest.raises(CorruptError, match="has no tensor `chair`; run"):
        container.array("chair", "U8")


def test_a_damaged_array_is_told_with_its_bytes(tmp_path: Path) -> None:
    """And the others are sound."""
    file = write(tmp_path / "file")
    start, end = Container(file).span("table")
    content = bytearray(file.read_bytes())
    content[end - 1] ^= 1
    file.write_bytes(content)
    container = Container(file)
    assert list(container.faults()) == [f"tensor `table` fails its checksum, bytes {start} to {end}"]
    container.check("longs")
    with pytest.raises(CorruptError, match=f"file: tensor `table` fails its checksum, bytes {start}"):
        container.check("table")


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    """Weights of a model are no cache; no file is a shard that is not there."""
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptError, match="header that is not one of distillcache"):
        Container(tmp_path / "model.safetensors")
    with pytest.raises(MissingShardError, match="none: no such file; run"):
        Container(tmp_path / "none")
