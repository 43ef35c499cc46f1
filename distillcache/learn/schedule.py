"""Alpha and temperature over a run: from their first value to their last, in a straight line over steps.

Knows nothing of what is made of them.
"""

import dataclasses
from dataclasses import dataclass

from distillcache.learn.objective import Objective

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """What is minimised at each step of a run."""

    start: Objective
    alpha_end: float | None  # None: stays
    temperature_end: float | None  # None: stays
    num_steps: int

    @property
    def moves(self) -> bool:
        """True if not all steps minimise the same."""
        return self.at(0) != self.at(self.num_steps - 1)

    def at(self, step: int) -> Objective:
        """Of step 0, the first, to `num_steps` - 1, the last."""
        far = step / max(1, self.num_steps - 1)
        return dataclasses.replace(
            self.start,
            alpha=_between(self.start.alpha, self.alpha_end, far),
            temperature=_between(self.start.temperature, self.temperature_end, far),
        )

    @property
    def on_rows(self) -> Objective:
        """That of the last step as rows of the cache allow it: what held-out loss means, all run long."""
        last = self.at(self.num_steps - 1)
        if last.row_kind == "sampled" and last.soft_loss is not None:
            return dataclasses.replace(last, soft_loss="forward-kl", temperature=last.row_temperature)
        return last


def _between(start: float, end: float | None, far: float) -> float:
    return start if end is None else start + (end - start) * far
