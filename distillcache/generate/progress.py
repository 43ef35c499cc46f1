"""How far a run is, for whoever draws it."""

from dataclasses import dataclass
from decimal import Decimal

__all__ = ["Progress"]


@dataclass(frozen=True)
class Progress:
    """`answered` and `failed` of `total` prompts; `spent_usd` None without a price; `note` is a line of news,
    if any.
    """

    answered: int
    failed: int
    total: int
    spent_usd: Decimal | None
    note: str | None = None
