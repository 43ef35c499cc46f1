"""What came of a run of `learn`, as data.

Knows nothing of how it was reached.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distillcache.learn.scores import Scores

__all__ = ["LearnResult"]


@dataclass(frozen=True)
class LearnResult:
    """A finished run: the student, and how it scores on held-out records."""

    output: Path
    num_parameters: int
    num_steps: int  # that were taken
    best_step: int | None  # of early stopping: the student is that of this step; None: of the last
    num_train: int  # sequences
    num_held_out: int  # sequences
    num_repeated: int  # sequences left out of training, because their text is held out
    # Of training and reading, padding left out; None if all steps were done before.
    tokens_per_second: float | None
    before: Scores | None  # None if nothing is held out
    after: Scores | None

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return {**asdict(self), "output": str(self.output)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], output: Path) -> "LearnResult":
        """What `to_dict` gave, wherever the folder lies now."""
        values = dict(data)
        for name in ("before", "after"):
            values[name] = None if values[name] is None else Scores(**values[name])
        return cls(**{**values, "output": output})
