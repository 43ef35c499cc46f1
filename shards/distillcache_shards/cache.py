"""A cache folder, open for reading: sequences with their tokens, masks and rows, one or many at a time.

Opening costs the same for one shard or ten thousand, and memory in use does not grow with the cache.
Tokens are read in place; rows are decoded a block at a time.
Knows nothing of tokenizers, teachers or torch.

L tokens of a sequence, B sequences of a batch.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs import codec_of
from distillcache_shards.container import REPAIR
from distillcache_shards.errors import CorruptError, MissingShardError, UnsupportedError
from distillcache_shards.index import Index, content_hash
from distillcache_shards.plan import PLAN_FILE, Plan
from distillcache_shards.rows import Rows
from distillcache_shards.shard import Shard, shard_file

__all__ = ["TOKENIZER_FOLDER", "Batch", "Cache", "CachedSequence"]

TOKENIZER_FOLDER = "tokenizer"
# A system lets a process have about a thousand files open, and a map holds one.
OPEN_SHARDS = 64
# Neighbours in a block are read one after the other; each block is some hundred rows.
DECODED_BLOCKS = 8


@dataclass(frozen=True, eq=False)
class CachedSequence:
    """One sequence of L tokens. Row j is the prediction of the j-th token that is supervised."""

    index: int
    record: int
    tokens: NDArray[Any]  # [L], u16 or u32
    supervised: NDArray[np.bool_]  # [L], the first is False
    rows: Rows
    content_hash: bytes


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences one after another; number b is `tokens[token_offsets[b]:token_offsets[b + 1]]`."""

    indices: NDArray[np.int64]  # [B]
    records: NDArray[np.int64]  # [B]
    tokens: NDArray[Any]  # [T], u16 or u32
    supervised: NDArray[np.bool_]  # [T]
    token_offsets: NDArray[np.int64]  # [B + 1]
    rows: Rows
    row_offsets: NDArray[np.int64]  # [B + 1]

    def __len__(self) -> int:
        return len(self.indices)


class Cache:
    """A cache folder, whole or still being taught. Made by `Cache.open`; safe to send to other processes."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self._plan = plan
        self._index = Index(folder, plan.num_sequences, plan.num_shards)
        try:
            self._codec = codec_of(plan.data["codec"], plan.row_kind, plan.vocab_size, self._index.tables)
        except UnsupportedError as error:
            raise UnsupportedError(f"{folder / PLAN_FILE}: {error}") from None
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int], Rows] = OrderedDict()

    @classmethod
    def open(cls, folder: str | Path) -> "Cache":
        """Open a cache folder. Raises CacheError, one line, if it is none or cannot be read."""
        return cls(Path(folder), Plan.read(Path(folder)))

    def __reduce__(self) -> tuple[Any, ...]:
        # Maps do not travel; another process makes its own.
        return Cache.open, (self.folder,)

    def __len__(self) -> int:
        return self._plan.num_sequences

    @property
    def plan(self) -> Mapping[str, Any]:
        """The plan, as plain JSON data."""
        return self._plan.data

    @property
    def plan_sha256(self) -> str:
        """What names the plan, in hex."""
        return self._plan.sha256

    @property
    def about(self) -> Mapping[str, Any]:
        """What is told of the cache beside its plan, such as the teacher's name."""
        return self._plan.about

    @property
    def num_rows(self) -> int:
        """Rows of the whole plan."""
        return self._plan.num_rows

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole plan."""
        return self._plan.num_tokens

    @property
    def num_shards(self) -> int:
        """Shards of the whole plan."""
        return self._plan.num_shards

    @property
    def vocab_size(self) -> int:
        """V: ids are below it."""
        return self._plan.vocab_size

    @property
    def row_kind(self) -> str:
        """`topk` or `sampled`."""
        return self._plan.row_kind

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies."""
        return self.folder / TOKENIZER_FOLDER

    @property
    def tokenizer_sha256(self) -> str:
        """The fingerprint of the tokenizer."""
        return self._plan.tokenizer_sha256

    @property
    def sequence_lengths(self) -> NDArray[np.uint32]:
        """[len], tokens of each sequence, in place."""
        return self._index.sequences("sequence_tokens")

    @property
    def sequence_row_counts(self) -> NDArray[np.uint32]:
        """[len], rows of each sequence, in place."""
        return self._index.sequences("sequence_rows")

    def records(self) -> NDArray[np.int64]:
        """[len], the record of each sequence; windows of one document share it."""
        return self._index.sequences("sequence_record").astype(np.int64)

    def shard_bounds(self) -> NDArray[np.int64]:
        """[shards + 1]: shard s holds the sequences from bound s to bound s + 1."""
        return self._index.shard_first_sequence.astype(np.int64)

    def missing_shards(self) -> list[int]:
        """Shards that have not been taught yet."""
        return [each for each in range(self.num_shards) if not shard_file(self.folder, each).is_file()]

    def shard(self, number: int) -> Shard:
        """One shard, open and checked but for its rows. Raises MissingShardError if it is not taught yet."""
        found = self._shards.pop(number, None)
        if found is None:
            try:
                found = Shard(self.folder, number, self._plan, self._codec)
            except MissingShardError:
                raise MissingShardError(
                    f"{shard_file(self.folder, number)}: is not taught yet; "
                    "finish it by the same `distillcache teach` on this folder"
                ) from None
            first, end = (int(each) for each in self._index.shard_first_sequence[number : number + 2])
            if found.num_sequences != end - first:
                raise CorruptError(
                    f"{found.file}: holds {found.num_sequences} sequences, where {end - first} are planned; "
                    f"{REPAIR}"
                )
            if len(self._shards) >= OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards[number] = found
        return found

    def faults_of_index(self) -> list[str]:
        """Reads every byte of the index; what is wrong with it, in words, beginning with its file."""
        container = self._index.container
        found = list(container.faults())
        with container.file.open("rb") as stream:
            if not found and hashlib.file_digest(stream, "sha256").hexdigest() != self._plan.index_sha256:
                found.append("is the index of another plan")
        return [f"{container.file}: {fault}; {REPAIR}" for fault in found]

    def faults_of_shard(self, number: int, *, decode: bool = True) -> list[str]:
        """Reads every byte of a shard; what is wrong with it, in words, beginning with its file.

        With `decode` every block is decoded as well.
        Raises MissingShardError, and MismatchError for a shard of another plan, which is sound elsewhere.
        """
        try:
            shard = self.shard(number)
        except CorruptError as error:
            return [str(error)]
        planned = self._index.shard_sha256[number].tobytes()
        return [f"{shard.file}: {fault}; {REPAIR}" for fault in shard.faults(planned, decode=decode)]

    def __getitem__(self, index: int) -> CachedSequence:
        """One sequence. Raises IndexError, and CacheError if its shard is missing or damaged."""
        shard, place = self._place(index)
        start, end = int(shard.token_offsets[place]), int(shard.token_offsets[place + 1])
        return CachedSequence(
            index=index,
            record=int(shard.records[place]),
            # Its own: in place it would keep a file of the shard open as long as it lives.
            tokens=shard.tokens[start:end].copy(),
            supervised=shard.mask(start, end),
            rows=self._rows(shard, place),
            content_hash=shard.hashes[place].tobytes(),
        )

    def read(self, indices: Sequence[int] | NDArray[Any], *, rows: bool = True) -> Batch:
        """Several sequences, in the order asked for; without their rows if `rows` is False.

        Raises IndexError, and CacheError if a shard is missing or damaged.
        """
        found = [self._place(int(each)) for each in indices]
        spans = [(shard, int(shard.token_offsets[k]), int(shard.token_offsets[k + 1])) for shard, k in found]
        kept: list[Rows] = [Rows.empty(self.row_kind)] * len(found)
        if rows:
            # In the order they lie on disk, so that a block is decoded once for its neighbours in the batch.
            for n in sorted(range(len(found)), key=lambda each: int(indices[each])):
                kept[n] = self._rows(*found[n])
        return Batch(
            indices=np.array([int(each) for each in indices], np.int64),
            records=np.array([int(shard.records[k]) for shard, k in found], np.int64),
            tokens=_joined([shard.tokens[a:b] for shard, a, b in spans], np.dtype("<u2")),
            supervised=_joined([shard.mask(a, b) for shard, a, b in spans], np.dtype(np.bool_)),
            token_offsets=_offsets([b - a for _, a, b in spans]),
            rows=Rows.concatenate(kept) if kept else Rows.empty(self.row_kind),
            row_offsets=_offsets([len(each) for each in kept]),
        )

    def find(self, token_ids: Sequence[int] | NDArray[Any]) -> int | None:
        """The first sequence with exactly these token ids, None if there is none.

        Raises CacheError if the shard that may hold it is missing or damaged.
        """
        ids = np.asarray(token_ids, dtype=np.int64)
        if len(ids) == 0 or not 0 <= ids.min() <= ids.max() < self.vocab_size:
            return None
        wanted = content_hash(ids)
        for index in self._index.candidates(wanted):
            shard, place = self._place(index)
            if shard.hashes[place].tobytes() == wanted:
                return index
        return None

    def _place(self, index: int) -> tuple[Shard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: has {len(self)} sequences, found no number {index}")
        number = self._index.shard_of(index)
        return self.shard(number), index - int(self._index.shard_first_sequence[number])

    def _rows(self, shard: Shard, place: int) -> Rows:
        start, end = int(shard.row_offsets[place]), int(shard.row_offsets[place + 1])
        parts = []
        for block in shard.blocks_of(start, end):
            first, last = shard.block_span(block)
            parts.append(self._block(shard, block)[max(start, first) - first : min(end, last) - first])
        return Rows.concatenate(parts) if parts else Rows.empty(self.row_kind)

    def _block(self, shard: Shard, block: int) -> Rows:
        key = shard.number, block
        found = self._blocks.pop(key, None)
        if found is None:
            found = shard.block(block)
            if len(self._blocks) >= DECODED_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks[key] = found
        return found


def _joined(parts: list[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _offsets(counts: Sequence[int]) -> NDArray[np.int64]:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
