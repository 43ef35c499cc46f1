"""The codec `compact-sampled`: a row is a few ids with units of the grid, and a set of draws.

Lossless for rows of its grid. Tail mass and the number of draws follow from the units, and are not written.
See FORMAT.md, codec `compact-sampled`; what was tried: benches/results/2026-11-24-codecs.md.

N rows, H kept ids, D draws in all.
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
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.numbers import Numbers, pack_numbers
from distillcache_shards.codecs.orders import Orders, train_orders
from distillcache_shards.codecs.samples import OpenIds, pack_ids, rising_units
from distillcache_shards.codecs.segments import Segments, cut, steps
from distillcache_shards.codecs.streams import Streams, pack_streams
from distillcache_shards.errors import CorruptError
from distillcache_shards.rows import SAMPLED, TOPK, Rows

__all__ = ["CompactSampled"]

I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CompactSampled:
    """Ids and values of rows of the grid are exact; entropy is rounded to 8 bits."""

    id: ClassVar[str] = "compact-sampled"
    tilted: ClassVar[None] = None
    vocab_size: int
    orders: Orders
    grid: Grid
    kind: str = SAMPLED

    @classmethod
    def of(cls, kind: str, vocab_size: int, tables: Tables, params: Mapping[str, Any]) -> "CompactSampled":
        """The codec of a cache. Raises CorruptError for tables, ValueError for parameters that are none."""
        if kind != SAMPLED:
            raise ValueError(f"rows of kind {kind}")
        grid = Grid.of_params(params)
        return cls(vocab_size, Orders.of(tables, vocab_size), grid)

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
        return self.grid.params

    @property
    def tables(self) -> Tables:
        """`common`, `fronts`: orders of the vocabulary."""
        return self.orders.tables

    @cached_property
    def logprobs(self) -> NDArray[np.float32]:
        """Of so many units, [units + 1]."""
        return self.grid.logprobs()

    def encode(self, rows: Rows) -> EncodedBlock:
        """The bytes of a block of rows, which must be of the grid."""
        assert rows.kind == SAMPLED and rows.draw_weights is None
        heads, draws = Segments.of(np.diff(rows.head_offsets)), Segments.of(np.diff(rows.draw_offsets))
        units_H = self.grid.of_logprobs(rows.head_logprobs)
        tail_N = self.grid.units - heads.totals(units_H)
        assert np.array_equal(self.grid.of_mass(rows.tail_mass), tail_N)
        assert np.array_equal(self.grid.num_draws(tail_N), draws.counts_N)
        return pack_streams(
            [
                *pack_numbers(heads.counts_N.astype(np.uint32)),
                *pack_ids(rows, heads, draws, units_H, self.orders),
                entropy_codes(rows.entropy, self.vocab_size),
            ]
        )

    def open(self, blocks: Sequence[PackedBlock]) -> "OpenSampled":
        """The rows of some blocks. Raises CorruptError for bytes that are not theirs."""
        num_rows = [each.num_rows for each in blocks]
        streams = Streams(blocks)
        row_bounds = [0, *accumulate(num_rows)]
        heads = Segments.of(Numbers.of(streams, num_rows).all())
        num_kept = steps(heads.ends(row_bounds))
        order_N = streams.take(num_rows)
        self.orders.require(order_N)
        units_H, tail_N = self._units(Numbers.of(streams, num_kept, backwards=True), heads)
        draws = Segments.of(self.grid.num_draws(tail_N))
        num_draws = steps(draws.ends(row_bounds))
        place_H, step_D = Numbers.of(streams, num_kept), Numbers.of(streams, num_draws)
        ids = OpenIds(self.orders, heads, draws, order_N, place_H, step_D)
        rows = OpenSampled(self, ids, units_H, tail_N, streams.take(num_rows))
        streams.end()
        return rows

    def _units(self, numbers: Numbers, heads: Segments) -> tuple[NDArray[np.int32], I64]:
        """Units of the head ids, and of the tails. Raises CorruptError for more than there are."""
        units_H, rising = rising_units(numbers, heads)
        if not 1 <= int(units_H.min(initial=1)) <= int(units_H.max(initial=1)) <= self.grid.units:
            raise CorruptError(f"holds a probability outside 1 to {self.grid.units} units")
        tail_N = self.grid.units - rising.totals(units_H)[::-1]
        if int(tail_N.min(initial=0)) < 0:
            raise CorruptError(f"holds a row of more than {self.grid.units} units")
        return units_H[::-1], tail_N

    def decode(self, data: NDArray[np.uint8], num_rows: int, expanded_bytes: int) -> Rows:
        """The rows of a block. Raises CorruptError for bytes that are not `num_rows` rows."""
        return decoded(self.open([PackedBlock(data, num_rows, expanded_bytes)]), SAMPLED)

    def row_bytes(self, kept: float, draws: float) -> float:
        """From real prose and code at 49,152 ids; a larger vocabulary adds to the places."""
        wider = max(0.0, math.log2(self.vocab_size / 49_152) / 8)
        return 2.2 + kept * (1.5 + wider) + draws * (1.15 + wider)


@dataclass(frozen=True, eq=False)
class OpenSampled:
    """Rows of `compact-sampled`, expanded."""

    codec: CompactSampled
    ids: OpenIds
    units_H: NDArray[np.int32]
    tail_N: I64  # in units
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
        codec = self.codec
        _, kept = self.ids.read(spans, out)
        codec.logprobs.take(cut(self.units_H, kept), out=out.head_logprobs, mode="clip")
        np.divide(cut(self.tail_N, spans), codec.grid.units, out=out.tail_mass, casting="same_kind")
        read_entropy(cut(self.entropy_N, spans), codec.vocab_size, out.entropy)
