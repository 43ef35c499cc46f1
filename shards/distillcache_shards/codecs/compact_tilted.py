"""The codec `compact-tilted`: `compact-sampled` for rows whose ids are drawn more or less often by a tilt.

Lossless for rows of its grid and tilt. What a draw weighs follows from its id, and how many there are is
written, for a row's mass is 1 on average only.
See FORMAT.md, codec `compact-tilted`; what it brings: benches/results/2026-11-25-tilted.md.

N rows, H kept ids, D draws in all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs.codec import EncodedBlock, PackedBlock, Spans, Tables, decoded
from distillcache_shards.codecs.fields import entropy_codes, read_entropy
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.numbers import Numbers, pack_numbers
from distillcache_shards.codecs.orders import Orders, train_orders
from distillcache_shards.codecs.samples import OpenIds, pack_ids, rising_units
from distillcache_shards.codecs.segments import Segments, cut, steps
from distillcache_shards.codecs.streams import Streams, pack_streams
from distillcache_shards.codecs.tilt import Tilt, TiltedGrid
from distillcache_shards.errors import CorruptError
from distillcache_shards.rows import SAMPLED, TOPK, Rows

__all__ = ["CompactTilted"]

I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CompactTilted:
    """Ids and values of rows of the grid are exact; entropy is rounded to 8 bits."""

    id: ClassVar[str] = "compact-tilted"
    vocab_size: int
    orders: Orders
    tilted: TiltedGrid
    kind: str = SAMPLED

    @classmethod
    def of(cls, kind: str, vocab_size: int, tables: Tables, params: Mapping[str, Any]) -> "CompactTilted":
        """The codec of a cache. Raises CorruptError for tables, ValueError for parameters that are none."""
        if kind != SAMPLED:
            raise ValueError(f"rows of kind {kind}")
        grid = Grid.of_params(params)
        tilted = TiltedGrid(grid, Tilt.of(tables.get("tilt"), vocab_size, least=grid.tau))
        return cls(vocab_size, Orders.of(tables, vocab_size), tilted)

    @classmethod
    def trained(
        cls, rows: Rows, vocab_size: int, tilted: TiltedGrid, *, planned_rows: int
    ) -> "CompactTilted":
        """The codec for a cache of so many rows, from `topk` rows of the same teacher and text."""
        assert rows.kind == TOPK
        draws_H = np.exp(rows.head_logprobs) / tilted.weights_V[rows.head_ids]
        # As many entries as ids would be drawn; those of the tail weigh 1 on average, as far as is known.
        entries = float(np.minimum(draws_H, 1.0).sum()) + float(rows.tail_mass.sum()) / tilted.grid.tau
        tables = train_orders(rows, vocab_size, planned_ids=planned_rows * entries / max(1, len(rows)))
        return cls(vocab_size, Orders.of(tables, vocab_size), tilted)

    @property
    def params(self) -> dict[str, Any]:
        """`units` and `draw_units` of the grid."""
        return self.tilted.grid.params

    @property
    def tables(self) -> Tables:
        """`common`, `fronts`: orders of the vocabulary; `tilt`."""
        return {**self.orders.tables, "tilt": self.tilted.tilt.codes_V}

    def encode(self, rows: Rows) -> EncodedBlock:
        """The bytes of a block of rows, which must be of the grid and the tilt."""
        assert rows.kind == SAMPLED and rows.draw_weights is not None
        heads, draws = Segments.of(np.diff(rows.head_offsets)), Segments.of(np.diff(rows.draw_offsets))
        units_H = self.tilted.units(rows.head_logprobs, rows.head_ids)
        assert bool((units_H <= self.tilted.most_units_V[rows.head_ids]).all())
        assert np.array_equal(self.tilted.logprobs(units_H, rows.head_ids), rows.head_logprobs)
        assert np.array_equal(self.tilted.tail_mass(units_H, rows.head_ids, heads.counts_N), rows.tail_mass)
        assert np.array_equal(self.tilted.weights_V[rows.draw_ids], rows.draw_weights)
        return pack_streams(
            [
                *pack_numbers(heads.counts_N.astype(np.uint32)),
                *pack_numbers(draws.counts_N.astype(np.uint32)),
                *pack_ids(rows, heads, draws, units_H, self.orders),
                entropy_codes(rows.entropy, self.vocab_size),
            ]
        )

    def open(self, blocks: Sequence[PackedBlock]) -> "OpenTilted":
        """The rows of some blocks. Raises CorruptError for bytes that are not theirs."""
        num_rows = [each.num_rows for each in blocks]
        streams = Streams(blocks)
        row_bounds = [0, *accumulate(num_rows)]
        heads = Segments.of(Numbers.of(streams, num_rows).all())
        draws = Segments.of(Numbers.of(streams, num_rows).all())
        num_kept, num_draws = (steps(each.ends(row_bounds)) for each in (heads, draws))
        order_N = streams.take(num_rows)
        self.orders.require(order_N)
        units_H, _ = rising_units(Numbers.of(streams, num_kept, backwards=True), heads)
        place_H, step_D = Numbers.of(streams, num_kept), Numbers.of(streams, num_draws)
        ids = OpenIds(self.orders, heads, draws, order_N, place_H, step_D)
        rows = OpenTilted(self, ids, units_H[::-1], streams.take(num_rows))
        streams.end()
        return rows

    def decode(self, data: NDArray[np.uint8], num_rows: int, expanded_bytes: int) -> Rows:
        """The rows of a block. Raises CorruptError for bytes that are not `num_rows` rows."""
        return decoded(self.open([PackedBlock(data, num_rows, expanded_bytes)]), SAMPLED, tilted=True)

    def row_bytes(self, kept: float, draws: float) -> float:
        """From real prose and code at 49,152 ids; a larger vocabulary adds to the places."""
        wider = max(0.0, math.log2(self.vocab_size / 49_152) / 8)
        return 2.2 + kept * (1.5 + wider) + draws * (1.25 + wider)


@dataclass(frozen=True, eq=False)
class OpenTilted:
    """Rows of `compact-tilted`, expanded."""

    codec: CompactTilted
    ids: OpenIds
    units_H: NDArray[np.int32]
    entropy_N: NDArray[np.uint8]

    @property
    def head_offsets(self) -> I64:
        """Of kept ids, [N + 1]."""
        return self.ids.heads.offsets

    @property
    def draw_offsets(self) -> I64:
        """Of draws, [N + 1]."""
        return self.ids.draws.offsets

    def read(self, spans: Spans, out: Rows) -> None:
        """Writes some rows. Raises CorruptError if they are none."""
        assert out.draw_weights is not None
        tilted = self.codec.tilted
        heads, kept = self.ids.read(spans, out)
        units_H = cut(self.units_H, kept)
        if bool(((units_H < 1) | (units_H > tilted.most_units_V.take(out.head_ids))).any()):
            raise CorruptError("holds a probability that is none")
        np.copyto(out.head_logprobs, tilted.logprobs(units_H, out.head_ids))
        np.copyto(out.tail_mass, tilted.tail_mass(units_H, out.head_ids, heads.counts_N))
        tilted.weights_V.take(out.draw_ids, out=out.draw_weights, mode="clip")
        read_entropy(cut(self.entropy_N, spans), self.codec.vocab_size, out.entropy)
