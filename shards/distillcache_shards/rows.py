"""Rows: what a teacher said at N supervised positions, as flat arrays.

The one shape in which rows are written, read, coded and learned from.
Knows nothing of tokens, files or codecs.

N rows, H kept ids in all, D draws in all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "SAMPLED", "TOPK", "Rows"]

TOPK, SAMPLED = "topk", "sampled"
KINDS = (TOPK, SAMPLED)

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """N rows. Row n keeps `head_ids[head_offsets[n]:head_offsets[n + 1]]`, and so its draws.

    `topk`: the most likely ids, most likely first, equal ones by rising id, and no draws.
    `sampled`: every id of at least the threshold in the head, and draws from the tail, each of weight
    `tail_mass / draws of the row`; an id drawn twice stands there twice. Where draws have weights of their
    own the rows are tilted: thresholds differ from id to id, the most likely need not be first, and the mass
    of head and draws is 1 on average only; `tail_mass` is then what the head leaves of 1.
    """

    kind: str  # "topk" or "sampled"
    head_offsets: I64  # [N + 1], from 0, rising
    head_ids: I32  # [H]
    head_logprobs: F32  # [H], natural log, under the full softmax of the valid ids
    tail_mass: F32  # [N], probability of all ids outside the head
    draw_offsets: I64  # [N + 1], from 0, rising
    draw_ids: I32  # [D], rising inside a row
    entropy: F32  # [N], nats, of the full distribution
    draw_weights: F32 | None = None  # [D], of tilted rows; of others None

    def __repr__(self) -> str:
        return f"<{len(self)} {self.kind} rows, {self.num_kept} kept ids, {self.num_draws} draws>"

    def __len__(self) -> int:
        return len(self.head_offsets) - 1

    def __getitem__(self, span: slice) -> "Rows":
        """Neighbouring rows; ids and values are views, offsets start from 0 again."""
        start, stop, step = span.indices(len(self))
        assert step == 1
        stop = max(start, stop)
        heads = self.head_offsets[start : stop + 1]
        draws = self.draw_offsets[start : stop + 1]
        return Rows(
            self.kind,
            heads - heads[0],
            self.head_ids[heads[0] : heads[-1]],
            self.head_logprobs[heads[0] : heads[-1]],
            self.tail_mass[start:stop],
            draws - draws[0],
            self.draw_ids[draws[0] : draws[-1]],
            self.entropy[start:stop],
            None if self.draw_weights is None else self.draw_weights[draws[0] : draws[-1]],
        )

    @property
    def num_kept(self) -> int:
        """H, ids kept with their values in all rows."""
        return len(self.head_ids)

    @property
    def num_draws(self) -> int:
        """D, draws in all rows."""
        return len(self.draw_ids)

    @classmethod
    def top_k(cls, ids_NK: I32, logprobs_NK: F32, tail_mass_N: F32, entropy_N: F32) -> "Rows":
        """`topk` rows that all keep K ids."""
        num_rows, k = ids_NK.shape
        return cls(
            TOPK,
            np.arange(num_rows + 1, dtype=np.int64) * k,
            np.ascontiguousarray(ids_NK, dtype=np.int32).reshape(-1),
            np.ascontiguousarray(logprobs_NK, dtype=np.float32).reshape(-1),
            np.ascontiguousarray(tail_mass_N, dtype=np.float32),
            np.zeros(num_rows + 1, dtype=np.int64),
            np.zeros(0, dtype=np.int32),
            np.ascontiguousarray(entropy_N, dtype=np.float32),
        )

    @classmethod
    def empty(cls, kind: str) -> "Rows":
        """No rows."""
        return cls(
            kind,
            np.zeros(1, np.int64),
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
            np.zeros(0, np.float32),
            np.zeros(1, np.int64),
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
        )

    @classmethod
    def room(cls, kind: str, head_offsets: I64, draw_offsets: I64, *, tilted: bool = False) -> "Rows":
        """Rows with these offsets, to be filled: what else they hold is left open."""
        num_rows, kept, draws = len(head_offsets) - 1, int(head_offsets[-1]), int(draw_offsets[-1])
        return cls(
            kind,
            head_offsets,
            np.empty(kept, np.int32),
            np.empty(kept, np.float32),
            np.empty(num_rows, np.float32),
            draw_offsets,
            np.empty(draws, np.int32),
            np.empty(num_rows, np.float32),
            np.empty(draws, np.float32) if tilted else None,
        )

    @classmethod
    def concatenate(cls, parts: Sequence["Rows"]) -> "Rows":
        """Rows one after another; at least one part, all of one kind, and tilted or not."""
        if len(parts) == 1:
            return parts[0]
        assert len({part.kind for part in parts}) == 1
        weights = [part.draw_weights for part in parts if part.draw_weights is not None]
        assert not weights or sum(map(len, weights)) == sum(part.num_draws for part in parts)
        return cls(
            parts[0].kind,
            _chained([part.head_offsets for part in parts]),
            np.concatenate([part.head_ids for part in parts]),
            np.concatenate([part.head_logprobs for part in parts]),
            np.concatenate([part.tail_mass for part in parts]),
            _chained([part.draw_offsets for part in parts]),
            np.concatenate([part.draw_ids for part in parts]),
            np.concatenate([part.entropy for part in parts]),
            np.concatenate(weights) if weights else None,
        )

    def disorder(self) -> str | None:
        """What is not as a writer leaves it, in words: `fault` does not look, since that takes a sort."""
        row_H = np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.head_offsets))
        keys_H = (row_H << 32) | self.head_ids
        keys_H.sort()
        if bool((keys_H[1:] == keys_H[:-1]).any()):
            return "an id twice in a row"
        if self.draw_weights is None and bool(
            ((np.diff(self.head_logprobs) > 0) & (np.diff(row_H) == 0)).any()
        ):
            return "a head out of order"
        row_D = np.repeat(np.arange(len(self)), np.diff(self.draw_offsets))
        if bool(((np.diff(self.draw_ids) < 0) & (np.diff(row_D) == 0)).any()):
            return "draws out of order"
        return None

    def fault(self, vocab_size: int) -> str | None:
        """What makes these no rows over `vocab_size` ids, in words; None if they are sound."""
        num_rows = len(self)
        if self.kind not in KINDS:
            return f"a kind of row that does not exist: {self.kind!r}"
        if not len(self.tail_mass) == len(self.entropy) == num_rows == len(self.draw_offsets) - 1:
            return f"arrays of unequal length for {num_rows} rows"
        for name, offsets, total in (
            ("kept", self.head_offsets, self.num_kept),
            ("draws", self.draw_offsets, self.num_draws),
        ):
            if offsets[0] != 0 or offsets[-1] != total or bool((np.diff(offsets) < 0).any()):
                return f"offsets that do not count the {name}"
        if len(self.head_logprobs) != self.num_kept:
            return f"{len(self.head_logprobs)} log-probabilities for {self.num_kept} ids"
        for name, ids in (("kept", self.head_ids), ("drawn", self.draw_ids)):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
                return f"a {name} id outside the vocabulary of {vocab_size}"
        if self.kind == TOPK and self.num_draws:
            return "draws in rows that have none"
        # Tilted ones are rounded up by less than two units, and certainty is at least one.
        most = 1e-3 if self.draw_weights is None else math.log(3)
        if not bool(np.isfinite(self.head_logprobs).all()) or bool((self.head_logprobs > most).any()):
            return "a log-probability that is none"
        if self.draw_weights is not None and (
            len(self.draw_weights) != self.num_draws
            or not bool(((self.draw_weights > 0) & (self.draw_weights <= 1)).all())
        ):
            return "draws without a weight of their own"
        if not bool(((self.tail_mass >= 0) & (self.tail_mass <= 1.001)).all()):
            return "a tail mass outside 0 to 1"
        if not bool((np.isfinite(self.entropy) & (self.entropy >= 0)).all()):
            return "an entropy that is none"
        return None


def _chained(offsets: Sequence[I64]) -> I64:
    """Offsets of parts as offsets of the whole."""
    ends = np.cumsum([0] + [int(each[-1]) for each in offsets])
    return np.concatenate(
        [np.zeros(1, np.int64), *(each[1:] + end for each, end in zip(offsets, ends, strict=False))]
    )
