"""Makes the golden folders: small caches as this release writes them, for every later one to read.

`python -m tests.golden.make NAME` writes one that is new; a folder that is there is never written again, for
what it holds is a promise. Beside each folder, in NAME.npz, are the arrays that are in it.
"""

import sys
import tempfile
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from distillcache_shards.cache import Cache
from distillcache_shards.rows import SAMPLED, TOPK, Rows
from tests.shards.small_cache import BIG_VOCABULARY, SmallCache, small_cache

HERE = Path(__file__).parent
LENGTHS = (9, 1, 14, 6)
HALF, ZSTD = {"logprobs": "f16"}, {"level": 9, "logprobs": "f16"}
GOLDEN: dict[str, dict[str, Any]] = {
    "plain-topk": {"kind": TOPK, "vocab_size": 300, "codec": "plain", "params": HALF},
    "plain-sampled": {"kind": SAMPLED, "vocab_size": 300, "codec": "plain", "params": HALF},
    "plain-sampled-big": {"kind": SAMPLED, "vocab_size": BIG_VOCABULARY, "codec": "plain"},
    "zstd-topk": {"kind": TOPK, "vocab_size": 300, "codec": "zstd", "params": ZSTD},
    "zstd-sampled": {"kind": SAMPLED, "vocab_size": 300, "codec": "zstd", "params": ZSTD},
    "zstd-topk-big": {"kind": TOPK, "vocab_size": BIG_VOCABULARY, "codec": "zstd", "params": ZSTD},
}
ABOUT = {"teacher": "nobody", "corpus": "a golden folder: see tests/golden/make.py"}


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """All that is read from a cache folder, as flat arrays."""
    batch = (cache := Cache.open(folder)).read(range(len(cache)))
    arrays = {name: getattr(batch, name) for name in ("tokens", "supervised", "records")}
    arrays |= {name: getattr(batch, name) for name in ("token_offsets", "row_offsets")}
    return arrays | {each.name: getattr(batch.rows, each.name) for each in fields(Rows)[1:]}


def wanted_arrays(name: str) -> dict[str, np.ndarray]:
    """What must be read from a golden folder. Raises FileNotFoundError if nobody has made it."""
    with np.load(HERE / f"{name}.npz") as arrays:
        return dict(arrays)


def cache_of(name: str, arrays: dict[str, np.ndarray]) -> SmallCache:
    """The cache that these arrays are, ready to be written as the golden folder was."""
    how = GOLDEN[name]
    rows = Rows(how["kind"], *(arrays[each.name] for each in fields(Rows)[1:]))
    tokens = list(pairwise(arrays["token_offsets"].tolist()))
    return SmallCache(
        tokens=[arrays["tokens"][start:end] for start, end in tokens],
        supervised=[arrays["supervised"][start:end] for start, end in tokens],
        records=arrays["records"].tolist(),
        rows=[rows[start:end] for start, end in pairwise(arrays["row_offsets"].tolist())],
        sequences_a_shard=2,
        about=ABOUT,
        **how,
    )


def make(name: str) -> None:
    """Write one golden folder and its arrays. Raises FileExistsError if it is there."""
    if (HERE / name).exists():
        raise FileExistsError(HERE / name)
    with tempfile.TemporaryDirectory() as folder:
        arrays = arrays_of(small_cache(lengths=LENGTHS, **GOLDEN[name]).write(Path(folder)))
    # From the arrays as they are read: values that were rounded twice are the same.
    cache_of(name, arrays).write(HERE / name)
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    for each in sys.argv[1:]:
        make(each)
