"""What questions to an API are expected to cost, in lines, and whether to go on.

Knows nothing of any one command.
"""

import sys
from decimal import Decimal
from typing import TYPE_CHECKING

import typer

from distillcache.errors import ConfigError
from distillcache_cli.terminal import Progress

if TYPE_CHECKING:
    from distillcache.generate.estimate import Estimate

__all__ = ["confirmed", "usd"]


def confirmed(estimate: "Estimate", yes: bool, bar: Progress) -> bool:
    """Show the estimate, and ask unless `yes`. Raises ConfigError where nobody can be asked."""
    for line in _lines(estimate):
        bar.say(line)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("--yes: needed where nobody can be asked; the estimate is above")
    return typer.confirm("Go on?", err=True)


def _lines(estimate: "Estimate") -> list[str]:
    prompt, answer = estimate.prompt_tokens, estimate.answer_tokens
    lines = [
        f"{estimate.requests:,} requests, {prompt[0]:,} to {prompt[1]:,} tokens of prompts, "
        f"{answer[0]:,} to {answer[1]:,} tokens of answers"
    ]
    if estimate.cost_usd is None or estimate.ceiling_usd is None or estimate.spent_usd is None:
        return [*lines, "cost unknown: there is no price"]
    low, high = estimate.cost_usd
    lines.append(
        f"about {usd(low)} to {usd(high)}; at most {usd(estimate.ceiling_usd)} if every answer is the longest"
    )
    if estimate.spent_usd:
        lines.append(f"spent in this folder so far: {usd(estimate.spent_usd)}")
    date = f", {estimate.price_date}" if estimate.price_date else ""
    lines.append(f"price: {estimate.price_source}{date}")
    return lines


def usd(amount: Decimal) -> str:
    """US dollars for people."""
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.4f}"
