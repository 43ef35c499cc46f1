"""The codec `compact-topk`: a row is a set of ids, each with a level of log-probability.

A set costs less than a list: ids are sorted by their place in the row's order of the vocabulary and only gaps
are written; the levels, in the same sequence, bring the likeliest back to the front.
See FORMAT.md, codec `compact-topk`; what was tried: benches/results/2026-11-24-codecs.md.

N rows, H kept ids in all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs.codec import EncodedBlock, PackedBlock, Spans, Tables, decoded
from distillcache_shards.codecs.fields import entropy_codes, read_entropy
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
from distillcache_shards.codecs.numbers import Numbers, pack_numbers, pack_pairs, take_pairs
from distillcache_shards.codecs.orders import Orders, train_orders
from distillcache_shards.codecs.scratch import scratch
from distillcache_shards.codecs.segments import Segments, cut, steps
from distillcache_shards.codecs.streams import Streams, pack_streams
from distillcache_shards.errors import CorruptError
from distillcache_shards.rows import TOPK, Rows

__all__ = ["CompactTopk"]

LEVEL_BITS, ID_BITS = 12, 20
# Levels are tried on so many rows, and held to a little less than is asked, for other rows lose more or less.
TRIED_ROWS, SAFETY = 4096, 0.9


@dataclass(frozen=True, eq=False)
class CompactTopk:
    """Ids are exact; log-probabilities and tail mass are of the levels in its tables."""

    id: ClassVar[str] = "compact-topk"
    tilted: ClassVar[None] = None
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
    def masses(self) -> NDArray[np.float32]:
        """Probability of each level, and none after the last."""
        # Rounded from float64: numpy's own exponentials of float32 differ from machine to machine.
        return np.append(np.exp(self.levels.astype(np.float64)), 0).astype(np.float32)

    def encode(self, rows: Rows) -> EncodedBlock:
        """The bytes of a block of rows."""
        assert rows.kind == TOPK
        heads = Segments.of(np.diff(rows.head_offsets))
        order_N = self.orders.cheapest(rows.head_ids, rows.head_offsets)
        place_H = self.orders.places_of(rows.head_ids, heads.spread(order_N))
        # Levels fall short of 2^12 and places of 2^20: both fit in one key.
        level_H = nearest_levels(self._cells, rows.head_logprobs)
        key_H = (place_H << np.uint32(LEVEL_BITS)) | level_H
        heads.sort(key_H, 32)
        level_H = key_H & np.uint32((1 << LEVEL_BITS) - 1)
        lowest_N = heads.largest(level_H)
        with np.errstate(divide="ignore"):
            tail_N = nearest_levels(self._cells, np.log(rows.tail_mass))
        tail_N[rows.tail_mass <= 0] = len(self.levels)
        return pack_streams(
            [
                *pack_numbers(heads.counts_N.astype(np.uint32)),
                order_N,
                pack_pairs(lowest_N),
                pack_pairs(tail_N),
                *pack_numbers(heads.differences(key_H >> np.uint32(LEVEL_BITS))),
                *pack_numbers(heads.spread(lowest_N) - level_H),
                entropy_codes(rows.entropy, self.vocab_size),
            ]
        )

    def open(self, blocks: Sequence[PackedBlock]) -> "OpenTopk":
        """The rows of some blocks. Raises CorruptError for bytes that are not theirs."""
        num_rows = [each.num_rows for each in blocks]
        streams = Streams(blocks)
        heads = Segments.of(Numbers.of(streams, num_rows).all())
        num_kept = steps(heads.ends([0, *accumulate(num_rows)]))
        rows = OpenTopk(
            self,
            heads,
            streams.take(num_rows),
            take_pairs(streams, num_rows),
            take_pairs(streams, num_rows),
            Numbers.of(streams, num_kept),
            Numbers.of(streams, num_kept),
            streams.take(num_rows),
        )
        streams.end()
        self.orders.require(rows.order_N)
        if int(rows.tail_N.max(initial=0)) > len(self.levels):
            raise CorruptError(f"holds a level that is none of {len(self.levels)}")
        return rows

    def decode(self, data: NDArray[np.uint8], num_rows: int, expanded_bytes: int) -> Rows:
        """The rows of a block. Raises CorruptError for bytes that are not `num_rows` rows."""
        return decoded(self.open([PackedBlock(data, num_rows, expanded_bytes)]), TOPK)

    def row_bytes(self, kept: float, draws: float) -> float:
        """From real prose and code at 49,152 ids and 64 kept; a larger vocabulary adds to the gaps."""
        return 3.8 + kept * (1.32 + max(0.0, math.log2(self.vocab_size / 49_152) / 8))


@dataclass(frozen=True, eq=False)
class OpenTopk:
    """Rows of `compact-topk`, expanded."""

    codec: CompactTopk
    heads: Segments
    order_N: NDArray[np.uint8]
    lowest_N: NDArray[np.uint32]  # level of the least likely id
    tail_N: NDArray[np.uint32]  # level of the tail mass
    step_H: Numbers  # from place to place
    above_H: Numbers  # levels above the lowest
    entropy_N: NDArray[np.uint8]

    @property
    def head_offsets(self) -> NDArray[np.int64]:
        """Of kept ids, [N + 1]."""
        return self.heads.offsets

    @property
    def draw_offsets(self) -> NDArray[np.int64]:
        """Of no draws, [N + 1]."""
        return np.zeros(len(self.entropy_N) + 1, np.int64)

    def read(self, spans: Spans, out: Rows) -> None:
        """Writes some rows. Raises CorruptError if they are none."""
        codec = self.codec
        heads, ids = self.heads.cut(spans)
        ids_H, other_H = out.head_ids, out.head_logprobs.view(np.int32)  # used for steps, then for keys
        codec.orders.ids_after(self.step_H.spread(ids, other_H), cut(self.order_N, spans), heads, ids_H)
        key_H = self.above_H.spread(ids, other_H.view(np.uint32))
        heads.less_than(cut(self.lowest_N, spans), key_H)  # if below 0, it is no level
        if int(key_H.max(initial=0)) >= len(codec.levels):
            raise CorruptError(f"holds a level that is none of {len(codec.levels)}")
        key_H <<= np.uint32(ID_BITS)
        key_H |= ids_H.view(np.uint32)
        heads.sort(key_H, 32)
        np.bitwise_and(key_H, np.uint32((1 << ID_BITS) - 1), out=ids_H.view(np.uint32))
        key_H >>= np.uint32(ID_BITS)
        level_H = scratch(len(key_H), np.dtype(np.int64))
        np.copyto(level_H, key_H)
        codec.levels.take(level_H, out=out.head_logprobs, mode="clip")
        codec.masses.take(cut(self.tail_N, spans), out=out.tail_mass, mode="clip")
        read_entropy(cut(self.entropy_N, spans), codec.vocab_size, out.entropy)
