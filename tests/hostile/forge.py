"""Forged files: right in every checksum and wrong in what they say. Made without the code that reads them.

A file of the format is taken apart, changed, and sealed again as somebody would who knows the specification.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {"U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "F32": "<f4"}


@dataclass
class Forgery:
    """The parts of a safetensors file of ours, to be changed in place."""

    description: dict[str, Any]
    arrays: dict[str, NDArray[Any]]  # in the order of their bytes
    lies: dict[str, dict[str, Any]] = field(default_factory=dict)  # laid over the entries of arrays
    more: bytes = b""  # after the last array
    spelled: dict[str, str] = field(default_factory=dict)  # text of the description, to be replaced

    @classmethod
    def of(cls, file: Path) -> "Forgery":
        """A sound file, taken apart."""
        return cls.of_bytes(file.read_bytes())

    @classmethod
    def of_bytes(cls, content: bytes) -> "Forgery":
        """The same of its bytes."""
        start = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:start])
        description = json.loads(entries.pop("__metadata__")["distillcache"])
        arrays = {}
        for name, entry in entries.items():
            a, b = (start + each for each in entry["data_offsets"])
            arrays[name] = np.frombuffer(content[a:b], DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
        return cls(description, arrays)

    def sealed(self) -> bytes:
        """The file, with checksums that are right."""
        names = {np.dtype(code): name for name, code in DTYPES.items()}
        entries: dict[str, Any] = {}
        place = 0
        for name, array in self.arrays.items():
            offsets = [place, place + array.nbytes]
            entries[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": offsets}
            entries[name] |= self.lies.get(name, {})
            place += array.nbytes
        self.description["tensors"] = {
            name: {"crc32": zlib.crc32(array.tobytes())} for name, array in self.arrays.items()
        }
        own_hash = hashlib.sha256(self._header("0" * 64, entries)).hexdigest()
        data = b"".join(array.tobytes() for array in self.arrays.values())
        return in_file(self._header(own_hash, entries), data + self.more)

    def _header(self, own_hash: str, entries: dict[str, Any]) -> bytes:
        text = _canonical({**self.description, "header_sha256": own_hash}).decode()
        for old, new in self.spelled.items():
            text = text.replace(old, new)
        header = json.dumps({"__metadata__": {"distillcache": text}, **entries}, separators=(",", ":"))
        return header.encode() + b" " * (-(8 + len(header)) % 8)


def forge(file: Path, change: Callable[[Forgery], object]) -> None:
    """Change a file and seal it again."""
    forgery = Forgery.of(file)
    change(forgery)
    file.write_bytes(forgery.sealed())


def forge_plan(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `cache.json` and seal it again; its shards are then those of another plan.

    The hash of the plan is made anew too, unless it is what was changed.
    """
    file = folder / "cache.json"
    content = json.loads(file.read_bytes())
    content.pop("sha256")
    old = content["plan_sha256"]
    change(content)
    if content["plan_sha256"] == old:
        content["plan_sha256"] = hashlib.sha256(_canonical(content["plan"])).hexdigest()
    content["sha256"] = hashlib.sha256(_canonical(content)).hexdigest()
    file.write_bytes(_canonical(content))


def forge_index(folder: Path, change: Callable[[Forgery], object]) -> None:
    """Change the index, and seal all that depends on it again: the plan, and every shard as one of it."""
    file = folder / "index.safetensors"
    forge(file, change)
    content = file.read_bytes()

    def name_it(whole: dict[str, Any]) -> None:
        whole["plan"]["corpus"] |= {
            "index_sha256": hashlib.sha256(content).hexdigest(),
            "index_header_sha256": Forgery.of_bytes(content).description["header_sha256"],
        }

    forge_plan(folder, name_it)
    whole = json.loads((folder / "cache.json").read_bytes())
    for shard in folder.glob("shard-*.safetensors"):
        forge(shard, lambda it: it.description.update(plan=whole["plan"], plan_sha256=whole["plan_sha256"]))


def in_file(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file of these bytes of header, whatever they are."""
    return len(header).to_bytes(8, "little") + header + data


def _canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
