"""Ids of `sampled` rows as both of their compact codecs lay them out: heads whose units fall, and draws.

Knows nothing of what a unit is worth. Layout: FORMAT.md, codec `compact-sampled`.

N rows, H kept ids, D draws in all.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs.codec import Spans
from distillcache_shards.codecs.numbers import Numbers, pack_numbers
from distillcache_shards.codecs.orders import Orders, ids_of
from distillcache_shards.codecs.scratch import scratch
from distillcache_shards.codecs.segments import Segments, cut
from distillcache_shards.rows import Rows

__all__ = ["OpenIds", "pack_ids", "rising_units"]

I64 = NDArray[np.int64]


def pack_ids(
    rows: Rows, heads: Segments, draws: Segments, units_H: I64, orders: Orders
) -> list[NDArray[Any]]:
    """Seven streams: of each row its order; of its head ids units and places; of its draws places."""
    order_N = orders.cheapest(*ids_of(rows))
    head_H = orders.places_of(rows.head_ids, heads.spread(order_N))
    draw_D = orders.places_of(rows.draw_ids, draws.spread(order_N))
    draws.sort(draw_D, orders.id_bits)
    # Units fall, so from the last to the first they rise, and only steps are written.
    rising = Segments.of(heads.counts_N[::-1])
    return [
        order_N,
        *pack_numbers(rising.differences(units_H[::-1].astype(np.uint32))),
        *pack_numbers(head_H),
        *pack_numbers(draws.differences(draw_D)),
    ]


def rising_units(numbers: Numbers, heads: Segments) -> tuple[NDArray[np.int32], Segments]:
    """Units of all head ids from the last to the first, as they are written, and the rows so turned."""
    num_kept = int(heads.offsets[-1])
    rising = Segments(num_kept - heads.offsets[::-1], heads.width)
    step_H = numbers.spread([(0, num_kept)], scratch(num_kept, np.dtype(np.int32)))
    units_H = np.empty(num_kept, np.int32)
    before_N, _ = rising.sums(step_H, units_H)
    rising.add(units_H, -before_N)
    return units_H, rising


@dataclass(frozen=True, eq=False)
class OpenIds:
    """The ids of rows, expanded."""

    orders: Orders
    heads: Segments
    draws: Segments
    order_N: NDArray[np.uint8]
    place_H: Numbers
    step_D: Numbers  # from place to place

    def read(self, spans: Spans, out: Rows) -> tuple[Segments, Spans]:
        """Writes the ids of some rows; returned are their heads, and where these are among all.

        Raises CorruptError for an id that is none.
        """
        order_N = cut(self.order_N, spans)
        heads, kept = self.heads.cut(spans)
        self.orders.ids_at(self.place_H.spread(kept, out.head_ids), order_N, heads)
        draws, drawn = self.draws.cut(spans)
        step_D = self.step_D.spread(drawn, scratch(len(out.draw_ids), np.dtype(np.int32)))
        self.orders.ids_after(step_D, order_N, draws, out.draw_ids)
        draws.sort(out.draw_ids.view(np.uint32), self.orders.id_bits)
        return heads, kept
