"""The codec `compact-topk`: a row is a set of ids, each with a level of log-probability.

A set costs less than a list: ids are sorted by their place in the row's order of the vocabulary and only gaps
are written; the levels, in the same sequence, bring the likeliest back to the front.
See FORMAT.md, codec `compact-topk`; what was tried: benches/results/2026-11-24-codecs.md.

N rows, H kept ids in all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs.codec import EncodedBlock, Tables
from distillcache_shards.codecs.fields import entropy_codes, entropy_nats
from distillcache_shards.codecs.levels import (
    COARSEST_STEP,
    FINEST_STEP,
    level_cells,
    levels_kl,
    make_levels,
    nearest_levels,
    require_levels,
    widest_of,
)
from distillcache_shards.codecs.numbers import pack_numbers, pack_pairs, unpack_numbers, unpack_pairs
from distillcache_shards.codecs.orders import Orders, train_orders
from distillcache_shards.codecs.segments import Segments
from distillcache_shards.codecs.streams import pack_streams, unpack_streams
from distillcache_shards.errors import CorruptError
from distillcache_shards.rows import TOPK, Rows

__all__ = ["CompactTopk"]

NUM_STREAMS = 10
LEVEL_BITS, ID_BITS = 12, 20
# Levels are tried on so many rows, and held to a little less than is asked, for other rows lose more or less.
TRIED_ROWS, SAFETY = 4096, 0.9


@dataclass(frozen=True, eq=False)
class CompactTopk:
    """Ids are exact; log-probabilities and tail mass are of the levels in its tables."""

    id: ClassVar[str] = "compact-topk"
    vocab_size: int
    orders: Orders
    levels: NDArray[np.float32]  # log-probability of each level
    step: float  # see `make_levels`; a reader does not need it
    widest: float
    kind: str = TOPK

    @classmethod
    def of(cls, kind: str, vocab_size: int, tables: Tables, params: Mapping[str, Any]) -> "CompactTopk":
        """The codec of a cache. Raises CorruptError for tables, ValueError for parameters that are none."""
        if kind != TOPK:
            raise ValueError(f"rows of kind {kind}")
        orders, levels = Orders.of(tables, vocab_size), require_levels(tables.get("levels"))
        return cls(vocab_size, orders, levels, float(params["step"]), float(params["widest"]))

    @classmethod
    def trained(
        cls,
        rows: Rows,
        vocab_size: int,
        *,
        planned_rows: int,
        max_kl_nats: float | None = None,
        row_bytes: float | None = None,
    ) -> "CompactTopk":
        """The codec for a cache of so many rows like these; of the two measures one is given.

        `max_kl_nats`: the coarsest levels that lose at most so much, a row and on average.
        `row_bytes`: the finest that take at most so much. Raises ValueError, in words, if none do.
        """
        assert (max_kl_nats is None) != (row_bytes is None)
        # Bytes are tried on rows that trained nothing; a loss of values does not depend on it.
        tried = rows[max(len(rows) - TRIED_ROWS, len(rows) * 7 // 8) :]
        training = rows[: len(rows) - len(tried)] if row_bytes is not None else rows
        planned_ids = planned_rows * rows.num_kept / max(1, len(rows))
        orders = Orders.of(train_orders(training, vocab_size, planned_ids=planned_ids), vocab_size)

        def at(step: float) -> "CompactTopk":
            return cls(vocab_size, orders, make_levels(step, widest_of(step)), step, widest_of(step))

        def fits(step: float) -> bool:
            """Whether the step is fine enough for the KL, or still too fine for the bytes."""
            if max_kl_nats is not None:
                return levels_kl(at(step).levels, tried) <= SAFETY * max_kl_nats
            return len(at(step).encode(tried).data) > (row_bytes or 0.0) * len(tried)

        fine, coarse = FINEST_STEP, COARSEST_STEP
        if row_bytes is not None and fits(coarse):
            least = len(at(coarse).encode(tried).data) / len(tried)
            raise ValueError(f"rows like these take at least {least:.1f} bytes")
        if max_kl_nats is not None and not fits(fine):
            raise ValueError(f"the finest levels lose {levels_kl(at(fine).levels, tried):.1e} nats")
        while coarse / fine > 1.01:
            step = float(f"{(coarse * fine) ** 0.5:.4g}")
            fine, coarse = (step, coarse) if fits(step) else (fine, step)
        return at(fine if max_kl_nats is not None else coarse)

    @property
    def params(self) -> dict[str, Any]:
        """`step` and `widest`: how the levels were made."""
        return {"step": self.step, "widest": self.widest}

    @property
    def tables(self) -> Tables:
        """`common`, `fronts`: orders of the vocabulary. `levels`: log-probabilities."""
        return {**self.orders.tables, "levels": self.levels}

    @cached_property
    def _cells(self) -> NDArray[np.uint16]:
        return level_cells(self.levels)

    @cached_property
    def _masses(self) -> NDArray[np.float32]:
        """Probability of each level, and none after the last."""
        return np.append(np.exp(self.levels), np.float32(0))

    def encode(self, rows: Rows) -> EncodedBlock:
        """The bytes of a block of rows."""
        assert rows.kind == TOPK
        heads = Segments(np.diff(rows.head_offsets))
        order_N = self.orders.cheapest(rows.head_ids, rows.head_offsets)
        place_H = self.orders.places_of(rows.head_ids, heads.spread(order_N))
        # Levels fall short of 2^12 and places of 2^20: both fit in one key.
        level_H = nearest_levels(self._cells, rows.head_logprobs)
        key_H = heads.sort((place_H << np.uint32(LEVEL_BITS)) | level_H)
        level_H = key_H & np.uint32((1 << LEVEL_BITS) - 1)
        lowest_N = heads.largest(level_H)
        with np.errstate(divide="ignore"):
            tail_N = nearest_levels(self._cells, np.log(rows.tail_mass))
        tail_N[rows.tail_mass <= 0] = len(self.levels)
        return pack_streams(
            [
                entropy_codes(rows.entropy, self.vocab_size),
                order_N,
                pack_pairs(lowest_N),
                pack_pairs(tail_N),
                *pack_numbers(heads.counts_N.astype(np.uint32)),
                *pack_numbers(heads.differences(key_H >> np.uint32(LEVEL_BITS))),
                *pack_numbers(heads.spread(lowest_N) - level_H),
            ]
        )

    def decode(self, data: NDArray[np.uint8], num_rows: int, expanded_bytes: int) -> Rows:
        """The rows of a block. Raises CorruptError for bytes that are not `num_rows` rows."""
        entropy_N, order_N, lowest, tail, *numbers = unpack_streams(data, NUM_STREAMS, expanded_bytes)
        heads = Segments(unpack_numbers(numbers[0], numbers[1]))
        num_kept = int(heads.offsets[-1])
        if not (
            len(entropy_N) == len(order_N) == len(heads.counts_N) == num_rows
            and len(lowest) == len(tail) == 2 * num_rows
            and len(numbers[2]) == len(numbers[4]) == num_kept
        ):
            raise CorruptError(f"holds other than {num_rows} rows of {num_kept} ids")
        place_H = heads.sums(unpack_numbers(numbers[2], numbers[3]))
        level_H = unpack_numbers(numbers[4], numbers[5])
        np.subtract(heads.spread(unpack_pairs(lowest)), level_H, out=level_H)  # if below 0, it is no level
        tail_N = unpack_pairs(tail)
        if max(int(level_H.max(initial=0)), int(tail_N.max(initial=0)) - 1) >= len(self.levels):
            raise CorruptError(f"holds a level that is none of {len(self.levels)}")
        level_H <<= np.uint32(ID_BITS)
        level_H |= self.orders.ids_at(place_H, order_N, heads)
        key_H = heads.sort(level_H)
        ids_H = key_H & np.uint32((1 << ID_BITS) - 1)
        key_H >>= np.uint32(ID_BITS)
        return Rows(
            TOPK,
            heads.offsets,
            ids_H.view(np.int32),
            self.levels.take(key_H),
            self._masses.take(tail_N),
            np.zeros(num_rows + 1, np.int64),
            np.zeros(0, np.int32),
            entropy_nats(entropy_N, self.vocab_size),
        )

    def row_bytes(self, kept: float, draws: float) -> float:
        """From real prose and code at 49,152 ids and 64 kept; a larger vocabulary adds to the gaps."""
        return 3.8 + kept * (1.32 + max(0.0, math.log2(self.vocab_size / 49_152) / 8))
