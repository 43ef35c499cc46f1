"""Bytes that `teach` writes for a token, and its memory, for a corpus and for one 100 times as large.

    OMP_NUM_THREADS=1 python -m benches.bench_writes --json
    OMP_NUM_THREADS=1 python -m benches.bench_writes --quick

Bytes are all that the process hands to the system, whatever becomes of them.
The teacher is tiny, since it is not what is measured. Tables of a compact codec are written once a cache, and
told apart.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import torch

from benches.tiny import tiny_corpus, tiny_teacher
from distillcache.teach.config import TeachConfig
from distillcache.teach.run import teach
from distillcache_shards.cache import Cache

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
        corpora = {"small": tiny_corpus(room, characters), "large": tiny_corpus(room, characters * times)}
        for name, settings in SETTINGS.items():
            for size, corpus in corpora.items():
                cache = room / f"{name}-{size}"
                common = {"teacher": str(teacher), "sources": (str(corpus),), "shard_rows": characters // 10}
                written, peak_mb = _apart({"cache": cache, **common, **settings})
                tables, rows = _tables(cache)
                figures |= {
                    f"{name}_{size}_rows": rows,
                    f"{name}_{size}_tables_bytes": tables,
                    f"{name}_{size}_bytes_a_token": (written - tables) / rows,
                    f"{name}_{size}_peak_mb": peak_mb,
                }
            small, large = (figures[f"{name}_{size}_bytes_a_token"] for size in corpora)
            figures[f"{name}_ratio"] = large / small
            assert args.quick or abs(large / small - 1) < 0.01, (name, small, large)
    if args.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<52}{value:>14.6g}" for name, value in figures.items()))


def _tables(folder: Path) -> tuple[int, int]:
    """Bytes of the codec's tables, and how many rows there are."""
    cache = Cache.open(folder)
    return sum(each.nbytes for each in cache.codec.tables.values()), cache.num_rows


def _apart(settings: dict[str, Any]) -> tuple[int, float]:
    """Bytes that a process of its own writes while it teaches, and its peak memory in MB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(theirs, settings))
    process.start()
    theirs.close()
    found: tuple[int, float] = ours.recv()
    process.join()
    assert process.exitcode == 0
    return found


def _measure(result: Any, settings: dict[str, Any]) -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = _written()
    teach(TeachConfig(**settings))
    result.send((_written() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def _written() -> int:
    """Bytes this process has handed to `write` and its kin."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


if __name__ == "__main__":
    main()
