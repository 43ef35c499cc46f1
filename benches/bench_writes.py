"""Bytes that `teach` writes for a token, and its memory, for a corpus and for one 100 times as large.

    OMP_NUM_THREADS=1 python -m benches.bench_writes --json
    OMP_NUM_THREADS=1 python -m benches.bench_writes --quick

Bytes are all that the process hands to the system, whatever becomes of them.
The teacher is tiny, since it is not what is measured. What is written once a cache is told apart: tables of a
compact codec, and what a cache of a single record takes (`once`), most of it the tokenizer.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

from benches.process import bytes_written, in_a_process, peak_bytes
from benches.tiny import tiny_corpus, tiny_teacher
from distillcache.teach.config import TeachConfig
from distillcache.teach.run import teach
from distillcache_shards.cache import Cache
from distillcache_shards.index import INDEX_FILE, TABLE

TIMES = 100
SETTINGS: dict[str, dict[str, Any]] = {
    "topk_compact": {"keep": "topk", "codec": "compact"},
    "topk_zstd": {"keep": "topk", "codec": "zstd"},
    "sampled_compact": {"keep": "sampled", "codec": "compact"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a corpus three times as large, of few tokens")
    parser.add_argument("--json", action="store_true", help="one object: figures by name")
    parser.add_argument("--characters", type=int, default=50_000, help="of the small corpus; a token each")
    args = parser.parse_args()
    characters, times = (4_800, 3) if args.quick else (args.characters, TIMES)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        teacher = tiny_teacher(room)
        corpora = {
            "small": tiny_corpus(room, characters * times, every=times),
            "large": tiny_corpus(room, characters * times),
        }
        common = {"teacher": str(teacher), "shard_rows": characters // 10}
        for name, settings in SETTINGS.items():
            given = {**common, **settings}
            once, _, tables, _ = cost(given, tiny_corpus(room, 2), room / f"{name}-once")
            once -= tables
            figures[f"{name}_once_bytes"] = once
            for size, corpus in corpora.items():
                written, peak, tables, rows = cost(given, corpus, room / f"{name}-{size}")
                figures |= {
                    f"{name}_{size}_rows": rows,
                    f"{name}_{size}_tables_bytes": tables,
                    f"{name}_{size}_bytes_a_token": (written - tables - once) / rows,
                    f"{name}_{size}_peak_mb": peak / 1e6,
                }
            small, large = (figures[f"{name}_{size}_bytes_a_token"] for size in corpora)
            figures[f"{name}_ratio"] = large / small
            assert args.quick or large / small < 1.01, (name, small, large)
            # A large cache can afford larger tables, with which its rows take less.
            assert args.quick or settings["codec"] == "compact" or large / small > 0.99, (name, small, large)
    if args.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<52}{value:>14.6g}" for name, value in figures.items()))


def cost(settings: dict[str, Any], corpus: Path, cache: Path) -> tuple[int, int, int, int]:
    """Bytes written and peak memory of `teach`; bytes of tables and rows of the cache."""
    written, peak = in_a_process(measured, {**settings, "cache": cache, "sources": (str(corpus),)})
    return written, peak, *_tables(cache)


def _tables(folder: Path) -> tuple[int, int]:
    """Bytes of the codec's tables, and how many rows there are."""
    arrays = load_file(folder / INDEX_FILE)
    tables = sum(each.nbytes for name, each in arrays.items() if name.startswith(TABLE))
    return tables, Cache.open(folder).num_rows


def measured(settings: dict[str, Any]) -> tuple[int, int]:
    """Bytes that are written while teaching, and the peak memory of the process."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = bytes_written()
    teach(TeachConfig(**settings))
    return bytes_written() - before, peak_bytes()


if __name__ == "__main__":
    main()
