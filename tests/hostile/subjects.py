"""The caches that are damaged: one of every codec and kind of row, small, and each with a twin of its shape.

A twin has the same sequences and counts, other rows and another plan: what a wrong copy would bring.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from distillcache_shards.rows import SAMPLED, TOPK, Rows
from tests.shards.compact_cache import (
    RS_KD,
    compact_sampled_cache,
    compact_tilted_cache,
    compact_topk_cache,
)
from tests.shards.small_cache import BIG_VOCABULARY, SmallCache, small_cache

__all__ = ["SUBJECTS", "subject", "twin"]

Make = Callable[..., SmallCache]
LENGTHS = (9, 14, 1, 6)
HALF, ZSTD = {"logprobs": "f16"}, {"level": 9, "logprobs": "f16"}
MAKERS: dict[str, Make] = {
    "plain topk": partial(small_cache, kind=TOPK, params=HALF),
    "plain sampled big": partial(small_cache, kind=SAMPLED, vocab_size=BIG_VOCABULARY),
    "zstd topk big": partial(small_cache, kind=TOPK, codec="zstd", params=ZSTD, vocab_size=BIG_VOCABULARY),
    "zstd sampled": partial(small_cache, kind=SAMPLED, codec="zstd", params=ZSTD),
    "compact topk": compact_topk_cache,
    "compact topk big": partial(compact_topk_cache, vocab_size=BIG_VOCABULARY),
    "compact sampled": compact_sampled_cache,
    "compact sampled of RS-KD": partial(compact_sampled_cache, grid=RS_KD, multinomial=True),
    "compact tilted": compact_tilted_cache,
}
SUBJECTS = tuple(MAKERS)


def subject(name: str, **how: Any) -> SmallCache:
    """Two shards of two sequences, unless asked otherwise; one of the four has no rows."""
    return MAKERS[name](**{"lengths": LENGTHS, "sequences_a_shard": 2, **how})


def twin(name: str) -> SmallCache:
    """The same sequences with other rows and, where the codec has them, other tables."""
    small, other = subject(name), subject(name, seed=1, block_rows=9)
    many = Rows.concatenate([Rows.concatenate(other.rows)] * 3)
    ends = np.cumsum([len(each) for each in small.rows]).tolist()
    rows = [many[end - len(each) : end] for each, end in zip(small.rows, ends, strict=True)]
    return dataclasses.replace(other, rows=rows, tokens=small.tokens, supervised=small.supervised)
