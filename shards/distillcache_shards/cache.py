"""A cache folder, open for reading: sequences with their tokens, masks and rows, one or many at a time.

Opening costs the same for one shard or ten thousand, and memory in use does not grow with the cache.
Knows nothing of tokenizers, teachers or torch.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.batch import Batch, CachedSequence
from distillcache_shards.codecs import Codec, codec_of
from distillcache_shards.container import REPAIR, Container
from distillcache_shards.errors import CacheError, CorruptError, MissingShardError, UnsupportedError
from distillcache_shards.index import Index, content_hash
from distillcache_shards.plan import PLAN_FILE, Plan
from distillcache_shards.reader import Reader
from distillcache_shards.shard import Shard, shard_file, token_dtype

__all__ = ["TOKENIZER_FOLDER", "Batch", "Cache", "CachedSequence"]

TOKENIZER_FOLDER = "tokenizer"
# A system lets a process have about a thousand files open, and a map holds one.
OPEN_SHARDS = 64


class Cache:
    """A cache folder, whole or still being taught. Made by `Cache.open`; safe to send to other processes."""

    def __init__(self, folder: Path, plan: Plan, threads: int | None = None) -> None:
        assert threads is None or threads >= 1
        self.folder = folder
        self._plan = plan
        self._threads = threads
        self._index = Index(folder, plan.num_sequences, plan.num_shards, plan.index_header_sha256)
        try:
            self._codec = codec_of(plan.data["codec"], plan.row_kind, plan.vocab_size, self._index.tables)
        except UnsupportedError as error:
            raise UnsupportedError(f"{folder / PLAN_FILE}: {error}") from None
        except CorruptError as error:
            raise CorruptError(f"{self._index.container.file}: {error}; copy the file again") from None
        self._shards: OrderedDict[int, Shard] = OrderedDict()
        # No method of the cache: one that is let go closes its files at once.
        self._opened = partial(_opened, folder, plan, self._codec, self._index)
        self._reader = Reader(self._codec, token_dtype(plan.vocab_size), threads, self._opened)

    @classmethod
    def open(cls, folder: str | Path, *, threads: int | None = None) -> "Cache":
        """Open a cache folder. Raises CacheError, one line, if it is none or cannot be read.

        `threads` decode the rows of a batch; None stands for one a core, and for one in a worker process.
        """
        return cls(Path(folder), Plan.read(Path(folder)), threads)

    def __reduce__(self) -> tuple[Any, ...]:
        # Maps do not travel; another process makes its own.
        return partial(Cache.open, threads=self._threads), (self.folder,)

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
    def thresholds(self) -> NDArray[np.float32] | None:
        """Of tilted rows, the probability from which on an id is kept, [V]; None of others."""
        return None if self._codec.tilted is None else self._codec.tilted.weights_V

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

    def require_whole(self) -> None:
        """Raises MissingShardError while shards are still to be taught."""
        missing = self.missing_shards()
        if missing:
            raise MissingShardError(
                f"{self.folder}: {len(missing)} of {self.num_shards} shards are not taught yet; "
                "finish it by the same `distillcache teach` on this folder"
            )

    def shard(self, number: int) -> Shard:
        """One shard, open and checked but for its rows. Raises MissingShardError if it is not taught yet."""
        found = self._shards.pop(number, None)
        if found is None:
            found = self._opened(number)
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
            # What stops a reader may be one fault of many, if the file can be read as far as its tensors.
            with suppress(CacheError):
                container = Container(shard_file(self.folder, number))
                found = [f"{container.file}: {fault}; {REPAIR}" for fault in container.faults()]
                return found or [str(error)]
            return [str(error)]
        planned = self._index.shard_sha256[number].tobytes()
        return [f"{shard.file}: {fault}; {REPAIR}" for fault in shard.faults(planned, decode=decode)]

    def __getitem__(self, index: int) -> CachedSequence:
        """One sequence. Raises IndexError, and CacheError if its shard is missing or damaged."""
        batch = self.read([index])
        return CachedSequence(
            index=int(batch.indices[0]),
            record=int(batch.records[0]),
            tokens=batch.tokens,
            supervised=batch.supervised,
            rows=batch.rows,
            content_hash=content_hash(batch.tokens),
        )

    def read(self, indices: Sequence[int] | NDArray[Any], *, rows: bool = True) -> Batch:
        """Several sequences, in the order asked for; without their rows if `rows` is False.

        Raises IndexError, and CacheError if a shard is missing or damaged.
        """
        indices_B = np.array([int(each) for each in indices], np.int64)
        wrong_B = (indices_B < 0) | (indices_B >= len(self))
        if wrong_B.any():
            raise IndexError(
                f"{self.folder}: has {len(self)} sequences, found no number {indices_B[wrong_B.argmax()]}"
            )
        shard_B = self._index.shards_of(indices_B)
        place_B = indices_B - self._index.shard_first_sequence[shard_B].astype(np.int64)
        return self._reader.read(indices_B, shard_B, place_B, rows=rows)

    def find(self, token_ids: Sequence[int] | NDArray[Any]) -> int | None:
        """The first sequence with exactly these token ids, None if there is none.

        Raises CacheError if the shard that may hold it is missing or damaged.
        """
        ids = np.asarray(token_ids, dtype=np.int64)
        if len(ids) == 0 or not 0 <= ids.min() <= ids.max() < self.vocab_size:
            return None
        wanted = content_hash(ids)
        for index in self._index.candidates(wanted):
            number = self._index.shard_of(index)
            place = index - int(self._index.shard_first_sequence[number])
            if self.shard(number).hashes[place].tobytes() == wanted:
                return index
        return None


def _opened(folder: Path, plan: Plan, codec: Codec, index: Index, number: int) -> Shard:
    try:
        found = Shard(folder, number, plan, codec)
    except MissingShardError:
        raise MissingShardError(
            f"{shard_file(folder, number)}: is not taught yet; "
            "finish it by the same `distillcache teach` on this folder"
        ) from None
    first, end = (int(each) for each in index.shard_first_sequence[number : number + 2])
    if found.num_sequences != end - first:
        raise CorruptError(
            f"{found.file}: holds {found.num_sequences} sequences, where {end - first} are planned; {REPAIR}"
        )
    return found
