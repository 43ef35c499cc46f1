"""The index of a cache, `index.safetensors`: which sequence lies in which shard, and what it holds.

Made from the plan, before the teacher runs; mapped, so that opening it costs the same for any number.
Knows nothing of rows.

n sequences, S shards.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.container import Container, container_parts, header_sha256_of
from distillcache_shards.errors import CorruptError, MismatchError

__all__ = ["INDEX_FILE", "Index", "IndexData", "content_hash"]

INDEX_FILE = "index.safetensors"
HASH_BYTES = 16
TABLE = "codec."


def content_hash(tokens: NDArray[Any]) -> bytes:
    """16 bytes that name a sequence by its token ids: the beginning of sha256 over them as u32."""
    return hashlib.sha256(tokens.astype("<u4").tobytes()).digest()[:HASH_BYTES]


@dataclass(frozen=True, eq=False)
class IndexData:
    """What an index holds, as arrays in memory."""

    shard_first_sequence: NDArray[np.uint64]  # [S + 1], ends with n
    shard_sha256: NDArray[np.uint8]  # [S, 32], over what the plan decides of a shard, see `Shard`
    sequence_hash: NDArray[np.uint8]  # [n, 16], in the order of the sequences
    sequence_tokens: NDArray[np.uint32]  # [n], tokens of each sequence
    sequence_rows: NDArray[np.uint32]  # [n], rows of each sequence
    sequence_record: NDArray[np.uint64]  # [n], its record in the corpus
    tables: Mapping[str, NDArray[Any]]  # of the codec

    def parts(self) -> list[bytes | memoryview]:
        """The bytes of `index.safetensors`."""
        return self._parts

    @cached_property
    def _parts(self) -> list[bytes | memoryview]:
        # The first 8 bytes of a hash, as a big-endian number, sort as the hashes do.
        prefixes = np.ascontiguousarray(self.sequence_hash[:, :8]).view(">u8").reshape(-1).astype("<u8")
        order = np.argsort(prefixes, kind="stable")
        arrays = {
            "shard_first_sequence": self.shard_first_sequence.astype("<u8"),
            "shard_sha256": self.shard_sha256,
            "lookup_prefix": prefixes[order],
            "lookup_sequence": order.astype("<u8"),
            "sequence_tokens": self.sequence_tokens.astype("<u4"),
            "sequence_rows": self.sequence_rows.astype("<u4"),
            "sequence_record": self.sequence_record.astype("<u8"),
            **{TABLE + name: table for name, table in self.tables.items()},
        }
        return container_parts({"kind": "index"}, arrays)

    def sha256(self) -> str:
        """Of those bytes, in hex: by it a plan knows its index."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for part in self.parts():
            digest.update(part)
        return digest.hexdigest()

    def header_sha256(self) -> str:
        """What its header calls itself, in hex: by it a reader knows the index of a plan at once."""
        return header_sha256_of(self.parts())


class Index:
    """An index that was written, in place. Raises CacheError for one that is not what the plan says."""

    def __init__(
        self, folder: Path, num_sequences: int, num_shards: int, header_sha256: str | None = None
    ) -> None:
        self.container = Container(folder / INDEX_FILE)
        file = self.container.file
        if self.container.description.get("kind") != "index":
            raise CorruptError(f"{file}: is no index of a cache; copy the file again")
        # Its tables say what blocks mean: those of another plan would make other rows of sound bytes.
        if header_sha256 not in (None, self.container.description["header_sha256"]):
            raise MismatchError(f"{file}: is the index of another plan; copy the one of this cache again")
        array = self.container.array
        self.shard_first_sequence = array("shard_first_sequence", "U64", num_shards + 1)
        self.shard_sha256 = array("shard_sha256", "U8", num_shards, 32)
        # Of the length of the corpus: their checksums are for whoever uses them first.
        self._arrays = {
            "sequence_tokens": array("sequence_tokens", "U32", num_sequences),
            "sequence_rows": array("sequence_rows", "U32", num_sequences),
            "sequence_record": array("sequence_record", "U64", num_sequences),
            "lookup_prefix": array("lookup_prefix", "U64", num_sequences),
            "lookup_sequence": array("lookup_sequence", "U64", num_sequences),
        }
        self._checked: set[str] = set()
        self.container.check("shard_sha256")
        # As many as there are shards, and wrong ones would send every reader astray.
        self.container.check("shard_first_sequence")
        first = self.shard_first_sequence
        if first[0] != 0 or first[-1] != num_sequences or bool((first[1:] < first[:-1]).any()):
            raise CorruptError(f"{file}: its shards do not count {num_sequences} sequences; copy it again")
        self.tables: dict[str, NDArray[Any]] = {}
        for name in self.container.names():
            if name.startswith(TABLE):
                self.container.check(name)
                self.tables[name.removeprefix(TABLE)] = self.container.any_array(name)

    def sequences(self, name: str) -> NDArray[Any]:
        """`sequence_tokens`, `sequence_rows` or `sequence_record`, [n], in place.

        The first use of one reads and checks it. Raises CorruptError.
        """
        if name not in self._checked:
            self.container.check(name)
            self._checked.add(name)
        return self._arrays[name]

    def shard_of(self, sequence: int) -> int:
        """The shard that holds a sequence."""
        return int(self.shards_of(np.array([sequence]))[0])

    def shards_of(self, sequence_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shards that hold these sequences."""
        found = np.searchsorted(self.shard_first_sequence, sequence_B.astype(np.uint64), side="right")
        return found.astype(np.int64) - 1

    def candidates(self, wanted: bytes) -> list[int]:
        """Sequences whose content hash may be `wanted`, rising; almost always none or the one."""
        prefix = np.uint64(int.from_bytes(wanted[:8], "big"))
        prefixes, found = self.sequences("lookup_prefix"), self.sequences("lookup_sequence")
        start = int(np.searchsorted(prefixes, prefix, side="left"))
        end = int(np.searchsorted(prefixes, prefix, side="right"))
        return sorted(int(each) for each in found[start:end] if each < len(found))
