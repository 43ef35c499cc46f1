"""What a run has cost, to the last digit of what the API reported, and what it may still cost.

Three sums that never mix: `spent` is what answers reported; `unsettled` is the most that requests with an
unknown end
can have cost (they may be on the bill); `reserved` is the most that requests under way can cost.
A request goes only if all three and its own most stay within the limit.
Knows nothing of files or of the network.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from distillcache.generate.prices import Price, Usage

__all__ = ["Ledger", "Tally"]


@dataclass
class Tally:
    """Sums over answers: tokens as reported, cost in US dollars (None without a price)."""

    answers: int = 0
    unreported: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cost: Decimal = Decimal(0)

    def add(self, usage: Usage | None, cost: Decimal) -> None:
        """One answer more."""
        self.answers += 1
        self.cost += cost
        if usage is None:
            self.unreported += 1
            return
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cache_read_tokens += usage.cache_read_tokens
        self.cache_write_tokens += usage.cache_write_tokens
        self.cache_write_1h_tokens += usage.cache_write_1h_tokens


class Ledger:
    """Money of one run folder. `price` None counts tokens only; `limit` None is no limit."""

    def __init__(self, price: Price | None, limit: Decimal | None) -> None:
        self._price = price
        self._limit = limit
        self.total = Tally()
        self.by_category: dict[str, Tally] = {}
        self.unsettled = Decimal(0)
        self.unsettled_requests = 0
        self.reserved = Decimal(0)
        self._under_way = 0
        self._changed = asyncio.Event()

    @property
    def priced(self) -> bool:
        """Whether costs are known."""
        return self._price is not None

    def ceiling(self, prompt_bytes: int, max_tokens: int, *, batch: bool = False) -> Decimal:
        """The most a request can cost: no byte-level tokenizer makes more tokens than bytes; 64 for the
        template.
        """
        if self._price is None:
            return Decimal(0)
        dearest = max(p for p in (self._price.input, self._price.cache_write) if p is not None)
        factor = self._price.batch if batch else Decimal(1)
        return ((prompt_bytes + 64) * dearest + max_tokens * self._price.output) / 1_000_000 * factor

    def fits(self, ceiling: Decimal) -> bool:
        """Whether one more request of this ceiling stays within the limit, whatever becomes of those under
        way.
        """
        return (
            self._limit is None or self.total.cost + self.unsettled + self.reserved + ceiling <= self._limit
        )

    async def reserve(self, ceiling: Decimal) -> bool:
        """Wait until a request fits; False when it cannot, with nothing under way that could come in
        cheaper.
        """
        while not self.fits(ceiling):
            if not self._under_way:
                return False
            self._changed.clear()
            await self._changed.wait()
        self.commit(ceiling)
        return True

    def commit(self, ceiling: Decimal) -> None:
        """Reserve what is under way already, whether it fits or not."""
        self.reserved += ceiling
        self._under_way += 1

    def release(self, ceiling: Decimal) -> None:
        """A reserved request has ended; what it cost is booked apart."""
        self.reserved -= ceiling
        self._under_way -= 1
        self._changed.set()

    def cost(self, usage: Usage | None, *, batch: bool = False) -> Decimal:
        """US dollars of an answer; 0 where nothing is known, which `Tally.unreported` and `priced` tell."""
        return Decimal(0) if usage is None or self._price is None else self._price.cost(usage, batch=batch)

    def book(self, category: str, usage: Usage | None, cost: Decimal) -> None:
        """An answer that is on disk."""
        self.total.add(usage, cost)
        self.by_category.setdefault(category, Tally()).add(usage, cost)

    def lose(self, ceiling: Decimal) -> None:
        """A request whose end, or whose usage, is unknown."""
        self.unsettled += ceiling
        self.unsettled_requests += 1

    def as_json(self) -> dict[str, object]:
        """The ledger's facts; dollars as decimal text, None where there is no price."""
        return {
            "price": None if self._price is None else _price_json(self._price),
            "max_cost_usd": None if self._limit is None else str(self._limit),
            "total": self._tally_json(self.total),
            "by_category": {
                name: self._tally_json(tally) for name, tally in sorted(self.by_category.items())
            },
            "unsettled": {
                "requests": self.unsettled_requests,
                "at_most_usd": dollars(self.unsettled) if self.priced else None,
            },
        }

    def _tally_json(self, tally: Tally) -> dict[str, object]:
        values: dict[str, object] = dict(vars(tally))
        del values["cost"]
        return values | {"cost_usd": dollars(tally.cost) if self.priced else None}


def _price_json(price: Price) -> Mapping[str, object]:
    return {key: str(value) if isinstance(value, Decimal) else value for key, value in vars(price).items()}


def dollars(amount: Decimal) -> str:
    """Plain digits, no exponent, nothing rounded."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
