"""Orders of the vocabulary: for each kind of text one, in which the ids of a row come early.

A row says in which order its ids are counted; an id is then its place there, a small number.
A table of the cache: trained on rows of its own teacher, see `train_orders`.
Knows nothing of values or bytes.

N rows, H ids in all, A of a row's ids, V vocabulary, C orders, M ids at the front of an order.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs.codec import Tables
from distillcache_shards.codecs.fields import id_dtype
from distillcache_shards.codecs.numbers import LARGEST
from distillcache_shards.codecs.scratch import scratch
from distillcache_shards.codecs.segments import Segments
from distillcache_shards.errors import CorruptError
from distillcache_shards.rows import Rows

__all__ = ["Orders", "ids_of", "train_orders"]

MAX_ORDERS, MOST_TRAINED = 256, 32
MAX_PLACES = 1 << 25  # of all orders: a table of as many ids is laid out
# So many steps of less than `LARGEST` stay below 2^32.
MOST_STEPS = (1 << 32) // LARGEST
# How many ids of the common distribution an order's own are mixed with, so that it knows rare ids too.
PRIOR_IDS = 2000
TRAINING_STEPS = 12
SEED_ROWS = 30  # of an order, at first
MANY_ASKED, FEW_ASKED = 32, 16
CHUNK_ROWS = 256

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Orders:
    """Order c: the ids of `fronts_CM[c]`, then those of `common` that are left, then all others, rising."""

    vocab_size: int
    common: NDArray[Any]
    fronts_CM: NDArray[Any]

    @classmethod
    def of(cls, tables: Tables, vocab_size: int) -> "Orders":
        """From `common` and `fronts` of the tables. Raises CorruptError, without a place, for no orders."""
        common, fronts = tables.get("common"), tables.get("fronts")
        if (
            common is None
            or fronts is None
            or not common.dtype == fronts.dtype == id_dtype(vocab_size)
            or (common.ndim, fronts.ndim) != (1, 2)
            or not 1 <= len(fronts) <= min(MAX_ORDERS, MAX_PLACES // vocab_size)
            or not all(_are_ids(each, vocab_size) for each in (common, *fronts))
        ):
            raise CorruptError("has no orders of its vocabulary among its tables")
        return cls(vocab_size, common, fronts)

    @property
    def id_bits(self) -> int:
        """Bits that any id fits in, and any place."""
        return max(1, (self.vocab_size - 1).bit_length())

    @property
    def tables(self) -> Tables:
        """What `of` needs."""
        return {"common": self.common, "fronts": self.fronts_CM}

    @cached_property
    def ids(self) -> NDArray[Any]:
        """Id at place v of order c, at [c * V + v]."""
        ids_CV = np.empty((len(self.fronts_CM), self.vocab_size), id_dtype(self.vocab_size))
        common_V = _moved_up(self.common, np.arange(self.vocab_size, dtype=ids_CV.dtype))
        for ids_V, front_M in zip(ids_CV, self.fronts_CM, strict=True):
            ids_V[:] = _moved_up(front_M, common_V)
        return ids_CV.reshape(-1)

    @cached_property
    def places(self) -> NDArray[Any]:
        """Place of id v in order c, at [c * V + v]."""
        ids_CV = self.ids.reshape(-1, self.vocab_size)
        places_CV = np.empty_like(ids_CV)
        for places_V, ids_V in zip(places_CV, ids_CV, strict=True):
            places_V[ids_V] = np.arange(self.vocab_size)
        return places_CV.reshape(-1)

    @cached_property
    def _costs_VC(self) -> U8:
        """About how many twelfths of a bit a place costs, [V + 1, C]; the last row is of no id, and 0."""
        bits_CV = np.log2(self.places.reshape(-1, self.vocab_size).astype(np.float32) + 8)
        costs_VC = np.zeros((self.vocab_size + 1, len(bits_CV)), np.uint8)
        costs_VC[:-1] = (12 * bits_CV).T
        return costs_VC

    def places_of(self, ids_H: NDArray[Any], order_H: U8) -> U32:
        """The place of each id in the order that its row counts in."""
        places: U32 = self.places.take(order_H.astype(np.int64) * self.vocab_size + ids_H).astype(np.uint32)
        return places

    def require(self, order_N: U8) -> None:
        """Raises CorruptError if one of these orders does not exist."""
        if int(order_N.max(initial=0)) >= len(self.fronts_CM):
            raise CorruptError(f"counts ids in an order that is none of {len(self.fronts_CM)}")

    def ids_after(self, step_H: I32, order_N: U8, rows: Segments, out_H: I32) -> None:
        """Writes ids whose places rise inside each row by these steps.

        The orders must be there. Raises CorruptError for a place that is not.
        """
        before_N, last_N = rows.sums(step_H, out_H)
        worst = int(last_N.view(np.uint32).max(initial=0))
        base_N = order_N.astype(np.int32)
        base_N *= np.int32(self.vocab_size)
        if rows.widest >= MOST_STEPS:
            # So many could go past 2^32 and come back to where they may be.
            rows.add(out_H, -before_N)
            worst = int(out_H.view(np.uint32).max())
        else:
            base_N -= before_N
        self._require_places(worst)
        rows.add(out_H, base_N)
        self._look_up(out_H)

    def ids_at(self, place_H: I32, order_N: U8, rows: Segments) -> None:
        """Puts ids where their places are. The orders must be there. Raises CorruptError as above."""
        self._require_places(int(place_H.max(initial=0)))
        base_N = order_N.astype(np.int32)
        base_N *= np.int32(self.vocab_size)
        rows.add(place_H, base_N)
        self._look_up(place_H)

    def _require_places(self, worst: int) -> None:
        if worst >= self.vocab_size:
            raise CorruptError(f"holds an id outside the vocabulary of {self.vocab_size}")

    def _look_up(self, place_H: I32) -> None:
        """Ids instead of places in the table. Between arrays that are there, `take` needs no new ones."""
        index_H = scratch(len(place_H), np.dtype(np.int64))
        np.copyto(index_H, place_H)
        ids_H = scratch(len(place_H), self.ids.dtype)
        self.ids.take(index_H, out=ids_H, mode="clip")
        np.copyto(place_H, ids_H, casting="same_kind")

    def cheapest(self, ids_H: NDArray[Any], offsets: I64) -> U8:
        """The order in which the ids of each row come earliest, [N]; equal ones: the first.

        Of rows with many ids, some are asked, evenly.
        """
        num_rows = len(offsets) - 1
        asked = MANY_ASKED if len(ids_H) >= MANY_ASKED * num_rows else FEW_ASKED
        nth_A = np.arange(asked)
        ids_H = np.append(ids_H, self.vocab_size)
        found_N = np.empty(num_rows, np.uint8)
        for n in range(0, num_rows, CHUNK_ROWS):
            starts_n1 = offsets[n : n + CHUNK_ROWS][: num_rows - n, None]
            counts_n1 = np.diff(offsets[n : n + CHUNK_ROWS + 1])[:, None]
            place_nA = starts_n1 + np.where(counts_n1 > asked, nth_A * counts_n1 // asked, nth_A)
            place_nA = np.where(nth_A < counts_n1, place_nA, len(ids_H) - 1)
            costs_nAC = self._costs_VC.take(ids_H.take(place_nA), axis=0)
            found_N[n : n + CHUNK_ROWS] = costs_nAC.sum(1, dtype=np.uint16).argmin(1)
        return found_N


def ids_of(rows: Rows) -> tuple[NDArray[np.int32], I64]:
    """All ids of each row, kept ones first, and where rows begin and end."""
    if rows.num_draws == 0:
        return rows.head_ids, rows.head_offsets
    ids = np.empty(rows.num_kept + rows.num_draws, np.int32)
    before_H = np.repeat(rows.draw_offsets[:-1], np.diff(rows.head_offsets))
    before_D = np.repeat(rows.head_offsets[1:], np.diff(rows.draw_offsets))
    ids[np.arange(rows.num_kept) + before_H] = rows.head_ids
    ids[np.arange(rows.num_draws) + before_D] = rows.draw_ids
    return ids, rows.head_offsets + rows.draw_offsets


def _are_ids(ids: NDArray[Any], vocab_size: int) -> bool:
    """Whether these are ids of the vocabulary, each once."""
    return int(ids.max(initial=0)) < vocab_size and len(np.unique(ids)) == len(ids)


def _moved_up(first: NDArray[Any], ids_V: NDArray[Any]) -> NDArray[Any]:
    """These ids, then all the others in their order."""
    others_V = np.ones(len(ids_V), np.bool_)
    others_V[first] = False
    return np.concatenate([first, ids_V[others_V[ids_V]]])


def train_orders(rows: Rows, vocab_size: int, *, planned_ids: float) -> Tables:
    """Orders for a cache of so many ids in rows like these, as many and as long as pay for their bytes.

    A mixture of unigram distributions, fitted by hard EM.
    Each order has some ids of its own, and all have four times as many in common.
    """
    orders = max(1, min(MOST_TRAINED, int(planned_ids) >> 16))
    front = max(64, min(4096, int(1.5 * planned_ids**0.5)))
    ids_H, offsets = ids_of(rows)
    counts_N = np.diff(offsets)
    common_V = (np.bincount(ids_H, minlength=vocab_size) + 0.1).astype(np.float32)
    common_V /= common_V.sum()
    # Chance is the same everywhere, so that equal rows train equal orders.
    chosen_N = np.zeros(len(rows), np.int64)
    seeds = np.random.default_rng(0).permutation(len(rows))[: SEED_ROWS * orders]
    chosen_N[seeds] = np.arange(len(seeds)) % orders
    is_seed_N = np.isin(np.arange(len(rows)), seeds)
    shares_CV = _shares(
        ids_H[np.repeat(is_seed_N, counts_N)], counts_N[is_seed_N], chosen_N[is_seed_N], common_V, orders
    )
    for _ in range(TRAINING_STEPS):
        costs_VC = np.ascontiguousarray(-np.log2(shares_CV).T)
        for n in range(0, len(rows), 1024):
            m = min(n + 1024, len(rows))
            filled = n + np.flatnonzero(counts_N[n:m])
            if len(filled):
                costs_HC = costs_VC.take(ids_H[offsets[n] : offsets[m]], axis=0)
                chosen_N[filled] = np.add.reduceat(costs_HC, offsets[filled] - offsets[n], axis=0).argmin(1)
        shares_CV = _shares(ids_H, counts_N, chosen_N, common_V, orders)
    dtype = id_dtype(vocab_size)
    return {
        "common": np.argsort(-common_V, kind="stable")[: 4 * front].astype(dtype),
        "fronts": np.argsort(-shares_CV, axis=1, kind="stable")[:, :front].astype(dtype),
    }


def _shares(
    ids_H: NDArray[Any], counts_N: I64, chosen_N: I64, common_V: NDArray[np.float32], orders: int
) -> NDArray[np.float32]:
    """Distribution of ids of the rows that chose each order, mixed with the common one, [C, V]."""
    chosen_H = np.repeat(chosen_N, counts_N)
    shares_CV = np.empty((orders, len(common_V)), np.float32)
    for order, shares_V in enumerate(shares_CV):
        shares_V[:] = np.bincount(ids_H[chosen_H == order], minlength=len(common_V))
        shares_V += PRIOR_IDS * common_V
        shares_V /= shares_V.sum()
    return shares_CV
