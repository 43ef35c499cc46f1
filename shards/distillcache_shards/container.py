"""One safetensors file of ours: named arrays and one JSON description, checked strictly, mapped and not read.

Any safetensors reader opens these files; ours also refuses what the others let pass.
Every array has a checksum and the header has its own.
Knows nothing of shards, plans or rows.
"""

import hashlib
import json
import math
import mmap
import re
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.canonical import canonical, parse
from distillcache_shards.errors import CorruptError, MissingShardError, UnsupportedError, printable

__all__ = ["FORMAT_VERSION", "REPAIR", "Container", "container_parts", "header_sha256_of"]

FORMAT_VERSION = 1
REPAIR = "run `distillcache teach` again on this folder to rebuild it"
KEY = "distillcache"
# A plan has a megabyte at most, and a header repeats it. Parsed, JSON may take forty times its bytes.
MAX_HEADER_BYTES = 4 << 20
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "U64": np.dtype("<u8"),
    "F32": np.dtype("<f4"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
NO_HASH = "0" * 64
HASH = re.compile("[0-9a-f]{64}")
MAX_AXES = 4
MAX_ELEMENTS = 1 << 60


def container_parts(
    description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> list[bytes | memoryview]:
    """The bytes of a file, in parts. Equal input makes equal bytes.

    `description` is plain JSON data without the keys `format`, `tensors` and `header_sha256`, added here.
    """
    # Multiples of 8 bytes first, then by falling element size: every array is aligned, those of 8 to 8, and
    # there are no holes, which safetensors forbids.
    ordered = sorted(
        arrays.items(), key=lambda each: (each[1].nbytes % 8 != 0, -each[1].dtype.itemsize, each[0])
    )
    raw = {name: np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")) for name, array in ordered}
    entries: dict[str, Any] = {}
    place = 0
    for name, array in raw.items():
        entries[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [place, place + array.nbytes],
        }
        place += array.nbytes
    full = {
        **description,
        "format": FORMAT_VERSION,
        "tensors": {name: {"crc32": zlib.crc32(_bytes(array))} for name, array in raw.items()},
    }
    header = _header(entries, full, NO_HASH)
    header = _header(entries, full, hashlib.sha256(header).hexdigest())
    start = len(header).to_bytes(8, "little")
    return [start, header, *(_bytes(array) for array in raw.values())]


def header_sha256_of(parts: Sequence[bytes | memoryview]) -> str:
    """What the header of `container_parts` calls itself, in hex; it holds the checksums of the arrays."""
    description = parse(parse(bytes(parts[1]))["__metadata__"][KEY].encode())
    return str(description["header_sha256"])


class Container:
    """A file made of `container_parts`, open for reading; arrays are views of the memory map.

    Opening checks the header, and that the file has the size it says; `check` and `faults` check the arrays.
    Raises MissingShardError if there is no file, CorruptError and UnsupportedError otherwise.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            # To open a pipe would be to wait for somebody to write into it.
            if not stat.S_ISREG(file.stat().st_mode):
                raise CorruptError(f"{file}: cannot be read: no regular file; move it away, then {REPAIR}")
            with file.open("rb") as stream:
                self.num_bytes = stream.seek(0, 2)
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if self.num_bytes else b""
        except FileNotFoundError:
            raise MissingShardError(f"{file}: no such file; {REPAIR}") from None
        except OSError as error:
            raise CorruptError(f"{file}: cannot be read: {error.strerror}; check the disk") from None
        try:
            self.description, self._entries, self.data_start = _parse_header(self._map)
        except UnsupportedError as error:
            raise UnsupportedError(f"{file}: {error}; read it with a newer distillcache") from None
        except ValueError as error:
            raise CorruptError(f"{file}: {error}; {REPAIR}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """The arrays, in the order of their bytes."""
        return list(self._entries)

    def array(self, name: str, dtype: str, *shape: int | None) -> NDArray[Any]:
        """An array in place, of the stated type (`U64` and so on) and shape; None stands for any length.

        Raises CorruptError if it is not there or is something else.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise CorruptError(f"{self.file}: has no tensor `{printable(name)}`; {REPAIR}")
        found: list[int] = entry["shape"]
        fits = len(found) == len(shape) and all(
            want is None or want == have for want, have in zip(shape, found, strict=True)
        )
        if entry["dtype"] != dtype or not fits:
            wanted = ", ".join("any" if each is None else str(each) for each in shape)
            raise CorruptError(
                f"{self.file}: tensor `{printable(name)}` must be {dtype} [{wanted}], "
                f"found {entry['dtype']} {printable(found)}; {REPAIR}"
            )
        return self._view(entry)

    def any_array(self, name: str) -> NDArray[Any]:
        """An array in place, whatever its type and shape."""
        return self._view(self._entries[name])

    def span(self, name: str) -> tuple[int, int]:
        """Where an array lies in the file: its first byte and the one after its last."""
        start, end = self._entries[name]["data_offsets"]
        return self.data_start + start, self.data_start + end

    def check(self, name: str) -> None:
        """Raises CorruptError if an array does not have its checksum."""
        if zlib.crc32(_bytes(self.any_array(name))) != self.description["tensors"][name]["crc32"]:
            raise CorruptError(f"{self.file}: {self._fault(name)}; {REPAIR}")

    def faults(self) -> Iterator[str]:
        """Reads every byte; what is wrong with it, in words with byte ranges."""
        for name in self._entries:
            if zlib.crc32(_bytes(self.any_array(name))) != self.description["tensors"][name]["crc32"]:
                yield self._fault(name)

    def _fault(self, name: str) -> str:
        start, end = self.span(name)
        return f"tensor `{printable(name)}` fails its checksum, bytes {start} to {end}"

    def _view(self, entry: Mapping[str, Any]) -> NDArray[Any]:
        dtype = DTYPES[entry["dtype"]]
        start, end = entry["data_offsets"]
        count = (end - start) // dtype.itemsize
        return np.frombuffer(self._map, dtype, count, self.data_start + start).reshape(entry["shape"])


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _header(entries: Mapping[str, Any], description: Mapping[str, Any], header_sha256: str) -> bytes:
    """The header, padded with blanks so that the arrays begin at a multiple of 8."""
    text = canonical({**description, "header_sha256": header_sha256}).decode("ascii")
    # Not sorted: the order of the arrays is the order of their bytes.
    header = json.dumps({"__metadata__": {KEY: text}, **entries}, separators=(",", ":")).encode("ascii")
    return header + b" " * (-(8 + len(header)) % 8)


def _parse_header(data: Any) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Description, entries and the place where arrays begin. Raises ValueError, UnsupportedError."""
    if len(data) < 8:
        raise ValueError(f"is no safetensors file; found {len(data)} bytes")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError(f"is cut; found {len(data)} bytes for a header of {length}")
    header = bytes(data[8 : 8 + length])
    try:
        entries = parse(header)
        text = entries.pop("__metadata__")[KEY]
        description = parse(text.encode())
        version, own_hash = description["format"], description["header_sha256"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"has a header that is not one of distillcache: {printable(str(error))}") from None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"has a format version that is none: {printable(repr(version))}")
    if version > FORMAT_VERSION:
        raise UnsupportedError(
            f"has format version {printable(version)}; this release reads up to {FORMAT_VERSION}"
        )
    if not isinstance(own_hash, str) or not HASH.fullmatch(own_hash):
        raise ValueError("has a header without a checksum")
    # Everywhere, not in its place alone: wherever else it stood, the hash would differ.
    zeroed = header.replace(own_hash.encode(), NO_HASH.encode())
    if hashlib.sha256(zeroed).hexdigest() != own_hash:
        raise ValueError("has a header that fails its checksum")
    _check_entries(entries, description.get("tensors"), len(data) - 8 - length)
    return description, entries, 8 + length


def _check_entries(entries: Mapping[str, Any], tensors: Any, data_bytes: int) -> None:
    """Raises ValueError unless the arrays fill the data in order, without a hole or an overlap."""
    if not isinstance(tensors, dict) or set(tensors) != set(entries):
        raise ValueError("has tensors other than those it describes")
    place = 0
    for name, entry in entries.items():
        fault = f"has a tensor `{printable(name)}` that is not what its header says"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(fault)
        dtype, shape, offsets = DTYPES.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
        crc = tensors[name].get("crc32") if isinstance(tensors[name], dict) else None
        if dtype is None or not _counts(shape) or not _counts(offsets) or not _counts([crc]):
            raise ValueError(fault)
        # numpy makes no empty array along axes that would be too long together.
        if len(shape) > MAX_AXES or math.prod(max(1, length) for length in shape) > MAX_ELEMENTS:
            raise ValueError(fault)
        size = dtype.itemsize * math.prod(shape)
        if offsets != [place, place + size]:
            raise ValueError(
                f"has a tensor `{printable(name)}` of {size} bytes at {printable(offsets)}, "
                f"where {[place, place + size]} is due"
            )
        place += size
    if place != data_bytes:
        raise ValueError(f"is cut or has grown; found {data_bytes} bytes of tensors, where {place} are due")


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 1 << 62 for each in values
    )
