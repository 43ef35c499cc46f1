"""What a run is expected to cost before its first request, as a range and as a bound.

Tokens of prompts are taken as between a fifth and a third of their bytes, those of answers from the
templates.
Knows nothing of what has been spent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from distillcache.errors import ConfigError
from distillcache.generate.prices import Price, Usage
from distillcache.generate.prompts import Prompt, prompt_bytes

__all__ = ["Estimate", "estimate", "expected_tokens"]


@dataclass(frozen=True)
class Estimate:
    """Over all `requests`: tokens and US dollars, least and most expected; `ceiling_usd` if every answer is
    the longest.

    Costs are None without a price. `price_source` and `price_date` say where the price comes from.
    """

    requests: int
    prompt_tokens: tuple[int, int]
    answer_tokens: tuple[int, int]
    cost_usd: tuple[Decimal, Decimal] | None
    ceiling_usd: Decimal | None
    spent_usd: Decimal | None
    price_source: str | None
    price_date: str | None


def expected_tokens(prompt: Prompt, max_tokens: int) -> int:
    """Tokens of a prompt and its answer, on the high side."""
    return prompt_bytes(prompt) // 3 + 8 + min(max_tokens, prompt.answer_tokens[1])


def estimate(
    prompts: Sequence[Prompt],
    price: Price | None,
    *,
    max_tokens: int,
    batch: bool,
    ceiling: Decimal,
    spent: Decimal,
) -> Estimate:
    """Raises `ConfigError` for a prompt so long that the price would not hold."""
    low = Usage(
        sum(prompt_bytes(p) // 5 + 8 for p in prompts),
        sum(min(max_tokens, p.answer_tokens[0]) for p in prompts),
    )
    high = Usage(
        sum(prompt_bytes(p) // 3 + 8 for p in prompts),
        sum(min(max_tokens, p.answer_tokens[1]) for p in prompts),
    )
    if price is not None and price.long_prompt_tokens is not None:
        longest = max((prompt_bytes(p) for p in prompts), default=0)
        if longest // 3 > price.long_prompt_tokens:
            raise ConfigError(
                f"--prompts: one of {longest} bytes, and above {price.long_prompt_tokens} tokens this model "
                "costs more; shorten it, or give the price of long prompts by --price"
            )
    costs = None if price is None else (price.cost(low, batch=batch), price.cost(high, batch=batch))
    return Estimate(
        len(prompts),
        (low.input_tokens, high.input_tokens),
        (low.output_tokens, high.output_tokens),
        costs,
        None if price is None else ceiling,
        None if price is None else spent,
        None if price is None else price.source,
        None if price is None else price.date,
    )
