"""One shard, `shard-NNNNN.safetensors`: sequences with their masks, and their rows in compressed blocks.

The unit of work, of recovery, of distribution and of integrity: it says itself which plan it belongs to.
Knows nothing of other shards.

n sequences, T tokens, N rows, b blocks.
"""

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs import Codec, EncodedBlock
from distillcache_shards.container import REPAIR, Container, container_parts
from distillcache_shards.durable import write_whole
from distillcache_shards.errors import CacheError, CorruptError, MismatchError, printable
from distillcache_shards.index import content_hash
from distillcache_shards.limits import MAX_BLOCK_BYTES
from distillcache_shards.plan import Plan
from distillcache_shards.rows import Rows

__all__ = [
    "Sequences",
    "Shard",
    "block_bounds",
    "decode_blocks",
    "encode_blocks",
    "shard_file",
    "token_dtype",
    "write_shard",
]

BLOCK_ALIGN = 8


def shard_file(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{shard:05d}.safetensors"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Two bytes a token where they are enough, else four."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True, eq=False)
class Sequences:
    """n sequences, one after another: what the plan decides of a shard."""

    tokens: NDArray[Any]  # [T], u16 or u32
    supervised: NDArray[np.bool_]  # [T], True for a target that has a row; never the first of a sequence
    offsets: NDArray[np.int64]  # [n + 1], of tokens
    records: NDArray[np.int64]  # [n], number of the record in the corpus

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def row_offsets(self) -> NDArray[np.int64]:
        """[n + 1], of rows."""
        counted = np.zeros(len(self.supervised) + 1, np.int64)
        np.cumsum(self.supervised, out=counted[1:])
        return counted[self.offsets]

    def hashes(self) -> NDArray[np.uint8]:
        """[n, 16], the content hash of each."""
        found = [content_hash(self.tokens[a:b]) for a, b in _spans(self.offsets)]
        return np.frombuffer(b"".join(found), np.uint8).reshape(len(self), 16)

    def sha256(self) -> bytes:
        """Over everything here, whatever the width of a token: by it an index knows its shards."""
        digest = hashlib.sha256()
        digest.update(self.offsets.astype("<u8").tobytes())
        digest.update(self.tokens.astype("<u4").tobytes())
        digest.update(np.packbits(self.supervised, bitorder="little").tobytes())
        digest.update(self.records.astype("<u8").tobytes())
        return digest.digest()


def block_bounds(row_offsets: NDArray[np.int64], block_rows: int) -> NDArray[np.int64]:
    """Where blocks begin and end, [b + 1], from the rows of sequences, [n + 1].

    A block takes whole sequences, until it has half of `block_rows`, and at most `block_rows`: whoever reads
    one sequence expands all of its block. A longer sequence is cut evenly.
    """
    bounds = [0]
    for start, end in _spans(row_offsets):
        if end - bounds[-1] > block_rows:
            if start > bounds[-1]:
                bounds.append(start)
            pieces = -(-(end - start) // block_rows)
            bounds.extend(start + (end - start) * piece // pieces for piece in range(1, pieces))
        if 2 * (end - bounds[-1]) >= block_rows:
            bounds.append(end)
    if row_offsets[-1] > bounds[-1]:
        bounds.append(int(row_offsets[-1]))
    return np.array(bounds, np.int64)


def encode_blocks(codec: Codec, sequences: Sequences, rows: Rows, block_rows: int) -> list[EncodedBlock]:
    """The blocks of a shard's rows, those of all its sequences in order.

    Raises CacheError for rows of so many ids that a block is larger than any reader takes.
    """
    bounds = block_bounds(sequences.row_offsets, block_rows)
    blocks = [codec.encode(rows[start:end]) for start, end in _spans(bounds)]
    largest = max((each.expanded_bytes for each in blocks), default=0)
    if largest > MAX_BLOCK_BYTES:
        raise CacheError(
            f"rows: a block of {block_rows} is {largest} bytes before it is compressed, "
            f"where a reader takes {MAX_BLOCK_BYTES}; keep fewer ids, or ask for fewer rows a block"
        )
    return blocks


def decode_blocks(
    codec: Codec, sequences: Sequences, blocks: Sequence[EncodedBlock], block_rows: int
) -> Rows:
    """The rows that `encode_blocks` made blocks of, as a reader will find them. Raises CorruptError."""
    bounds = block_bounds(sequences.row_offsets, block_rows)
    parts = [
        codec.decode(np.frombuffer(block.data, np.uint8), end - start, block.expanded_bytes)
        for block, (start, end) in zip(blocks, _spans(bounds), strict=True)
    ]
    return Rows.concatenate(parts) if parts else Rows.empty(codec.kind)


def write_shard(
    folder: Path,
    shard: int,
    plan: Plan,
    sequences: Sequences,
    blocks: Sequence[EncodedBlock],
    counts: Mapping[str, int],
    fidelity: Mapping[str, Any],
) -> Path:
    """Write one shard, whole or not at all, and return its file.

    `blocks` are those of `encode_blocks`: row j of a sequence belongs to its j-th supervised token.
    `counts` of `kept` ids and of `draws`, and `fidelity`, are plain JSON data for the header; they should be
    the same wherever the shard is made.
    Raises CacheError if the disk does not take it.
    """
    row_offsets = sequences.row_offsets
    bounds = block_bounds(row_offsets, plan.block_rows)
    assert len(blocks) == len(bounds) - 1
    data = [each.data for each in blocks]
    sizes = np.array([len(each) for each in data], np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(-(-sizes // BLOCK_ALIGN) * BLOCK_ALIGN)])
    arrays: dict[str, NDArray[Any]] = {
        "block_bytes": sizes.astype("<u4"),
        "block_crc32": np.array([zlib.crc32(each) for each in data], "<u4"),
        "block_expanded_bytes": np.array([each.expanded_bytes for each in blocks], "<u4"),
        "block_rows": bounds.astype("<u8"),
        "block_start": starts.astype("<u8"),
        "rows": np.frombuffer(b"".join(each + bytes(-len(each) % BLOCK_ALIGN) for each in data), np.uint8),
        "sequence_hash": sequences.hashes(),
        "sequence_record": sequences.records.astype("<u8"),
        "sequence_rows": row_offsets.astype("<u8"),
        "sequence_tokens": sequences.offsets.astype("<u8"),
        "supervised": np.packbits(sequences.supervised, bitorder="little"),
        "tokens": sequences.tokens.astype(token_dtype(plan.vocab_size)),
    }
    description = {
        "kind": "shard",
        "plan": plan.data,
        "plan_sha256": plan.sha256,
        "shard": shard,
        "counts": {
            "sequences": len(sequences),
            "tokens": len(sequences.tokens),
            "rows": int(row_offsets[-1]),
            "kept": counts["kept"],
            "draws": counts["draws"],
            "blocks": len(blocks),
        },
        "fidelity": dict(fidelity),
    }
    file = shard_file(folder, shard)
    write_whole(file, container_parts(description, arrays))
    return file


class Shard:
    """A shard, open for reading: what is small is checked, tokens and rows are read when asked for.

    Raises MissingShardError if there is none, MismatchError if it is of another plan or place, CorruptError
    and UnsupportedError if it cannot be read.
    """

    def __init__(self, folder: Path, shard: int, plan: Plan, codec: Codec) -> None:
        self.number = shard
        self._vocab_size = plan.vocab_size
        self.codec = codec
        self.container = Container(shard_file(folder, shard))
        self.file = self.container.file
        description = self.container.description
        theirs = description.get("plan_sha256")
        if theirs != plan.sha256:
            raise MismatchError(
                f"{self.file}: belongs to another plan, {printable(str(theirs)[:12])}, "
                f"and this cache's is {plan.sha256[:12]}; move it out of this folder"
            )
        if description.get("kind") != "shard" or description.get("shard") != shard:
            raise MismatchError(
                f"{self.file}: is shard {printable(description.get('shard'))} under another's name; rename it"
            )
        fidelity, counts = _numbers(description.get("fidelity")), _numbers(description.get("counts"))
        names = ("sequences", "tokens", "rows", "blocks", "kept", "draws")
        found = [(counts or {}).get(name) for name in names]
        if not all(isinstance(each, int) and each >= 0 for each in found):
            raise CorruptError(f"{self.file}: does not count what it holds; {REPAIR}")
        self.num_sequences, self.num_tokens, self.num_rows, num_blocks, self.num_kept, self.num_draws = (
            int(each or 0) for each in found
        )
        if fidelity is None:
            raise CorruptError(f"{self.file}: does not say how faithful it is; {REPAIR}")
        self.fidelity = fidelity
        array = self.container.array
        self.token_offsets = array("sequence_tokens", "U64", self.num_sequences + 1)
        self.row_offsets = array("sequence_rows", "U64", self.num_sequences + 1)
        self.records = array("sequence_record", "U64", self.num_sequences)
        self.hashes = array("sequence_hash", "U8", self.num_sequences, 16)
        tokens_name = {2: "U16", 4: "U32"}[token_dtype(plan.vocab_size).itemsize]
        self.tokens = array("tokens", tokens_name, self.num_tokens)
        self._mask_bits = array("supervised", "U8", -(-self.num_tokens // 8))
        self.block_rows = array("block_rows", "U64", num_blocks + 1)
        self.block_start = array("block_start", "U64", num_blocks + 1)
        self.block_bytes = array("block_bytes", "U32", num_blocks)
        self.block_expanded = array("block_expanded_bytes", "U32", num_blocks)
        self.block_crc32 = array("block_crc32", "U32", num_blocks)
        self._rows = array("rows", "U8", None)
        for name in self.container.names():
            # Tokens and masks too: they are two bytes a token, and nothing is to be learned from wrong ones.
            if name != "rows":
                self.container.check(name)
        self._check_offsets()

    @property
    def num_blocks(self) -> int:
        """b, the blocks its rows are in."""
        return len(self.block_bytes)

    def _check_offsets(self) -> None:
        """Raises CorruptError unless everything that counts something counts what is there."""
        ends = (
            ("sequence_tokens", self.token_offsets, self.num_tokens),
            ("sequence_rows", self.row_offsets, self.num_rows),
            ("block_rows", self.block_rows, self.num_rows),
            ("block_start", self.block_start, len(self._rows)),
        )
        for name, offsets, end in ends:
            if offsets[0] != 0 or offsets[-1] != end or bool((offsets[1:] < offsets[:-1]).any()):
                raise CorruptError(f"{self.file}: tensor `{name}` does not count to {end}; {REPAIR}")
        if bool((self.block_bytes > np.diff(self.block_start)).any()):
            raise CorruptError(f"{self.file}: tensor `block_bytes` lets blocks overlap; {REPAIR}")
        if int(self.tokens.max(initial=0)) >= self._vocab_size:
            raise CorruptError(
                f"{self.file}: tensor `tokens` holds an id outside the vocabulary of "
                f"{self._vocab_size}; {REPAIR}"
            )

    def mask(self, start: int, end: int) -> NDArray[np.bool_]:
        """Which of the tokens `start` to `end` are supervised targets."""
        first = start // 8
        bits = np.unpackbits(self._mask_bits[first : -(-end // 8)], bitorder="little")
        return bits[start - 8 * first : end - 8 * first].view(np.bool_)

    def sequences(self) -> Sequences:
        """All sequences."""
        return Sequences(
            self.tokens,
            self.mask(0, self.num_tokens),
            self.token_offsets.astype(np.int64),
            self.records.astype(np.int64),
        )

    def blocks_of(self, start: int, end: int) -> range:
        """The blocks that hold the rows `start` to `end`."""
        if start >= end:
            return range(0)
        first = int(np.searchsorted(self.block_rows, np.uint64(start), side="right")) - 1
        last = int(np.searchsorted(self.block_rows, np.uint64(end), side="left"))
        return range(first, last)

    def block_span(self, block: int) -> tuple[int, int]:
        """The rows of one block: its first, and the one after its last."""
        return int(self.block_rows[block]), int(self.block_rows[block + 1])

    def block(self, block: int) -> Rows:
        """The rows of one block. Raises CorruptError if it fails its checksum or does not hold its rows."""
        start = int(self.block_start[block])
        data = self._rows[start : start + int(self.block_bytes[block])]
        first, end = self.block_span(block)
        if zlib.crc32(data.data) != self.block_crc32[block]:
            raise CorruptError(f"{self.file}: block {block} fails its checksum; {REPAIR}")
        try:
            return self.codec.decode(data, end - first, int(self.block_expanded[block]))
        except CorruptError as error:
            raise CorruptError(f"{self.file}: block {block} {error}; {REPAIR}") from None

    def part_bytes(self) -> dict[str, int]:
        """Bytes of the file by what they are for."""
        sizes = {name: _size(self.container.span(name)) for name in self.container.names()}
        parts = {
            "rows": sizes.pop("rows"),
            "tokens": sizes.pop("tokens"),
            "masks": sizes.pop("supervised"),
            "hashes": sizes.pop("sequence_hash"),
            "blocks": sum(sizes.pop(name) for name in list(sizes) if name.startswith("block_")),
        }
        parts["offsets"] = sum(sizes.values())
        parts["header"] = self.container.data_start
        return parts

    def faults(self, planned_sha256: bytes, *, decode: bool = True) -> Iterator[str]:
        """Reads every byte; what is wrong with it, in words. `planned_sha256` is the index's for this shard.

        With `decode` every block is decoded as well, and a damaged one named.
        """
        rows_start = self.container.span("rows")[0]
        for block in range(self.num_blocks if decode else 0):
            try:
                if disorder := self.block(block).disorder():
                    raise CorruptError(f"{self.file}: block {block} holds {disorder}; {REPAIR}")
            except CorruptError as error:
                start = rows_start + int(self.block_start[block])
                text = str(error).removeprefix(f"{self.file}: ").removesuffix(f"; {REPAIR}")
                yield f"{text}, bytes {start} to {start + int(self.block_bytes[block])}"
        yield from self.container.faults()
        sequences = self.sequences()
        if sequences.sha256() != planned_sha256:
            yield "its tokens, masks or records are not those of the plan"
        if bool((sequences.hashes() != self.hashes).any()):
            yield "its content hashes are not those of its tokens"
        if bool((sequences.row_offsets != self.row_offsets).any()):
            yield "its rows are not those of its masks"


def _numbers(told: Any) -> Mapping[str, Any] | None:
    """A mapping of names to numbers as it is, None in place of anything else."""
    if not isinstance(told, Mapping):
        return None
    sound = all(isinstance(each, int | float) and not isinstance(each, bool) for each in told.values())
    return told if sound else None


def _size(span: tuple[int, int]) -> int:
    return span[1] - span[0]


def _spans(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    bounds = offsets.tolist()
    return pairwise(bounds)
