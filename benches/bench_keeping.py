"""What keeping rows costs: time and peak memory against the teacher's bare forward, `model(ids).logits`.

    python -m benches.bench_keeping --dtype fp32 --dtype bf16
    python -m benches.bench_keeping --quick

All go over the same batch in turn, several times; a ratio is of neighbours, and median and extremes are told.
Kept rows are held against those that the bare forward's logits give.
Peak memory is what a process of its own comes to hold beyond what it holds with the teacher loaded.

B sequences, T positions, N rows, V vocabulary.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benches.process import in_a_process, peak_bytes, watch_peak
from benches.real_rows import K, real_sequences, real_teacher
from distillcache.head import OutputHead
from distillcache.teach.keep import keep_batch, top_k
from distillcache.teach.rows_config import TILT, TILTED_TAU
from distillcache.teach.sample import Sampler, sample, sample_batch
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.tilt import TiltedGrid

GRID = Grid.of(TILTED_TAU)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS = ("bare", "topk", "sampled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny teacher with random weights")
    parser.add_argument("--json", action="store_true", help="one object: figures by name")
    parser.add_argument("--dtype", action="append", choices=tuple(DTYPES), help="fp32; may be repeated")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--sequences", type=int, default=4, help="of 512 tokens, in the batch")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    figures: dict[str, float] = {}
    for dtype in args.dtype or ["fp32"]:
        torch.set_num_threads(args.threads)
        bench = Bench(args.quick, dtype, args.sequences)
        bench.require_same_rows()
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(1 if args.quick else args.repeats):
            for way in WAYS:
                began = time.perf_counter()
                bench.run(way)
                seconds[way].append(time.perf_counter() - began)
                print(f"{dtype} {way}: {seconds[way][-1]:.2f} s", file=sys.stderr, flush=True)
        figures[f"{dtype}_bare_rows_per_second"] = bench.num_rows / statistics.median(seconds["bare"])
        for way in WAYS[1:]:
            ratios = [ours / bare for ours, bare in zip(seconds[way], seconds["bare"], strict=True)]
            figures[f"{dtype}_{way}_time_ratio"] = statistics.median(ratios)
            figures[f"{dtype}_{way}_time_ratio_least"] = min(ratios)
            figures[f"{dtype}_{way}_time_ratio_most"] = max(ratios)
        for way in WAYS:
            found = in_a_process(peak_bytes_of, way, args.quick, dtype, args.sequences, args.threads)
            figures[f"{dtype}_{way}_peak_mb"] = found / 1e6
        assert args.quick or figures[f"{dtype}_topk_peak_mb"] < figures[f"{dtype}_bare_peak_mb"]
    if args.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<40}{value:>14.6g}" for name, value in figures.items()))


class Bench:
    """One teacher and one batch of whole sequences; every position has a row."""

    def __init__(self, quick: bool, dtype: str, num_sequences: int) -> None:
        if quick:
            torch.manual_seed(0)
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=6_000,
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                )
            )
            self.model = model.eval().to(DTYPES[dtype])  # type: ignore[no-untyped-call]
            self.ids_BT = torch.randint(6_000, (num_sequences, 64))
        else:
            teacher = real_teacher(dtype)
            self.model = teacher.model
            self.ids_BT = torch.tensor(real_sequences(teacher, num_sequences, 1, None))
        self.head = OutputHead.of(self.model)
        self.sequences_N, self.positions_N = torch.ones_like(self.ids_BT).nonzero(as_tuple=True)
        self.num_rows = len(self.sequences_N)
        self.valid_V = torch.ones(self.model.config.vocab_size, dtype=torch.bool)
        self.numbers_B = np.arange(num_sequences)
        counts_V = np.bincount(self.ids_BT.numpy().ravel(), minlength=self.model.config.vocab_size)
        self.sampler = Sampler(GRID, tilted=TiltedGrid.of_counts(GRID, counts_V, TILT))

    def run(self, way: str) -> None:
        """Once over the batch."""
        ways: dict[str, Callable[[], object]] = {
            "bare": self.bare,
            "topk": lambda: keep_batch(
                self.head, self.ids_BT, None, self.sequences_N, self.positions_N, K, self.valid_V
            ),
            "sampled": lambda: sample_batch(
                self.head,
                self.ids_BT,
                None,
                self.sequences_N,
                self.positions_N,
                self.sampler,
                self.numbers_B,
                self.valid_V,
            ),
        }
        ways[way]()

    @torch.inference_mode()
    def bare(self) -> Tensor:
        """[B, T, V], as transformers gives them."""
        logits_BTV: Tensor = self.model(self.ids_BT, use_cache=False).logits
        return logits_BTV

    def require_same_rows(self) -> None:
        """What is kept in passing is what the whole logits hold, but for the order of sums."""
        logits_NV = self.bare().flatten(0, 1)
        kept = keep_batch(self.head, self.ids_BT, None, self.sequences_N, self.positions_N, K, self.valid_V)
        # bf16 has 8 bits: a logit of 16 is rounded to 1/16 in both.
        nats = 0.2 if self.model.dtype == torch.bfloat16 else 1e-3
        start = 0
        for logits_nV in torch.split(logits_NV, 64):
            direct = top_k(logits_nV.float(), K, self.valid_V)
            rows = slice(start, start + len(logits_nV))
            assert np.abs(direct.logprobs_NK.numpy() - kept.logprobs_NK[rows]).max() < nats
            start += len(logits_nV)
        first = logits_NV[:64].float()
        direct_rows = sample(first, self.valid_V, self.sampler, np.zeros(64, np.int64), np.arange(64))
        rows_again = sample_batch(
            self.head,
            self.ids_BT,
            None,
            self.sequences_N[:64],
            self.positions_N[:64],
            self.sampler,
            self.numbers_B,
            self.valid_V,
        )
        same = np.isin(direct_rows.draw_ids, rows_again.draw_ids).mean() if len(direct_rows.draw_ids) else 1
        assert same > (0.5 if self.model.dtype == torch.bfloat16 else 0.95)


def peak_bytes_of(way: str, quick: bool, dtype: str, num_sequences: int, threads: int) -> int:
    """What a process of its own comes to hold while it goes over the batch once."""
    torch.set_num_threads(threads)
    bench = Bench(quick, dtype, num_sequences)
    # Warm: what a library allocates once is none of the batch's.
    with torch.inference_mode():
        bench.model(bench.ids_BT[:1, :8])
    before = watch_peak()
    bench.run(way)
    return max(0, peak_bytes() - before)


if __name__ == "__main__":
    main()
