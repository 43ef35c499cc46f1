"""What happens while a student learns, for whoever watches.

Knows nothing of how it is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distillcache.learn.scores import Scores

__all__ = ["Done", "Evaluated", "Event", "OnEvent", "Started", "Step", "Warned"]


@dataclass(frozen=True)
class Started:
    """Everything is loaded and checked; the first evaluation comes next."""

    num_parameters: int
    num_adapter_parameters: int | None  # the ones that are trained, of LoRA; None where all are
    num_train: int  # sequences
    num_held_out: int  # sequences
    num_repeated: int  # sequences left out of training, because their text is held out
    num_steps: int  # of the optimiser, all in all
    first_step: int  # 0, or where an earlier run was stopped
    device: str
    dtype: str
    packed: bool  # batches are one row without padding
    online: str | None  # the teacher beside the student; None: rows of the cache


@dataclass(frozen=True)
class Step:
    """Means since the last of these, in nats a row."""

    step: int
    num_steps: int
    loss: float
    hard_loss: float
    soft_loss: float | None  # with the factor T squared; None without one
    perplexity: float
    kl: float | None  # to the teacher, see `Scores`; None where no rows are read
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    alpha: float | None  # of this step; None where all steps have the same
    temperature: float | None  # likewise


@dataclass(frozen=True)
class Evaluated:
    """The student on the held-out records."""

    step: int
    scores: Scores


@dataclass(frozen=True)
class Warned:
    """Something the user should know."""

    text: str


@dataclass(frozen=True)
class Done:
    """The student is written; or it was already there, and nothing was done."""

    output: Path
    already: bool


Event = Started | Step | Evaluated | Warned | Done
OnEvent = Callable[[Event], None]
