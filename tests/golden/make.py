"""Makes the golden folders: small caches as this release writes them, for every later one to read.

`python -m tests.golden.make` writes those that are missing; a folder that is there is never written again,
for what it holds is a promise. Beside each folder, in NAME.npz, are the arrays that are in it, and the tables
of its codec.
"""

import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from distillcache_shards.cache import Cache
from distillcache_shards.rows import SAMPLED, TOPK, Rows
from tests.shards.compact_cache import (
    RS_KD,
    compact_sampled_cache,
    compact_tilted_cache,
    compact_topk_cache,
)
from tests.shards.small_cache import BIG_VOCABULARY, SmallCache, small_cache

HERE = Path(__file__).parent
LENGTHS = (9, 1, 14, 6)
HALF, ZSTD = {"logprobs": "f16"}, {"level": 9, "logprobs": "f16"}
Maker = tuple[Callable[..., SmallCache], dict[str, Any]]
GOLDEN: dict[str, Maker] = {
    "plain-topk": (small_cache, {"kind": TOPK, "params": HALF}),
    "plain-sampled": (small_cache, {"kind": SAMPLED, "params": HALF}),
    "plain-sampled-big": (small_cache, {"kind": SAMPLED, "vocab_size": BIG_VOCABULARY}),
    "zstd-topk": (small_cache, {"kind": TOPK, "codec": "zstd", "params": ZSTD}),
    "zstd-sampled": (small_cache, {"kind": SAMPLED, "codec": "zstd", "params": ZSTD}),
    "zstd-topk-big": (
        small_cache,
        {"kind": TOPK, "vocab_size": BIG_VOCABULARY, "codec": "zstd", "params": ZSTD},
    ),
    "compact-topk": (compact_topk_cache, {}),
    "compact-topk-big": (compact_topk_cache, {"vocab_size": BIG_VOCABULARY}),
    "compact-sampled": (compact_sampled_cache, {}),
    "compact-sampled-big": (compact_sampled_cache, {"vocab_size": BIG_VOCABULARY}),
    "compact-rs-kd": (compact_sampled_cache, {"grid": RS_KD, "multinomial": True}),
    "compact-tilted": (compact_tilted_cache, {}),
    "compact-tilted-big": (compact_tilted_cache, {"vocab_size": BIG_VOCABULARY}),
}
TABLE = "codec."
ABOUT = {"teacher": "nobody", "corpus": "a golden folder: see tests/golden/make.py"}


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """All that is read from a cache folder, as flat arrays; rows that are not tilted have no weights."""
    batch = (cache := Cache.open(folder)).read(range(len(cache)))
    arrays = {name: getattr(batch, name) for name in ("tokens", "supervised", "records")}
    arrays |= {name: getattr(batch, name) for name in ("token_offsets", "row_offsets")}
    of_rows = {each.name: getattr(batch.rows, each.name) for each in fields(Rows)[1:]}
    return arrays | {name: array for name, array in of_rows.items() if array is not None}


def wanted_arrays(name: str) -> dict[str, np.ndarray]:
    """What must be read from a golden folder. Raises FileNotFoundError if nobody has made it."""
    with np.load(HERE / f"{name}.npz") as arrays:
        return dict(arrays)


def golden_cache(name: str) -> SmallCache:
    """The cache in memory that a golden folder was first made of.

    Those of the general codecs are older than the entry `index_header_sha256` of a plan.
    """
    how, settings = GOLDEN[name]
    small = how(lengths=LENGTHS, sequences_a_shard=2, **settings)
    return replace(small, about=ABOUT, names_header=how is not small_cache)


def cache_of(name: str, arrays: dict[str, np.ndarray]) -> SmallCache:
    """The cache that these arrays are, ready to be written as the golden folder was."""
    how = golden_cache(name)
    rows = Rows(
        how.kind, **{each.name: arrays[each.name] for each in fields(Rows)[1:] if each.name in arrays}
    )
    tokens = list(pairwise(arrays["token_offsets"].tolist()))
    return replace(
        how,
        tokens=[arrays["tokens"][start:end] for start, end in tokens],
        supervised=[arrays["supervised"][start:end] for start, end in tokens],
        records=arrays["records"].tolist(),
        rows=[rows[start:end] for start, end in pairwise(arrays["row_offsets"].tolist())],
        tables={each.removeprefix(TABLE): array for each, array in arrays.items() if each.startswith(TABLE)},
    )


def make(name: str) -> None:
    """Write one golden folder and its arrays. Raises FileExistsError if it is there."""
    if (HERE / name).exists():
        raise FileExistsError(HERE / name)
    first = golden_cache(name)
    with tempfile.TemporaryDirectory() as folder:
        arrays = arrays_of(first.write(Path(folder)))
    arrays |= {TABLE + each: array for each, array in first.tables.items()}
    # From the arrays as they are read: values that were rounded twice are the same.
    cache_of(name, arrays).write(HERE / name)
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    for each in GOLDEN:
        if not (HERE / each).exists():
            make(each)
