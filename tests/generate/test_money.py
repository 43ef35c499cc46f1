"""Money: exact, bounded, and never a silent zero."""

import tomllib
from collections.abc import Callable
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vendor_server import VendorServer, chaos

from distillcache.errors import ConfigError
from distillcache.generate.ledger import Ledger, dollars
from distillcache.generate.prices import Price, Usage, find_price

Run = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_max_cost_holds_under_32_concurrent_requests(run: Run, vendor: str) -> None:
    """What the server charged stays within the limit, and the run uses most of it."""
    with VendorServer(answer_seconds=0.03) as server:
        report = run(server, vendor, ask=400, concurrency=32, max_cost=0.05)
        prompt = server.tokens["input"] + server.tokens["cached"]
        charged = Decimal(prompt + 5 * server.tokens["output"]) / 1_000_000
        assert charged == Decimal(report["ledger"]["total"]["cost_usd"]) <= Decimal("0.05")
        # One more request could have cost up to its ceiling; less than that is what may be left over.
        assert charged > Decimal("0.05") - Decimal(700 + 5 * 512) / 1_000_000
        assert report["not_asked"] > 100 and "--max-cost" in report["stopped"]
        assert server.most_under_way > 8


def test_max_cost_holds_over_starts_and_counts_what_may_have_been_billed(run: Run) -> None:
    """Requests with an unknown end count with the most they can have cost; a second start spends nothing
    more.
    """
    with VendorServer(fault=chaos(0.4, 1, ("reset", "malformed"))) as server:
        report = run(server, ask=200, max_cost=0.03)
        sums = report["ledger"]
        spent = Decimal(sums["total"]["cost_usd"]) + Decimal(sums["unsettled"]["at_most_usd"])
        assert Decimal("0.024") < spent <= Decimal("0.03") and sums["unsettled"]["requests"] > 0
        asked = sum(server.asked.values())
        again = run(server, ask=200, max_cost=0.03)
        assert sum(server.asked.values()) == asked and "--max-cost" in again["stopped"]
        assert run(server, ask=200, max_cost=0.05)["answered"] > report["answered"]


def test_without_a_price_nothing_is_asked(run: Run) -> None:
    """A server of one's own needs a price; `--price-unknown` counts tokens and leaves cost open."""
    with VendorServer() as server:
        with pytest.raises(ConfigError, match="no price for a server of your own"):
            run(server, ask=1, price_input=None, price_output=None)
        assert not server.asked
        report = run(server, ask=1, price_input=None, price_output=None, price_unknown=True)
    total = report["ledger"]["total"]
    assert total["cost_usd"] is None and total["output_tokens"] > 0 and report["ledger"]["price"] is None


def test_every_listed_model_has_a_price() -> None:
    """The price file reads whole: each entry, each other name, each dated snapshot."""
    data = tomllib.loads((resources.files("distillcache.generate") / "prices.toml").read_text())
    assert data["source"] and data["date"]
    for vendor in ("openai", "anthropic"):
        for name, entry in data[vendor].items():
            for each in (name, *entry.get("also", ())):
                price = find_price(vendor, each)
                assert price is not None and price.input == Decimal(entry["input"]) > 0
                assert price.batch == Decimal("0.5")
    dated = find_price("anthropic", "claude-sonnet-5-20260630")
    assert dated == find_price("anthropic", "claude-sonnet-5")


def test_an_unknown_model_is_refused_with_the_remedy() -> None:
    """No silent zero."""
    with pytest.raises(ConfigError, match="give --price INPUT OUTPUT"):
        find_price("openai", "gpt-99-imaginary")


def test_an_own_price_file_takes_the_place_of_ours(tmp_path: Path) -> None:
    """`--prices`, also for a server of one's own; a faulty number is refused by name."""
    path = tmp_path / "prices.toml"
    path.write_text('source = "me"\n[openai.mine]\ninput = "0.25"\noutput = "2"\ncache_read = "0.05"\n')
    price = find_price("openai", "mine", file=path, other_server=True)
    assert price is not None and price.source == "me" and price.batch == 1
    assert price.cost(Usage(100, 10, cache_read_tokens=1000)) == Decimal("0.000095")
    path.write_text('[openai.mine]\ninput = "-1"\noutput = "2"\n')
    with pytest.raises(ConfigError, match=r"`input` must be a number of dollars, found '-1'"):
        find_price("openai", "mine", file=path)


def test_each_kind_of_token_costs_what_it_is() -> None:
    """Cached, written, hour-long and batch prices, summed by hand."""
    price = Price(Decimal(2), Decimal(10), "x", None, Decimal("0.2"), Decimal("2.5"), Decimal(4))
    usage = Usage(1000, 100, 10_000, 2000, 500)
    by_hand = Decimal("0.002") + Decimal("0.001") + Decimal("0.002") + Decimal("0.005") + Decimal("0.002")
    assert price.cost(usage) == by_hand
    assert price.cost(usage, batch=True) == by_hand / 2


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=50))
def test_the_sum_of_costs_is_the_cost_of_the_sum(usages: list[tuple[int, int]]) -> None:
    """No rounding anywhere, whatever the order."""
    price = Price(Decimal("0.15"), Decimal("0.6"), "x")
    ledger = Ledger(price, None)
    for prompt, output in usages:
        usage = Usage(prompt, output)
        ledger.book("a", usage, ledger.cost(usage))
    whole = Usage(sum(p for p, _ in usages), sum(o for _, o in usages))
    assert ledger.total.cost == price.cost(whole)
    assert Decimal(dollars(ledger.total.cost)) == ledger.total.cost


def test_the_ceiling_is_above_any_answer_within_the_limit() -> None:
    """Every byte of the prompt a token, at the dearest price of input, and the longest answer."""
    price = Price(Decimal(2), Decimal(10), "x", None, Decimal("0.2"), Decimal("2.5"))
    ledger = Ledger(price, Decimal(1))
    assert ledger.ceiling(400, 50) >= price.cost(Usage(0, 50, cache_write_tokens=400))
