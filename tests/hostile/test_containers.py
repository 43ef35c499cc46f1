"""Files that are no files of ours, or not whole ones, whatever their name: each is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillcache_shards.errors import CorruptError, UnsupportedError
from tests.hostile.confined import lines_within_a_gigabyte
from tests.hostile.forge import Forgery, forge, in_file
from tests.hostile.line import assert_line
from tests.hostile.refusal import assert_refused

FILES = ("shard-00001.safetensors", "index.safetensors")


def header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def described(text: str) -> bytes:
    """A header with this text for its description."""
    return json.dumps({"__metadata__": {"distillcache": text}}).encode()


CUTS: dict[str, Callable[[bytes], int]] = {
    "empty": lambda content: 0,
    "one byte": lambda content: 1,
    "in the length": lambda content: 7,
    "after the length": lambda content: 8,
    "at the beginning of the header": lambda content: 9,
    "in the header": lambda content: header_end(content) // 2,
    "before the end of the header": lambda content: header_end(content) - 1,
    "after the header": header_end,
    "in the first array": lambda content: header_end(content) + 1,
    "in the arrays": lambda content: (header_end(content) + len(content)) // 2,
    "before the last byte": lambda content: len(content) - 1,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", CUTS.values(), ids=CUTS)
def test_a_file_that_was_cut_is_refused(folder: Path, name: str, keep: Callable[[bytes], int]) -> None:
    """Wherever the cut is: in the length, the header or the arrays."""
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: keep(content)])
    assert_refused(folder, name, "is cut|no safetensors file", CorruptError)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("more", [b"\0", b" " * 8, b"\0" * 4096])
def test_a_file_that_has_grown_is_refused(folder: Path, name: str, more: bytes) -> None:
    """Even by bytes that no array uses."""
    with (folder / name).open("ab") as stream:
        stream.write(more)
    assert_refused(folder, name, "has grown", CorruptError)


@pytest.mark.parametrize("length", [0, 1 << 31, (1 << 63) - 1, (1 << 64) - 1])
def test_a_header_of_impossible_length_is_refused(folder: Path, length: int) -> None:
    """Nothing is allocated for it."""
    file = folder / FILES[0]
    content = file.read_bytes()
    file.write_bytes(length.to_bytes(8, "little") + content[8:])
    assert_refused(folder, file.name, "is cut|not one of distillcache", CorruptError)


NONE = "header that is not one of distillcache"
HEADERS = {
    "lists without end": (b"[" * 200_000, NONE),
    "objects without end": (b'{"a":' * 200_000, NONE),
    "a description without end": (described("[" * 200_000), NONE),
    "no text": (b"\xff\xfe\xfd\xfc" * 4, NONE),
    "nothing": (b"{}", NONE),
    "no metadata": (b'{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', NONE),
    "metadata of another": (b'{"__metadata__":{"format":"pt"}}', NONE),
    "a list of metadata": (b'{"__metadata__":[]}', NONE),
    "a number for a description": (b'{"__metadata__":{"distillcache":7}}', NONE),
    "a list for a description": (described("[]"), NONE),
    "null for a description": (described("null"), NONE),
    "a number that is none": (described('{"format":1,"header_sha256":"","a":NaN}'), "NaN is no JSON"),
    "an infinity": (described('{"format":1,"header_sha256":"","a":-Infinity}'), "-Infinity is no JSON"),
    "a key twice": (b'{"a":1,"a":2,"__metadata__":{}}', "'a' comes twice"),
    "the format twice": (described('{"format":1,"header_sha256":"","format":1}'), "'format' comes twice"),
    "half a character": (described('{"format":1,"header_sha256":"\\ud800"}'), "without a checksum"),
    "a number for a hash": (described('{"format":1,"header_sha256":7}'), "without a checksum"),
    "format 0": (described('{"format":0,"header_sha256":""}'), "format version that is none: 0"),
    "format true": (described('{"format":true,"header_sha256":""}'), "format version that is none: True"),
    "format in quotes": (described('{"format":"1","header_sha256":""}'), "format version that is none: '1'"),
}


@pytest.mark.parametrize(("header", "fault"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_none_is_refused(folder: Path, header: bytes, fault: str) -> None:
    """Nested without end, no numbers, keys that come twice, another program's, or another thing."""
    file = folder / FILES[0]
    file.write_bytes(in_file(header))
    assert_refused(folder, file.name, fault, CorruptError)


@pytest.mark.parametrize("own_hash", ["", "a"])
def test_a_header_does_not_grow_while_its_hash_is_checked(folder: Path, own_hash: str) -> None:
    """A hash of no or one letter stands at every place of the header, and each may not become 64 bytes."""
    file = folder / FILES[0]
    text = json.dumps({"format": 1, "header_sha256": own_hash, "x": "a" * 1_000_000})
    file.write_bytes(in_file(described(text)))
    assert_refused(folder, file.name, "checksum", CorruptError)


def test_a_newer_format_is_named(folder: Path) -> None:
    """The version there, the version here, and where to read it."""
    file = folder / FILES[0]
    forge(file, lambda it: it.description.update(format=2))
    fault = "format version 2; this release reads up to 1; read it with a newer"
    assert_refused(folder, file.name, fault, UnsupportedError)


def lie(**what: Any) -> Callable[[Forgery], None]:
    """Something untrue about the tokens."""
    return lambda it: it.lies.update(tokens=what)


def shifted(by: int) -> Callable[[Forgery], None]:
    """The tokens, said to lie `by` bytes later than they do."""

    def change(it: Forgery) -> None:
        names = list(it.arrays)
        place = by + sum(it.arrays[name].nbytes for name in names[: names.index("tokens")])
        it.lies["tokens"] = {"data_offsets": [place, place + it.arrays["tokens"].nbytes]}

    return change


def extra(num_bytes: int, shape: list[int]) -> Callable[[Forgery], None]:
    """One more array, of a shape that fits its bytes."""

    def change(it: Forgery) -> None:
        it.arrays["extra"] = np.zeros(num_bytes, np.uint8)
        it.lies["extra"] = {"shape": shape}

    return change


LIES = {
    "smaller": (lie(shape=[1]), "`tokens` of 2 bytes"),
    "huge": (lie(shape=[1 << 61]), "`tokens` that is not"),
    "more than there are numbers": (lie(shape=[1 << 61, 1 << 61]), "`tokens` that is not"),
    "over the limit of a length": (lie(shape=[1 << 62]), "not what its header says"),
    "negative": (lie(shape=[-1]), "not what its header says"),
    "a broken length": (lie(shape=[1.5]), "not what its header says"),
    "a truth for a length": (lie(shape=[True]), "not what its header says"),
    "no list for a shape": (lie(shape=7), "not what its header says"),
    "a type of no use here": (lie(dtype="BF16"), "not what its header says"),
    "a list for a type": (lie(dtype=["U16"]), "not what its header says"),
    "another type": (lie(dtype="U8"), "`tokens` of"),
    "another key": (lie(more=1), "not what its header says"),
    "past the end": (lie(data_offsets=[0, 1 << 40]), "`tokens` of"),
    "no offsets": (lie(data_offsets=[]), "`tokens` of"),
    "an overlap": (shifted(-8), "is due"),
    "a hole": (shifted(8), "is due"),
    "bytes of no array": (lambda it: setattr(it, "more", bytes(8)), "is cut or has grown"),
    "too many axes": (extra(8, [8] + [1] * 99), "`extra`"),
    "empty along huge axes": (extra(0, [0, 1 << 61, 9]), "`extra`"),
}


@pytest.mark.parametrize(("change", "fault"), LIES.values(), ids=LIES)
def test_a_header_that_lies_about_its_arrays_is_refused(
    folder: Path, change: Callable[[Forgery], object], fault: str
) -> None:
    """Sizes, types, overlaps and holes, under checksums that are right."""
    file = folder / FILES[0]
    forge(file, change)
    assert_refused(folder, file.name, fault, CorruptError)


@pytest.mark.parametrize("megabytes", [4, 90])
def test_a_header_that_would_be_gigabytes_is_refused(folder: Path, megabytes: int) -> None:
    """Lists in lists take thirty times their text; a header longer than any plan is not parsed at all."""
    file = folder / FILES[0]
    header = b'{"__metadata__":[' + b"[]," * ((megabytes << 20) // 3 - 10) + b"0]}"
    file.write_bytes(in_file(header))
    said, found = lines_within_a_gigabyte(folder)
    for line in (said, *found):
        assert_line(line, file.name, "is cut|is too long|not one of distillcache")
