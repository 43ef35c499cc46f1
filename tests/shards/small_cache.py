"""A small cache of rows that no teacher said: random, and the same for the same seed. Needs no torch.

Sequences are of unequal lengths, one of a single token and one without a supervised one; every second ends
in tokens without rows; one has more rows than a block. Rows keep unequal numbers of ids.
"""

import functools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs import Codec, Tables, codec_of
from distillcache_shards.durable import write_whole
from distillcache_shards.index import INDEX_FILE, IndexData
from distillcache_shards.plan import Plan
from distillcache_shards.rows import SAMPLED, TOPK, Rows
from distillcache_shards.shard import Sequences, encode_blocks, token_dtype, write_shard

LENGTHS = (9, 1, 40, 2, 17, 33, 5, 12, 3, 21)  # in three shards
BIG_VOCABULARY = 100_000  # ids need more than two bytes
ALL_MASKED = 6


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SmallCache:
    """A cache in memory, one entry a sequence in each list, and the way it is to be written."""

    tokens: list[NDArray[Any]]
    supervised: list[NDArray[np.bool_]]
    records: list[int]
    rows: list[Rows]
    kind: str
    vocab_size: int
    codec: str = "plain"
    params: dict[str, Any] = field(default_factory=lambda: {"logprobs": "f32"})
    tables: Tables = field(default_factory=dict)
    block_rows: int = 8
    sequences_a_shard: int = 4
    about: dict[str, Any] = field(default_factory=dict)
    names_header: bool = True  # as plans do but for the first

    @property
    def bounds(self) -> list[int]:
        """Where shards begin and end, of sequences."""
        return [*range(0, len(self.tokens), self.sequences_a_shard), len(self.tokens)]

    def part(self, start: int, end: int) -> Sequences:
        """Some sequences as the format takes them."""
        dtype = token_dtype(self.vocab_size)
        offsets = np.cumsum([0, *(len(each) for each in self.tokens[start:end])]).astype(np.int64)
        return Sequences(
            np.concatenate([np.zeros(0, dtype), *self.tokens[start:end]]).astype(dtype),
            np.concatenate([np.zeros(0, np.bool_), *self.supervised[start:end]]),
            offsets,
            np.array(self.records[start:end], np.int64),
        )

    @functools.cache  # noqa: B019  it lives as long as its test
    def index(self) -> IndexData:
        """Its index."""
        whole = self.part(0, len(self.tokens))
        shards = b"".join(self.part(start, end).sha256() for start, end in pairwise(self.bounds))
        return IndexData(
            shard_first_sequence=np.array(self.bounds, np.uint64),
            shard_sha256=np.frombuffer(shards, np.uint8).reshape(-1, 32),
            sequence_hash=whole.hashes(),
            sequence_tokens=np.diff(whole.offsets).astype(np.uint32),
            sequence_rows=np.diff(whole.row_offsets).astype(np.uint32),
            sequence_record=whole.records.astype(np.uint64),
            tables=self.tables,
        )

    @functools.cache  # noqa: B019  it lives as long as its test
    def plan(self) -> Plan:
        """Its plan."""
        data = {
            "tokenizer": {"sha256": "a" * 64, "vocab_size": self.vocab_size},
            "teacher": {"sha256": "b" * 64},
            "rows": {"kind": self.kind},
            "codec": {"id": self.codec, "params": self.params, "block_rows": self.block_rows},
            "corpus": {
                "sequences": len(self.tokens),
                "tokens": sum(len(each) for each in self.tokens),
                "rows": sum(len(each) for each in self.rows),
                "shards": len(self.bounds) - 1,
                "index_sha256": self.index().sha256(),
                **({"index_header_sha256": self._index_header_sha256()} if self.names_header else {}),
            },
        }
        return Plan(data, self.about)

    def _index_header_sha256(self) -> str:
        """What the header of its index calls itself."""
        header = json.loads(bytes(self.index().parts()[1]))
        name: str = json.loads(header["__metadata__"]["distillcache"])["header_sha256"]
        return name

    @functools.cache  # noqa: B019  it lives as long as its test
    def codec_object(self) -> Codec:
        """Its codec."""
        return codec_of({"id": self.codec, "params": self.params}, self.kind, self.vocab_size, self.tables)

    def write(self, folder: Path, *, shards: Iterable[int] | None = None) -> Path:
        """Write a cache folder, of all its shards or some."""
        folder.mkdir(parents=True, exist_ok=True)
        plan = self.plan()
        write_whole(folder / INDEX_FILE, self.index().parts())
        plan.write(folder)
        for number in range(len(self.bounds) - 1) if shards is None else shards:
            self.write_shard(folder, number)
        return folder

    def write_shard(self, folder: Path, number: int) -> None:
        """Write one shard."""
        start, end = self.bounds[number : number + 2]
        rows = Rows.concatenate([Rows.empty(self.kind), *self.rows[start:end]])
        part = self.part(start, end)
        blocks = encode_blocks(self.codec_object(), part, rows, self.block_rows)
        counts = {"kept": rows.num_kept, "draws": rows.num_draws}
        write_shard(folder, number, self.plan(), part, blocks, counts, _fidelity(number, rows))


def small_cache(
    seed: int = 0, *, kind: str = TOPK, vocab_size: int = 300, lengths: Sequence[int] = LENGTHS, **how: Any
) -> SmallCache:
    """Random sequences and rows; `how` goes to `SmallCache`."""
    random = np.random.default_rng(seed)
    masks = [random.random(length) < 0.8 for length in lengths]
    for number, mask in enumerate(masks):
        mask[:1] = False
        mask[len(mask) - 3 * (number % 2) :] = False
        mask[:] &= number != ALL_MASKED
    return SmallCache(
        tokens=[random.integers(vocab_size, size=length) for length in lengths],
        supervised=masks,
        records=[number // 2 for number in range(len(lengths))],
        rows=[random_rows(random, kind, int(mask.sum()), vocab_size) for mask in masks],
        kind=kind,
        vocab_size=vocab_size,
        **how,
    )


def random_rows(
    random: np.random.Generator, kind: str, num_rows: int, vocab_size: int, *, most: int = 6
) -> Rows:
    """Rows of at most `most` ids; those of a `sampled` row may all be drawn."""
    parts = [Rows.empty(kind)]
    for _ in range(num_rows):
        kept = int(random.integers(kind == TOPK, min(most, vocab_size) + 1))
        draws = int(random.integers(5)) if kind == SAMPLED else 0
        shares = random.dirichlet(np.ones(kept + 1))
        parts.append(
            Rows(
                kind,
                np.array([0, kept]),
                random.choice(vocab_size, kept, replace=False).astype(np.int32),
                np.log(-np.sort(-shares[:kept])).astype(np.float32),
                shares[kept:].astype(np.float32),
                np.array([0, draws]),
                np.sort(random.integers(vocab_size, size=draws)).astype(np.int32),
                (random.random(1) * math.log(vocab_size)).astype(np.float32),
            )
        )
    return Rows.concatenate(parts)


def assert_same_rows(found: Rows, wanted: Rows, *, entropy_atol: float = 0.0) -> None:
    """Equal to the bit, entropy within a tolerance."""
    assert found.kind == wanted.kind
    for each in fields(Rows)[1:]:
        have, want = getattr(found, each.name), getattr(wanted, each.name)
        if want is None:
            assert have is None, each.name
            continue
        assert have.dtype == want.dtype and have.shape == want.shape, each.name
        atol = entropy_atol if each.name == "entropy" else 0.0
        np.testing.assert_allclose(have, want, rtol=0, atol=atol, err_msg=each.name)


def half_a_step(vocab_size: int) -> float:
    """The largest error of an entropy, in nats: it is stored in 255 steps of ln V, and read as a float32."""
    return math.log(vocab_size) / 255 / 2 + 1e-6


def _fidelity(number: int, rows: Rows) -> dict[str, float]:
    """Something for the header, equal on every machine."""
    num_rows = max(1, len(rows))
    return {
        "mass_kept": round(1 - math.fsum(rows.tail_mass.tolist()) / num_rows, 4),
        "entropy_nats": round(math.fsum(rows.entropy.tolist()) / num_rows, 4),
        "codec_kl_nats": (number + 1) / 1024,
        "codec_kl_max_nats": (number + 1) / 64,
    }
