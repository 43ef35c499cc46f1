"""The grid of `sampled` rows: probability one is cut into equal units, and every row is made of whole ones.

Head values and tail mass are numbers of units that sum to all of them, so the mass of a row is exactly 1, and
the number of its draws follows from its tail.
Knows nothing of logits or bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid"]

MAX_UNITS = 1 << 20


@dataclass(frozen=True)
class Grid:
    """`units` make probability one; a draw stands for at most `draw_units` of them."""

    units: int
    draw_units: int

    def __post_init__(self) -> None:
        if not 1 <= self.draw_units <= self.units <= MAX_UNITS:
            raise ValueError(f"a grid of {self.units} units and draws of {self.draw_units}")

    @classmethod
    def of(cls, tau: float, draw_units: int = 4) -> "Grid":
        """The grid whose draws weigh tau: `draw_units` / tau units, rounded to the nearest whole number.

        A head value is rounded up or down by less than tau / `draw_units`.
        """
        return cls(max(draw_units, round(draw_units / tau)), draw_units)

    @classmethod
    def of_params(cls, params: Mapping[str, Any]) -> "Grid":
        """The grid of a codec's parameters. Raises KeyError or ValueError if they are none."""
        units, draw_units = params["units"], params["draw_units"]
        if type(units) is not int or type(draw_units) is not int:
            raise ValueError(f"units {units} and {draw_units}")
        return cls(units, draw_units)

    @property
    def params(self) -> dict[str, Any]:
        """What `of_params` needs."""
        return {"units": self.units, "draw_units": self.draw_units}

    @property
    def tau(self) -> float:
        """Ids of at least this probability are in the head; no draw weighs more."""
        return self.draw_units / self.units

    def num_draws(self, tail_units: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draws from tails of so many units: ceil(R / tau)."""
        draws: NDArray[np.int64] = -(-tail_units // self.draw_units)
        return draws

    def logprobs(self) -> NDArray[np.float32]:
        """Natural logarithm of 0 to `units` units, [units + 1]; that of none is never used, and 0."""
        shares = np.maximum(np.arange(self.units + 1), 1) / self.units
        # Rounded from float64: the same on every machine, but for a library that errs by half a float32.
        return np.array([math.log(share) for share in shares], np.float32)

    def of_logprobs(self, logprobs: NDArray[Any]) -> NDArray[np.int64]:
        """Units of values that `logprobs` gave; others are rounded to the nearest."""
        return self.of_mass(np.exp(logprobs.astype(np.float64)))

    def of_mass(self, mass: NDArray[Any]) -> NDArray[np.int64]:
        """Units of probabilities, to the nearest."""
        units: NDArray[np.int64] = np.rint(mass.astype(np.float64) * self.units).astype(np.int64)
        return units
