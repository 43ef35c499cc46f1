"""Bytes of a row, what is lost, and speed, of every codec and of what others do, on the same rows.

    OMP_NUM_THREADS=1 python -m benches.bench_codecs --prose FOLDER_OF_TXT --json
    OMP_NUM_THREADS=1 python -m benches.bench_codecs --quick

Tables are trained on rows of other documents than those that are measured.
Bytes are all in: blocks of one sequence, with the checksum and offsets that a shard keeps for each.
Tables lie once in a cache, and are told apart.
"""

import argparse
import dataclasses
import io
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import zstandard

from benches.distillation import as_tensors
from benches.real_rows import (
    PLANNED_ROWS,
    K,
    made_logits,
    real_logits,
    sampled_codec,
    sampled_rows,
    samplers,
    topk_rows,
    training_rows,
)
from distillcache.teach.fidelity import codec_kl
from distillcache_shards.codecs import Codec, codec_of
from distillcache_shards.codecs.compact_topk import CompactTopk
from distillcache_shards.rows import TOPK, Rows

BLOCK_ROWS = 511
BLOCK_BYTES = 28  # of a shard, for each block: where it lies, its sizes and its checksum
TIMED_BLOCKS, REPEATS = 16, 5
LARGER_VOCABULARIES = (151_936, 262_144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows without a teacher")
    parser.add_argument("--json", action="store_true", help="one object: figures by name")
    parser.add_argument("--prose", type=Path, help="folder of .txt files; else pydoc_data.topics")
    parser.add_argument("--sequences", type=int, default=64, help="sequences of 512 tokens, of each part")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        sources = [made_logits(6_000, 3, seed) for seed in (1, 2)]
    else:
        sources = [real_logits(args.sequences, part, args.prose) for part in (0, 1)]
    training, vocab_size = training_rows(sources[0])
    compared = samplers(training, vocab_size)
    parts: dict[str, list[Rows]] = {TOPK: [], **{name: [] for name in compared}}
    for sequence, logits_NV in enumerate(sources[1]):
        parts[TOPK].append(topk_rows(logits_NV))
        for name, sampler in compared.items():
            parts[name].append(sampled_rows(logits_NV, sampler, sequence))
    measured = {name: Rows.concatenate(rows) for name, rows in parts.items()}
    figures = measure(training, measured, vocab_size)
    figures |= unbiased(training, logits_NV[: 64 if args.quick else None])
    if args.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<52}{value:>14.6g}" for name, value in figures.items()))


def measure(training: Rows, measured: dict[str, Rows], vocab_size: int) -> dict[str, float]:
    """Every figure of the codecs."""
    top = measured[TOPK]
    figures = {"rows": float(len(top)), "entropy_nats": float(top.entropy.mean())}
    figures |= {f"topk_{name}_row_bytes": each for name, each in _as_others_do(top, vocab_size).items()}
    zstd = codec_of({"id": "zstd", "params": {"level": 9, "logprobs": "f16"}}, TOPK, vocab_size)
    figures |= _figures("topk_zstd", zstd, top)
    for name, max_kl_nats in (("1.2e-4", 1.2e-4), ("3e-3", 3e-3)):
        codec = CompactTopk.trained(training, vocab_size, planned_rows=PLANNED_ROWS, max_kl_nats=max_kl_nats)
        figures |= _figures(f"topk_kl_{name}", codec, top)
        assert figures[f"topk_kl_{name}_kl_nats"] <= 1.05 * max_kl_nats
    for larger in LARGER_VOCABULARIES:
        codec = CompactTopk.trained(
            _spread(training, vocab_size, larger), larger, planned_rows=PLANNED_ROWS, max_kl_nats=1.2e-4
        )
        figures |= _figures(f"topk_v{larger}_kl_1.2e-4", codec, _spread(top, vocab_size, larger))
    id_bytes = math.ceil(math.log2(vocab_size) / 8) if vocab_size > 1 << 16 else 3
    for name, sampler in samplers(training, vocab_size).items():
        rows = measured[name]
        figures |= _figures(name, sampled_codec(sampler, training, vocab_size), rows)
        figures[f"{name}_ids_a_row"] = (rows.num_kept + rows.num_draws) / len(rows)
        figures[f"{name}_3_bytes_an_id_row_bytes"] = id_bytes * figures[f"{name}_ids_a_row"]
    return figures


def _figures(name: str, codec: Codec, rows: Rows) -> dict[str, float]:
    """Bytes, loss and speed of one codec, after everything came back as it should."""
    spans = [(a, min(a + BLOCK_ROWS, len(rows))) for a in range(0, len(rows), BLOCK_ROWS)]
    blocks = [codec.encode(rows[a:b]) for a, b in spans]
    data = [np.frombuffer(block.data, np.uint8) for block in blocks]

    def decoded(n: int) -> Rows:
        a, b = spans[n]
        return codec.decode(data[n], b - a, blocks[n].expanded_bytes)

    kl_N = codec_kl(rows, Rows.concatenate([decoded(n) for n in range(len(spans))]))
    # Blocks in a random order, as a training reads sequences; the first pass made tables and warmed nothing.
    timed = np.random.default_rng(0).permutation(len(spans))[:TIMED_BLOCKS].tolist()
    timed_rows = sum(spans[n][1] - spans[n][0] for n in timed)
    raw = np.zeros((BLOCK_ROWS, K * 6), np.uint8)
    decode_seconds = _best(lambda: [decoded(n) for n in timed])
    return {
        f"{name}_row_bytes": (sum(map(len, data)) + BLOCK_BYTES * len(data)) / len(rows),
        f"{name}_tables_bytes": float(sum(each.nbytes for each in codec.tables.values())),
        f"{name}_kl_nats": float(kl_N.mean()),
        f"{name}_kl_max_nats": float(kl_N.max()),
        f"{name}_encode_rows_per_second": timed_rows
        / _best(lambda: [codec.encode(rows[slice(*spans[n])]) for n in timed]),
        f"{name}_decode_rows_per_second": timed_rows / decode_seconds,
        f"{name}_decode_over_copy_of_raw": decode_seconds / _best(lambda: [raw.copy() for _ in timed]),
    }


def _best(work: Callable[[], object]) -> float:
    """Processor seconds of the fastest of several goes: the machine may be busy with other things."""
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def _as_others_do(rows: Rows, vocab_size: int) -> dict[str, float]:
    """Bytes of a row of K ids and log-probabilities, by plain ways."""
    ids_NK = rows.head_ids.reshape(-1, K)
    logprobs_NK = rows.head_logprobs.reshape(-1, K).astype(np.float16)
    table = pyarrow.table(
        {
            "ids": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(ids_NK.reshape(-1)), K),
            "logprobs": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(logprobs_NK.reshape(-1)), K),
        }
    )
    parquet, saved = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(table, parquet, compression="zstd")
    torch.save({"ids": torch.from_numpy(ids_NK), "logprobs": torch.from_numpy(logprobs_NK)}, saved)
    return {
        "raw_int32_fp16": K * 6.0,
        "fixed_bits_fp16": K * (math.ceil(math.log2(vocab_size)) / 8 + 2),
        "parquet_zstd": len(parquet.getvalue()) / len(rows),
        "torch_save_zstd": len(zstandard.ZstdCompressor(3).compress(saved.getvalue())) / len(rows),
    }


def _spread(rows: Rows, vocab_size: int, larger: int) -> Rows:
    """The same rows over a larger vocabulary: each id stands for one of several, by chance each time.

    The hardest case, for nothing tells which: a real larger vocabulary is of longer, rarer words.
    """
    variants = np.random.default_rng(0).integers(0, larger, rows.num_kept) // vocab_size
    ids = rows.head_ids + variants * vocab_size
    return dataclasses.replace(rows, head_ids=np.where(ids < larger, ids, rows.head_ids).astype(np.int32))


def unbiased(training: Rows, logits_NV: torch.Tensor) -> dict[str, float]:
    """Largest error of the mean of decoded rows over 64 seeds, in standard errors, in bins of probability."""
    figures: dict[str, float] = {}
    num_rows, vocab_size = logits_NV.shape
    for name, temperature in itertools.product(("sampled_25", "tilted_12", "tilted_32"), (1.0, 2.0)):
        p_NV = torch.softmax(logits_NV.double() / temperature, 1).numpy()
        sampler = dataclasses.replace(samplers(training, vocab_size)[name], temperature=temperature)
        codec = sampled_codec(sampler, training, vocab_size)
        bin_NV = np.clip(np.floor(-np.log2(p_NV)), 0, 20).astype(np.int64)
        true_B = np.bincount(bin_NV.reshape(-1), p_NV.reshape(-1), 21)
        found_SB = []
        for seed in range(64):
            rows = sampled_rows(logits_NV, dataclasses.replace(sampler, seed=seed), 0)
            block = codec.encode(rows)
            rows = codec.decode(np.frombuffer(block.data, np.uint8), num_rows, block.expanded_bytes)
            head_N = np.repeat(np.arange(num_rows), np.diff(rows.head_offsets))
            draw_N = np.repeat(np.arange(num_rows), np.diff(rows.draw_offsets))
            found_B = np.bincount(bin_NV[head_N, rows.head_ids], np.exp(rows.head_logprobs), 21)
            weight_D = as_tensors(rows).weights_of_draws(torch.float64).numpy()
            found_SB.append(found_B + np.bincount(bin_NV[draw_N, rows.draw_ids], weight_D, 21))
        error_B = np.std(found_SB, axis=0) / 8
        filled_B = true_B > 1e-3 * num_rows
        worst = float((np.abs(np.mean(found_SB, axis=0) - true_B)[filled_B] / error_B[filled_B]).max())
        assert worst < 4
        figures[f"{name}_mean_of_64_seeds_t{temperature:g}_standard_errors"] = worst
    return figures


if __name__ == "__main__":
    main()
