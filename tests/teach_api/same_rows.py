"""Rows compared with those that the same model gives on this machine, through the real local teacher."""

from pathlib import Path

import numpy as np

from distillcache.teach.config import TeachConfig
from distillcache.teach.local import LocalTeacher
from distillcache_shards.cache import Cache
from distillcache_shards.rows import Rows
from distillcache_shards.shard import Sequences

__all__ = ["cached_rows", "local_rows", "require_close"]


def cached_rows(cache: Cache) -> tuple[Sequences, Rows]:
    """All sequences and rows of a cache, in order."""
    found = [cache[number] for number in range(len(cache))]
    offsets = np.cumsum([0, *(len(each.tokens) for each in found)])
    sequences = Sequences(
        np.concatenate([each.tokens for each in found]),
        np.concatenate([each.supervised for each in found]),
        offsets.astype(np.int64),
        np.array([each.record for each in found], np.int64),
    )
    return sequences, Rows.concatenate([each.rows for each in found])


def local_rows(teacher: Path, sequences: Sequences, k: int) -> Rows:
    """What the model of a folder or a GGUF file says of the same sequences."""
    config = TeachConfig(
        cache=Path("none"), sources=("none",), teacher=str(teacher), k=k, dtype="fp32", device="cpu"
    )
    source = LocalTeacher(config, None)
    source.load(int(np.diff(sequences.offsets).max()))
    return source.rows(sequences, np.arange(len(sequences)), 2048, lambda share, rows: None)


def require_close(rows: Rows, local: Rows, nats: float, least: float) -> None:
    """Log-probabilities differ by at most so many nats at ids that both hold, and both hold at least this
    share of the ids; entropies are bounded by the local ones.
    """
    assert len(rows) == len(local) > 0
    shared = total = 0
    for n in range(len(rows)):
        ours, theirs = (
            dict(zip(each.head_ids.tolist(), each.head_logprobs.tolist(), strict=True))
            for each in (rows[n : n + 1], local[n : n + 1])
        )
        both = ours.keys() & theirs.keys()
        shared += len(both)
        total += len(ours)
        assert max((abs(ours[each] - theirs[each]) for each in both), default=0.0) <= nats, n
    assert total > 0 and shared >= least * total
    # 255 steps of ln V: half a step is what storing may add.
    assert (rows.entropy <= local.entropy + 0.02 + nats).all()
