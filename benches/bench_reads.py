"""Reading a cache: rows a second of random and neighbouring sequences, memory, and opening of many shards.

    OMP_NUM_THREADS=1 taskset -c 0 python -m benches.bench_reads --prose FOLDER_OF_TXT --json
    OMP_NUM_THREADS=1 python -m benches.bench_reads --quick

Ours are caches in the compact codecs, written by the real writer from rows of a real teacher, whose sequences
stand in many of their places; the rival is the same rows as plain arrays in memory maps, int32 ids and fp16
values, cut out a sequence at a time.
Seconds are those of the processor, for one thread: other work on the machine does not count, but slows both.
Memory is all that is resident at its peak, pages of mapped files included, of a process that only reads.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benches.real_rows import (
    made_logits,
    real_logits,
    sampled_codec,
    sampled_rows,
    samplers,
    topk_rows,
    training_rows,
)
from distillcache_shards.cache import Batch, Cache
from distillcache_shards.codecs import Codec, EncodedBlock
from distillcache_shards.codecs.compact_sampled import CompactSampled
from distillcache_shards.codecs.compact_tilted import CompactTilted
from distillcache_shards.codecs.compact_topk import CompactTopk
from distillcache_shards.durable import write_whole
from distillcache_shards.index import INDEX_FILE, IndexData
from distillcache_shards.plan import Plan
from distillcache_shards.rows import SAMPLED, TOPK, Rows
from distillcache_shards.shard import Sequences, block_bounds, decode_blocks, encode_blocks, write_shard

BLOCK_ROWS, SHARD_ROWS = 512, 65_536  # as `teach` has them
SEQUENCE_ROWS = (256, 511, 1024)
BATCH_ROWS = 16_384
REPEATS = 40
ROW_PARTS = ("head_offsets", "head_ids", "head_logprobs", "tail_mass", "draw_offsets", "draw_ids", "entropy")

# Reads random batches; prints the peak of resident memory.
READS = """
import json, sys
import numpy as np
from pathlib import Path
from distillcache_shards.cache import Cache
folder, reads, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cache, rng = Cache.open(folder, threads=1), np.random.default_rng(0)
shards = set()
for _ in range(reads):
    indices = rng.integers(0, len(cache), batch)
    shards.update(np.searchsorted(cache.shard_bounds(), indices, side="right").tolist())
    assert len(cache.read(indices)) == batch
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(json.dumps({"mb": int(status["VmHWM"].split()[0]) / 1000, "shards": len(shards)}))
"""
# Opens a cache and reads one row; prints the seconds of both.
OPENS = """
import json, sys, time
from distillcache_shards.cache import Cache
began = time.perf_counter()
cache = Cache.open(sys.argv[1])
opened = time.perf_counter()
assert len(cache[len(cache) // 2].rows)
print(json.dumps({"open": opened - began, "first_row": time.perf_counter() - opened}))
"""


@dataclass(frozen=True)
class Pool:
    """Sequences of as many rows each, that a cache is made of: their blocks, and what is read of them."""

    codec: Codec
    sequence_rows: int
    blocks: list[list[EncodedBlock]]
    rows: list[Rows]

    @classmethod
    def of(cls, codec: Codec, rows: Rows, sequence_rows: int) -> "Pool":
        """As many as the rows are enough for."""
        blocks, back = [], []
        for start in range(0, len(rows) - sequence_rows + 1, sequence_rows):
            part = _sequences(1, sequence_rows, 0, 0)
            blocks.append(encode_blocks(codec, part, rows[start : start + sequence_rows], BLOCK_ROWS))
            back.append(decode_blocks(codec, part, blocks[-1], BLOCK_ROWS))
        return cls(codec, sequence_rows, blocks, back)

    def write(self, folder: Path, num_sequences: int, shard_sequences: int) -> "Pool":
        """A cache in which sequence i has the rows of number `chosen(i)`."""
        folder.mkdir(parents=True)
        bounds = [*range(0, num_sequences, shard_sequences), num_sequences]
        spans = list(pairwise(bounds))
        shas, hashes = [], []
        for shard, (start, end) in enumerate(spans):
            part = _sequences(end - start, self.sequence_rows, start, shard)
            shas.append(np.frombuffer(part.sha256(), np.uint8))
            hashes.append(part.hashes())
        index = IndexData(
            shard_first_sequence=np.array(bounds, np.uint64),
            shard_sha256=np.stack(shas),
            sequence_hash=np.concatenate(hashes),
            sequence_tokens=np.full(num_sequences, self.sequence_rows + 1, np.uint32),
            sequence_rows=np.full(num_sequences, self.sequence_rows, np.uint32),
            sequence_record=np.arange(num_sequences, dtype=np.uint64),
            tables=self.codec.tables,
        )
        plan = Plan(
            {
                "tokenizer": {"sha256": "0" * 64, "vocab_size": _vocab_size(self.codec)},
                "teacher": {"sha256": "0" * 64},
                "rows": {"kind": self.codec.kind},
                "codec": {"id": self.codec.id, "params": self.codec.params, "block_rows": BLOCK_ROWS},
                "corpus": {
                    "sequences": num_sequences,
                    "tokens": num_sequences * (self.sequence_rows + 1),
                    "rows": num_sequences * self.sequence_rows,
                    "shards": len(spans),
                    "index_sha256": index.sha256(),
                },
            },
            {},
        )
        write_whole(folder / INDEX_FILE, index.parts())
        plan.write(folder)
        for shard, (start, end) in enumerate(spans):
            part = _sequences(end - start, self.sequence_rows, start, shard)
            chosen = [self.chosen(each) for each in range(start, end)]
            blocks = [block for each in chosen for block in self.blocks[each]]
            # Blocks end with sequences, so those of one sequence are the same wherever it stands.
            assert len(blocks) == len(block_bounds(part.row_offsets, BLOCK_ROWS)) - 1
            counts = {
                "kept": sum(self.rows[each].num_kept for each in chosen),
                "draws": sum(self.rows[each].num_draws for each in chosen),
            }
            write_shard(folder, shard, plan, part, blocks, counts, {})
        return self

    def chosen(self, sequence: int) -> int:
        """The number in the pool that a sequence has its rows of; as if by chance."""
        return (sequence * 2_654_435_761 >> 7) % len(self.rows)


def _vocab_size(codec: Codec) -> int:
    assert isinstance(codec, CompactTopk | CompactSampled | CompactTilted)
    return codec.vocab_size


def _sequences(count: int, num_rows: int, first: int, seed: int) -> Sequences:
    """Sequences of chance tokens, all but the first of each supervised."""
    tokens = np.random.default_rng(seed).integers(0, 6_000, count * (num_rows + 1)).astype(np.uint16)
    supervised = np.ones(len(tokens), np.bool_)
    supervised[:: num_rows + 1] = False
    offsets = np.arange(count + 1, dtype=np.int64) * (num_rows + 1)
    return Sequences(tokens, supervised, offsets, np.arange(first, first + count, dtype=np.int64))


class RawMaps:
    """The same sequences as plain arrays, in one memory map each: int32 ids, fp16 values, and offsets."""

    def __init__(self, folder: Path, pool: Pool, num_sequences: int) -> None:
        folder.mkdir(parents=True)
        rows = Rows.concatenate([pool.rows[pool.chosen(each)] for each in range(num_sequences)])
        self.maps = {}
        for name in ROW_PARTS:
            array = getattr(rows, name)
            array = array.astype(np.float16) if array.dtype == np.float32 else array
            np.save(folder / f"{name}.npy", array)
            self.maps[name] = np.load(folder / f"{name}.npy", mmap_mode="r")
        self.num_bytes = sum(each.nbytes for each in self.maps.values())
        self.sequence_rows = pool.sequence_rows

    def read(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The rows of some sequences, one after another."""
        spans = [(int(each) * self.sequence_rows, (int(each) + 1) * self.sequence_rows) for each in indices]
        found = {name: self._cut(name, spans) for name in ("tail_mass", "entropy")}
        for part in ("head", "draw"):
            offsets = self.maps[f"{part}_offsets"]
            ids = [(int(offsets[start]), int(offsets[end])) for start, end in spans]
            counts = [np.diff(offsets[start : end + 1]) for start, end in spans]
            found[f"{part}_offsets"] = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
            found[f"{part}_ids"] = self._cut(f"{part}_ids", ids)
            if part == "head":
                found["head_logprobs"] = self._cut("head_logprobs", ids)
        return found

    def _cut(self, name: str, spans: list[tuple[int, int]]) -> np.ndarray:
        return np.concatenate([self.maps[name][start:end] for start, end in spans])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows without a teacher, small caches")
    parser.add_argument("--json", action="store_true", help="one object: figures by name")
    parser.add_argument("--prose", type=Path, help="folder of .txt files; else pydoc_data.topics")
    parser.add_argument("--sequences", type=int, default=64, help="sequences of 512 tokens, of each part")
    parser.add_argument("--folder", type=Path, help="where caches are made, and removed; 6 GB")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the large cache")
    parser.add_argument("--shards", type=int, default=10_000, help="shards of the cache that is opened")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        args.gigabytes, args.shards = 0.01, 200
        sources = [made_logits(6_000, 5, seed) for seed in (1, 2)]
    else:
        sources = [real_logits(args.sequences, part, args.prose) for part in (0, 1)]
    training, vocab_size = training_rows(sources[0])
    parts: dict[str, list[Rows]] = {TOPK: [], SAMPLED: []}
    sampler = samplers(training, vocab_size)["tilted_32"]
    for sequence, logits_NV in enumerate(sources[1]):
        parts[TOPK].append(topk_rows(logits_NV))
        parts[SAMPLED].append(sampled_rows(logits_NV, sampler, sequence))
    codecs: dict[str, Codec] = {
        TOPK: CompactTopk.trained(training, vocab_size, planned_rows=1_000_000, max_kl_nats=1.2e-4),
        SAMPLED: sampled_codec(sampler, training, vocab_size),
    }
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        folder = Path(made)
        for kind, codec in codecs.items():
            rows = Rows.concatenate(parts[kind])
            for sequence_rows in SEQUENCE_ROWS:
                pool = Pool.of(codec, rows, sequence_rows)
                figures |= speed(folder / f"{kind}-{sequence_rows}", pool, quick=args.quick)
        pool = Pool.of(codecs[TOPK], Rows.concatenate(parts[TOPK]), 511)
        figures |= memory(folder, pool, args.gigabytes * 1e9, reads=20 if args.quick else 400)
        figures |= opening(folder / "many", Pool.of(codecs[SAMPLED], rows[:64], 8), args.shards)
    if args.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<56}{value:>14.6g}" for name, value in figures.items()))


def speed(folder: Path, pool: Pool, *, quick: bool) -> dict[str, float]:
    """Rows a second of batches at random and in order, of ours and of the raw maps."""
    per_batch = max(1, (2_048 if quick else BATCH_ROWS) // pool.sequence_rows)
    num_sequences = (4 if quick else 16) * per_batch
    pool.write(folder / "ours", num_sequences, SHARD_ROWS // pool.sequence_rows)
    raw = RawMaps(folder / "raw", pool, num_sequences)
    cache = Cache.open(folder / "ours", threads=1)
    orders = {
        "random": np.random.default_rng(0).permutation(num_sequences),
        "in_order": np.arange(num_sequences),
    }
    name = f"{cache.row_kind}_{pool.sequence_rows}"
    figures = {}
    for order, indices in orders.items():
        batches = np.split(indices, num_sequences // per_batch)
        for batch in batches:
            assert_same(cache.read(batch), raw.read(batch), pool, batch.tolist())
        ours, theirs = _best(
            [partial(cache.read, batch) for batch in batches],
            [partial(raw.read, batch) for batch in batches],
            repeats=2 if quick else REPEATS,
        )
        figures[f"{name}_{order}_rows_per_second"] = per_batch * pool.sequence_rows / ours
        figures[f"{name}_{order}_seconds_over_raw_map"] = ours / theirs
    ours_bytes = sum(each.stat().st_size for each in (folder / "ours").glob("shard-*"))
    figures[f"{name}_bytes_over_raw"] = ours_bytes / raw.num_bytes
    return figures


def assert_same(batch: Batch, raw: dict[str, np.ndarray], pool: Pool, indices: list[int]) -> None:
    """Ours are the rows of the pool to the bit, and the raw ones the same in fp16."""
    wanted = Rows.concatenate([pool.rows[pool.chosen(each)] for each in indices])
    for name in ROW_PARTS:
        np.testing.assert_array_equal(getattr(batch.rows, name), getattr(wanted, name))
        np.testing.assert_array_equal(raw[name], getattr(wanted, name).astype(raw[name].dtype))


def _best(*works: list[Callable[[], object]], repeats: int) -> list[float]:
    """Processor seconds of one batch, the fastest of all; in turn, so that no one is alone on a busy core."""
    best = [float("inf")] * len(works)
    for _ in range(repeats):
        for n, work in enumerate(works):
            for each in work:
                began = time.process_time()
                each()
                best[n] = min(best[n], time.process_time() - began)
    return best


def memory(folder: Path, pool: Pool, large_bytes: float, *, reads: int) -> dict[str, float]:
    """Peak memory of reading at random from a cache, and from one that is a hundredth of it."""
    sequence_bytes = sum(len(block.data) for blocks in pool.blocks for block in blocks) / len(pool.blocks)
    found = {}
    for name, size in (("small", large_bytes / 100), ("large", large_bytes)):
        pool.write(folder / name, max(32, int(size / sequence_bytes)), SHARD_ROWS // pool.sequence_rows)
        found[name] = _in_a_process(READS, folder / name, reads, 32)
        found[name]["cache_mb"] = sum(each.stat().st_size for each in (folder / name).iterdir()) / 1e6
    return {
        "large_cache_mb": found["large"]["cache_mb"],
        "large_cache_shards_read": found["large"]["shards"],
        "small_cache_mb": found["small"]["cache_mb"],
        "small_cache_memory_mb": found["small"]["mb"],
        "large_cache_memory_mb": found["large"]["mb"],
        "large_over_small_cache_memory_mb": found["large"]["mb"] - found["small"]["mb"],
    }


def opening(folder: Path, pool: Pool, num_shards: int) -> dict[str, float]:
    """Seconds to open a cache of so many shards, and then to read a row from the middle of it."""
    pool.write(folder, num_shards, 1)
    found = _in_a_process(OPENS, folder)
    return {
        "shards_opened": float(num_shards),
        "open_seconds": found["open"],
        "first_row_seconds": found["first_row"],
    }


def _in_a_process(code: str, *args: object) -> dict[str, float]:
    command = [sys.executable, "-c", code, *map(str, args)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


if __name__ == "__main__":
    main()
