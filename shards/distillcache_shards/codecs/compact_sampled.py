"""The codec `compact-sampled`: a row is a few ids with units of the grid, and a set of draws.

Lossless for rows of its grid. Tail mass and the number of draws follow from the units, and are not written.
See FORMAT.md, codec `compact-sampled`; what was tried: benches/results/2026-11-24-codecs.md.

N rows, H kept ids, D draws in all.
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
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.numbers import pack_numbers, unpack_numbers
from distillcache_shards.codecs.orders import Orders, ids_of, train_orders
from distillcache_shards.codecs.segments import Segments
from distillcache_shards.codecs.streams import pack_streams, unpack_streams
from distillcache_shards.errors import CorruptError
from distillcache_shards.rows import SAMPLED, TOPK, Rows

__all__ = ["CompactSampled"]

NUM_STREAMS = 10


@dataclass(frozen=True, eq=False)
class CompactSampled:
    """Ids and values of rows of the grid are exact; entropy is rounded to 8 bits."""

    id: ClassVar[str] = "compact-sampled"
    vocab_size: int
    orders: Orders
    grid: Grid
    kind: str = SAMPLED

    @classmethod
    def of(cls, kind: str, vocab_size: int, tables: Tables, params: Mapping[str, Any]) -> "CompactSampled":
        """The codec of a cache. Raises CorruptError for tables, ValueError for parameters that are none."""
        units, draw_units = params["units"], params["draw_units"]
        if kind != SAMPLED or type(units) is not int or type(draw_units) is not int:
            raise ValueError(f"rows of kind {kind}, units {units} and {draw_units}")
        return cls(vocab_size, Orders.of(tables, vocab_size), Grid(units, draw_units))

    @classmethod
    def trained(cls, rows: Rows, vocab_size: int, grid: Grid, *, planned_rows: int) -> "CompactSampled":
        """The codec for a cache of so many rows, from `topk` rows of the same teacher and text.

        Those have more ids than samples: trained on them, as many rows bring 5 % more.
        """
        assert rows.kind == TOPK
        in_head_H = rows.head_logprobs >= math.log(grid.tau)
        tail_mass = len(rows) - float(np.exp(rows.head_logprobs[in_head_H]).sum())
        planned_ids = planned_rows * (in_head_H.sum() + tail_mass / grid.tau) / max(1, len(rows))
        tables = train_orders(rows, vocab_size, planned_ids=planned_ids)
        return cls(vocab_size, Orders.of(tables, vocab_size), grid)

    @property
    def params(self) -> dict[str, Any]:
        """`units` and `draw_units` of the grid."""
        return {"units": self.grid.units, "draw_units": self.grid.draw_units}

    @property
    def tables(self) -> Tables:
        """`common`, `fronts`: orders of the vocabulary."""
        return self.orders.tables

    @cached_property
    def _logprobs(self) -> NDArray[np.float32]:
        return self.grid.logprobs()

    def encode(self, rows: Rows) -> EncodedBlock:
        """The bytes of a block of rows, which must be of the grid."""
        assert rows.kind == SAMPLED
        heads, draws = Segments(np.diff(rows.head_offsets)), Segments(np.diff(rows.draw_offsets))
        units_H = self.grid.of_logprobs(rows.head_logprobs)
        tail_N = self.grid.units - heads.totals(units_H)
        assert np.array_equal(self.grid.of_mass(rows.tail_mass), tail_N)
        assert np.array_equal(self.grid.num_draws(tail_N), draws.counts_N)
        order_N = self.orders.cheapest(*ids_of(rows))
        head_H = self.orders.places_of(rows.head_ids, heads.spread(order_N))
        draw_D = draws.sort(self.orders.places_of(rows.draw_ids, draws.spread(order_N)))
        # The most likely come first, so from the last to the first units rise, and only steps are written.
        rising = Segments(heads.counts_N[::-1])
        return pack_streams(
            [
                entropy_codes(rows.entropy, self.vocab_size),
                order_N,
                *pack_numbers(heads.counts_N.astype(np.uint32)),
                *pack_numbers(rising.differences(units_H[::-1].astype(np.uint32))),
                *pack_numbers(head_H),
                *pack_numbers(draws.differences(draw_D)),
            ]
        )

    def decode(self, data: NDArray[np.uint8], num_rows: int, expanded_bytes: int) -> Rows:
        """The rows of a block. Raises CorruptError for bytes that are not `num_rows` rows."""
        entropy_N, order_N, *numbers = unpack_streams(data, NUM_STREAMS, expanded_bytes)
        heads = Segments(unpack_numbers(numbers[0], numbers[1]))
        num_kept = int(heads.offsets[-1])
        if not (
            len(entropy_N) == len(order_N) == len(heads.counts_N) == num_rows
            and len(numbers[2]) == len(numbers[4]) == num_kept
        ):
            raise CorruptError(f"holds other than {num_rows} rows of {num_kept} ids")
        rising = Segments(heads.counts_N[::-1])
        units_H = rising.sums(unpack_numbers(numbers[2], numbers[3]))[::-1]
        if not 1 <= int(units_H.min(initial=1)) <= int(units_H.max(initial=1)) <= self.grid.units:
            raise CorruptError(f"holds a probability outside 1 to {self.grid.units} units")
        tail_N = self.grid.units - heads.totals(units_H)
        if int(tail_N.min(initial=0)) < 0:
            raise CorruptError(f"holds a row of more than {self.grid.units} units")
        draws = Segments(self.grid.num_draws(tail_N))
        if len(numbers[6]) != int(draws.offsets[-1]):
            raise CorruptError(f"holds other than {int(draws.offsets[-1])} draws; found {len(numbers[6])}")
        place_H = unpack_numbers(numbers[4], numbers[5])
        place_D = draws.sums(unpack_numbers(numbers[6], numbers[7]))
        draw_D = self.orders.ids_at(place_D, order_N, draws).astype(np.uint32)
        return Rows(
            SAMPLED,
            heads.offsets,
            self.orders.ids_at(place_H, order_N, heads).astype(np.int32),
            self._logprobs.take(units_H),
            (tail_N / self.grid.units).astype(np.float32),
            draws.offsets,
            draws.sort(draw_D).view(np.int32),
            entropy_nats(entropy_N, self.vocab_size),
        )

    def row_bytes(self, kept: float, draws: float) -> float:
        """From real prose and code at 49,152 ids; a larger vocabulary adds to the places."""
        wider = max(0.0, math.log2(self.vocab_size / 49_152) / 8)
        return 2.2 + kept * (1.5 + wider) + draws * (1.15 + wider)
