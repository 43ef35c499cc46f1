"""Small caches of the compact codecs: tables that nobody trained, and `sampled` rows of a grid.

Rows are those of a threshold, tilted or not, or of draws with replacement as RS-KD makes them.
Needs no torch.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from distillcache_shards.codecs import Tables
from distillcache_shards.codecs.fields import id_dtype
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.levels import make_levels
from distillcache_shards.codecs.tilt import Tilt, TiltedGrid
from distillcache_shards.rows import SAMPLED, TOPK, Rows
from tests.shards.small_cache import SmallCache, small_cache

THRESHOLD, RS_KD = Grid(100, 4), Grid(50, 1)
STEP, WIDEST = 0.01, 0.4
LEAST_CODE, MOST_CODE = 96, 170  # of a tilt: factors from 1/4 to 6


def order_tables(vocab_size: int, *, orders: int = 3, seed: int = 0) -> Tables:
    """A common order and a few fronts, all of chance."""
    random = np.random.default_rng(seed)
    dtype = id_dtype(vocab_size)
    front = min(vocab_size, 20)
    fronts = [random.permutation(vocab_size)[:front].astype(dtype) for _ in range(orders)]
    common = random.permutation(vocab_size)[: min(vocab_size // 2 + 1, 90)].astype(dtype)
    return {"common": common, "fronts": np.array(fronts)}


def level_tables(vocab_size: int, *, seed: int = 0) -> Tables:
    """The same, and levels of log-probability."""
    return {**order_tables(vocab_size, seed=seed), "levels": make_levels(STEP, WIDEST)}


def compact_topk_cache(seed: int = 0, *, vocab_size: int = 300, **how: Any) -> SmallCache:
    """`topk` rows, codec `compact-topk`; `how` goes to `small_cache`."""
    return small_cache(
        seed,
        kind=TOPK,
        vocab_size=vocab_size,
        codec="compact-topk",
        params={"step": STEP, "widest": WIDEST},
        tables=level_tables(vocab_size, seed=seed),
        **how,
    )


def compact_sampled_cache(
    seed: int = 0, *, vocab_size: int = 300, grid: Grid = THRESHOLD, multinomial: bool = False, **how: Any
) -> SmallCache:
    """`sampled` rows of a grid, codec `compact-sampled`; `how` goes to `small_cache`."""
    random = np.random.default_rng(seed)
    small = small_cache(
        seed,
        kind=SAMPLED,
        vocab_size=vocab_size,
        codec="compact-sampled",
        params={"units": grid.units, "draw_units": grid.draw_units},
        tables=order_tables(vocab_size, seed=seed),
        **how,
    )
    return dataclasses.replace(
        small,
        rows=[grid_rows(random, len(each), vocab_size, grid, multinomial=multinomial) for each in small.rows],
    )


def grid_rows(
    random: np.random.Generator, num_rows: int, vocab_size: int, grid: Grid, *, multinomial: bool = False
) -> Rows:
    """Sound rows of a grid: by threshold, or so many draws with replacement, an id drawn more often kept."""
    parts = [Rows.empty(SAMPLED)]
    for _ in range(num_rows):
        ids = random.permutation(vocab_size)[:8]
        p = random.dirichlet(np.full(len(ids), 0.4))
        if multinomial:
            drawn, units = np.unique(random.choice(vocab_size, grid.units // 4), return_counts=True)
            more = random.choice(ids, grid.units - units.sum(), p=p)
            drawn, units = np.unique(np.concatenate([np.repeat(drawn, units), more]), return_counts=True)
            parts.append(
                _row(random, grid, vocab_size, drawn[units > 1], units[units > 1], drawn[units == 1])
            )
        else:
            units = np.floor(p * grid.units).astype(np.int64)
            kept = units >= grid.draw_units
            draws = int(grid.num_draws(grid.units - units[kept].sum()))
            drawn = random.integers(vocab_size, size=draws + 9 * kept.size)
            drawn = drawn[~np.isin(drawn, ids[kept])][:draws]
            parts.append(_row(random, grid, vocab_size, ids[kept], units[kept], drawn))
    return Rows.concatenate(parts)


def tilt_table(vocab_size: int, *, seed: int = 0, least: int = LEAST_CODE, most: int = MOST_CODE) -> Tables:
    """A tilt, all of chance."""
    return {"tilt": np.random.default_rng(seed).integers(least, most + 1, vocab_size).astype(np.uint8)}


def tilted_grid(grid: Grid, tables: Tables) -> TiltedGrid:
    """The grid of rows with this tilt."""
    return TiltedGrid(grid, Tilt(tables["tilt"]))


def compact_tilted_cache(
    seed: int = 0, *, vocab_size: int = 300, grid: Grid = THRESHOLD, **how: Any
) -> SmallCache:
    """Tilted rows, codec `compact-tilted`; `how` goes to `small_cache`."""
    random = np.random.default_rng(seed)
    tables = {**order_tables(vocab_size, seed=seed), **tilt_table(vocab_size, seed=seed)}
    small = small_cache(
        seed,
        kind=SAMPLED,
        vocab_size=vocab_size,
        codec="compact-tilted",
        params={"units": grid.units, "draw_units": grid.draw_units},
        tables=tables,
        **how,
    )
    tilted = tilted_grid(grid, tables)
    return dataclasses.replace(small, rows=[tilted_rows(random, len(each), tilted) for each in small.rows])


def tilted_rows(random: np.random.Generator, num_rows: int, tilted: TiltedGrid) -> Rows:
    """Sound tilted rows, also without a head, without draws, of one id, and with an id drawn twice."""
    vocab_size, units = len(tilted.tilt.codes_V), tilted.grid.units
    parts = [Rows.room(SAMPLED, np.zeros(1, np.int64), np.zeros(1, np.int64), tilted=True)]
    for _ in range(num_rows):
        # Some of all, whatever there is: to choose among 2^20 without replacement takes long.
        some = np.unique(np.append(random.integers(vocab_size, size=8), [0, vocab_size - 1]))
        ids = random.permutation(some)[: random.integers(9) * (random.random() < 0.8)]
        p = random.dirichlet(np.full(len(ids) + 1, 0.4))[: len(ids)]
        if len(ids) and random.random() < 0.2:
            p = np.eye(len(ids))[0]  # certain of one
        tilted_p = p * tilted.tilt.factors_V[ids]
        kept = tilted_p >= tilted.grid.tau
        ids, k = ids[kept], np.floor(tilted_p[kept] * units + random.random(kept.sum())).astype(np.int64)
        k = np.maximum(k, 1)
        order = np.lexsort((ids, -k))
        ids, k = ids[order], k[order]
        drawn = random.integers(vocab_size, size=random.integers(9))
        drawn = np.append(drawn, drawn[: random.integers(2)])  # perhaps one of them twice
        drawn = np.sort(drawn[~np.isin(drawn, ids)])
        parts.append(
            Rows(
                SAMPLED,
                np.array([0, len(ids)]),
                ids.astype(np.int32),
                tilted.logprobs(k, ids),
                tilted.tail_mass(k, ids, np.array([len(ids)])),
                np.array([0, len(drawn)]),
                drawn.astype(np.int32),
                (random.random(1) * np.log(vocab_size)).astype(np.float32),
                tilted.weights_V[drawn],
            )
        )
    return Rows.concatenate(parts)


def _row(
    random: np.random.Generator,
    grid: Grid,
    vocab_size: int,
    ids: np.ndarray,
    units: np.ndarray,
    drawn: np.ndarray,
) -> Rows:
    order = np.lexsort((ids, -units))
    tail = grid.units - int(units.sum())
    assert len(drawn) == grid.num_draws(np.array(tail))
    return Rows(
        SAMPLED,
        np.array([0, len(ids)]),
        ids[order].astype(np.int32),
        np.array([math.log(each / grid.units) for each in units[order].tolist()], np.float32),
        np.array([tail / grid.units], np.float32),
        np.array([0, len(drawn)]),
        np.sort(drawn).astype(np.int32),
        (random.random(1) * np.log(vocab_size)).astype(np.float32),
    )
