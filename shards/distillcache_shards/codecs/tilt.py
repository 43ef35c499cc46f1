"""The tilt of `sampled` rows: by how much each id is drawn more, or less, often than its probability asks.

An optimiser that divides every gradient by its size feels the noise of a rare id, whose gradients are small,
more than that of a frequent one. At so many entries in all the sum of noise_v^2 / s_v is least for inclusion
in proportion to p_v / sqrt(s_v) (Neyman 1934); s_v is taken as a power of the id's frequency in the corpus.
An entry weighs p over its inclusion, so every p stays right on average, and a row's mass is 1 on average.
Knows nothing of logits or bytes.

N rows, V vocabulary, H kept ids in all.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs.grid import Grid
from distillcache_shards.errors import CorruptError

__all__ = ["MAX_TILTED_UNITS", "SURELY_KEPT", "Tilt", "TiltedGrid"]

# So that units are told from the logarithm of what they weigh, in a float32, at every tilt.
MAX_TILTED_UNITS = 1 << 10

STEPS = 16  # of a code, to the double
MIDDLE = 128  # the code of no tilt
# Whatever has this probability is in the head, however frequent the id is.
SURELY_KEPT = 0.25
# Of an id that the corpus does not have, in occurrences.
UNSEEN = 0.5

F64 = NDArray[np.float64]

# Of each code. Powers of two are exact, and with them how many units an id may have; the others are the same
# on every machine, but for a library that errs in the last bit.
FACTORS: F64 = np.array([2.0 ** ((code - MIDDLE) / STEPS) for code in range(256)])
LOGS: F64 = np.array([(code - MIDDLE) / STEPS * math.log(2) for code in range(256)])


@dataclass(frozen=True, eq=False)
class Tilt:
    """Id v is drawn `factors_V[v]` times as often as without a tilt, and then weighs as much less."""

    codes_V: NDArray[np.uint8]  # of 2^((code - 128) / 16)

    @classmethod
    def of(cls, table: NDArray[Any] | None, vocab_size: int, *, least: float) -> "Tilt":
        """From the table of a cache, no factor below `least`.

        Raises CorruptError, without a place, if it is none.
        """
        if table is None or table.dtype != np.uint8 or table.shape != (vocab_size,):
            raise CorruptError("has no tilt of its vocabulary among its tables")
        if FACTORS[int(table.min())] < least:
            raise CorruptError("has a tilt by which a draw would weigh more than 1")
        return cls(table)

    @classmethod
    def of_counts(cls, counts_V: NDArray[Any], power: float, least: float) -> "Tilt":
        """In proportion to frequency^-power, 1 on average over the text counted; none below `least`."""
        frequency_V = (counts_V + UNSEEN) / (counts_V.sum() + UNSEEN * len(counts_V))
        tilt_V = frequency_V**-power
        tilt_V /= (frequency_V * tilt_V).sum()
        codes_V = np.rint(MIDDLE + STEPS * np.log2(tilt_V))
        return cls(np.clip(codes_V, np.searchsorted(FACTORS, least), 255).astype(np.uint8))

    @cached_property
    def logs_V(self) -> F64:
        """Natural logarithm of each factor."""
        return LOGS[self.codes_V]

    @cached_property
    def factors_V(self) -> F64:
        """Each factor, from 2^-8 to 2^7.94."""
        return FACTORS[self.codes_V]


@dataclass(frozen=True, eq=False)
class TiltedGrid:
    """The grid of tilted rows: one unit is `1 / grid.units` of what an id weighs after the tilt.

    Of id v it is probability 1 / (units * factor); a draw is `draw_units` of them.
    Raises ValueError for a grid that is too fine.
    """

    grid: Grid
    tilt: Tilt

    def __post_init__(self) -> None:
        if self.grid.units > MAX_TILTED_UNITS:
            raise ValueError(f"a tilted grid of {self.grid.units} units")
        assert float(self.tilt.factors_V.min()) >= self.grid.tau  # or a draw would weigh more than 1

    @classmethod
    def of_counts(cls, grid: Grid, counts_V: NDArray[Any], power: float) -> "TiltedGrid":
        """With the tilt of a text in which ids occur so often; no draw weighs more than `SURELY_KEPT`."""
        return cls(grid, Tilt.of_counts(counts_V, power, grid.tau / SURELY_KEPT))

    @cached_property
    def weights_V(self) -> NDArray[np.float32]:
        """Of a draw of each id; from that probability on it is in the head."""
        return (self.grid.tau / self.tilt.factors_V).astype(np.float32)

    @cached_property
    def most_units_V(self) -> NDArray[np.int32]:
        """That an id may have: those of probability 1, and one for the rounding."""
        return np.ceil(self.grid.units * self.tilt.factors_V).astype(np.int32) + 1

    @cached_property
    def _logs(self) -> F64:
        """Natural logarithm of so many units, as a share of `units`; that of none is never used, and 0."""
        most = int(self.most_units_V.max())
        return np.array([0.0, *(math.log(units / self.grid.units) for units in range(1, most + 1))])

    def logprobs(self, units_H: NDArray[Any], ids_H: NDArray[Any]) -> NDArray[np.float32]:
        """Of ids with so many units, at most those of `most_units_V`."""
        logprobs: NDArray[np.float32] = (self._logs[units_H] - self.tilt.logs_V[ids_H]).astype(np.float32)
        return logprobs

    def units(self, logprobs_H: NDArray[np.float32], ids_H: NDArray[Any]) -> NDArray[np.int64]:
        """`logprobs` undone."""
        tilted_H = np.exp(logprobs_H + self.tilt.logs_V[ids_H])
        units: NDArray[np.int64] = np.rint(tilted_H * self.grid.units).astype(np.int64)
        return units

    def tail_mass(
        self, units_H: NDArray[Any], ids_H: NDArray[Any], counts_N: NDArray[Any]
    ) -> NDArray[np.float32]:
        """What the heads of rows leave of 1, [N]."""
        row_H = np.repeat(np.arange(len(counts_N)), counts_N)
        kept_H = units_H / (self.grid.units * self.tilt.factors_V[ids_H])
        # One after another, each row by itself: the same whatever stands beside it.
        kept_N = np.bincount(row_H, kept_H, len(counts_N))
        tail_N: NDArray[np.float32] = np.maximum(1.0 - kept_N, 0.0).astype(np.float32)
        return tail_N
