"""What happens while a student is evaluated, for whoever watches.

Knows nothing of how it is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Event", "OnEvent", "Progress", "Warned"]


@dataclass(frozen=True)
class Progress:
    """How far one part of the work is."""

    part: str  # "rows", "writing programs", "running programs" or "tasks"
    done: int
    total: int


@dataclass(frozen=True)
class Warned:
    """Something the user should know, in one line."""

    text: str


Event = Progress | Warned
OnEvent = Callable[[Event], None]
