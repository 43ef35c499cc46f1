"""The plan of a cache, made from settings, corpus and teacher before the teacher runs.

Decides which sequences make a shard, and what would make two caches different ones.
Knows nothing of models.

n sequences, S shards.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache.corpus.spool import Spool
from distillcache.errors import ConfigError
from distillcache.teach.config import TeachConfig
from distillcache.teach.rows_config import DRAWS, MULTINOMIAL, SAMPLED, TOPK
from distillcache_shards.codecs.grid import MAX_UNITS, Grid
from distillcache_shards.codecs.tilt import MAX_TILTED_UNITS
from distillcache_shards.index import IndexData
from distillcache_shards.plan import Plan

__all__ = ["cut_shards", "grid_of", "make_index", "plan_corpus", "plan_settings"]

MIN_TAU, MIN_TILTED_TAU = 4 / MAX_UNITS, 4 / MAX_TILTED_UNITS


def plan_settings(config: TeachConfig, existing: Plan | None) -> dict[str, Any]:
    """The sections of a plan that settings alone decide.

    The parameters of a codec that is calibrated are those of the plan that there is, and missing if none is.
    """
    codec = {"id": config.codec_id, "block_rows": config.block_rows, "asked": config.asked()}
    if not config.is_calibrated:
        codec["params"] = config.codec_params()
    elif existing is not None:
        codec["params"] = existing.data["codec"]["params"]
    return {
        "rows": _rows_section(config),
        "codec": codec,
        "settings": {
            "max_length": config.max_length,
            "stride": config.stride,
            "supervise": config.supervise,
            "system": config.system,
            "special_tokens": config.special_tokens,
            "shard_rows": config.shard_rows,
        },
    }


def grid_of(config: TeachConfig) -> Grid:
    """The grid of `sampled` rows. Raises ConfigError if there is none so fine."""
    if config.kept == MULTINOMIAL:
        return Grid(DRAWS if config.draws is None else config.draws, 1)
    if config.tilt_power and config.threshold < MIN_TILTED_TAU:
        raise ConfigError(
            f"--tau: must be at least 1/{1 / MIN_TILTED_TAU:.0f} with a tilt, found {config.threshold:g}; "
            "give a larger one, or --tilt 0"
        )
    try:
        return Grid.of(config.threshold)
    except ValueError:
        raise ConfigError(f"--tau: must be at least {MIN_TAU:.1e}, found {config.threshold:g}") from None


def _rows_section(config: TeachConfig) -> dict[str, Any]:
    if config.kept == TOPK:
        bounds = {name: getattr(config, name) for name in ("top_p", "min_p", "min_k")}
        given = {name: value for name, value in bounds.items() if value is not None}
        return {"kind": TOPK, "k": config.row_k, "temperature": 1.0, **given}
    grid = grid_of(config)
    tilt = {"tilt": config.tilt_power} if config.tilt_power else {}
    return {
        "kind": SAMPLED,
        "method": "multinomial" if config.kept == MULTINOMIAL else "threshold",
        **grid.params,
        **tilt,
        "seed": config.seed or 0,
        "temperature": 1.0 if config.row_temperature is None else config.row_temperature,
    }


def plan_corpus(spool: Spool, index: IndexData) -> dict[str, Any]:
    """The section of a plan that the corpus decides."""
    return {
        "sequences": len(spool),
        "tokens": spool.num_tokens,
        "rows": int(spool.rows.sum()),
        "shards": len(index.shard_sha256),
        "index_sha256": index.sha256(),
        "index_header_sha256": index.header_sha256(),
    }


def cut_shards(rows: NDArray[np.int64], shard_rows: int) -> NDArray[np.int64]:
    """Where shards begin and end, [S + 1], from the rows of each sequence, [n].

    A shard is neighbouring sequences, as many as reach `shard_rows`; the last may have fewer.
    """
    ends = np.cumsum(rows)
    bounds = [0]
    while bounds[-1] < len(rows):
        done = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
        bounds.append(min(len(rows), int(np.searchsorted(ends, done + shard_rows)) + 1))
    return np.array(bounds, np.int64)


def make_index(spool: Spool, shard_rows: int, tables: Mapping[str, NDArray[Any]]) -> IndexData:
    """The index of a corpus: its shards and the content of its sequences, a shard at a time."""
    bounds = cut_shards(spool.rows, shard_rows)
    shards, hashes = [], []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        sequences = spool.read(start, end)
        shards.append(np.frombuffer(sequences.sha256(), np.uint8))
        hashes.append(sequences.hashes())
    return IndexData(
        shard_first_sequence=bounds.astype(np.uint64),
        shard_sha256=np.stack(shards) if shards else np.zeros((0, 32), np.uint8),
        sequence_hash=np.concatenate(hashes) if hashes else np.zeros((0, 16), np.uint8),
        sequence_tokens=spool.lengths.astype(np.uint32),
        sequence_rows=spool.rows.astype(np.uint32),
        sequence_record=spool.records.astype(np.uint64),
        tables=tables,
    )
