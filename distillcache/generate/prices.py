"""What a model costs: US dollars a token, from a dated file or the command line.

All money is `Decimal`: prices are decimal fractions, and sums of them must come out exactly.
Knows nothing of requests.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib import resources
from pathlib import Path

from distillcache.errors import ConfigError

__all__ = ["Price", "Usage", "find_price"]

_MILLION = Decimal(1_000_000)
_DATED = re.compile(r"(-\d{8}|-\d{4}-\d{2}-\d{2}|-latest)$")


@dataclass(frozen=True)
class Usage:
    """Tokens of one request as the API reported them, each token in one place only."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """All tokens of the prompt, cached or not."""
        return (
            self.input_tokens + self.cache_read_tokens + self.cache_write_tokens + self.cache_write_1h_tokens
        )


@dataclass(frozen=True)
class Price:
    """US dollars a million tokens. `batch` is the factor of the batch interface; `source` and `date` say
    whence.
    """

    input: Decimal
    output: Decimal
    source: str
    date: str | None = None
    cache_read: Decimal | None = None
    cache_write: Decimal | None = None
    cache_write_1h: Decimal | None = None
    batch: Decimal = Decimal("0.5")
    long_prompt_tokens: int | None = None

    def cost(self, usage: Usage, *, batch: bool = False) -> Decimal:
        """US dollars, exact. A kind of cached token without a price of its own costs what input costs."""

        def of(price: Decimal | None) -> Decimal:
            return self.input if price is None else price

        dollars = (
            usage.input_tokens * self.input
            + usage.output_tokens * self.output
            + usage.cache_read_tokens * of(self.cache_read)
            + usage.cache_write_tokens * of(self.cache_write)
            + usage.cache_write_1h_tokens * of(self.cache_write_1h)
        ) / _MILLION
        return dollars * self.batch if batch else dollars


def find_price(
    vendor: str,
    model: str,
    *,
    file: Path | None = None,
    input: float | None = None,
    output: float | None = None,
    other_server: bool = False,
    unknown: bool = False,
) -> Price | None:
    """The price of a model; None only for `unknown`. A local model costs nothing here.

    On `other_server` (a `--base-url`) the vendor's prices say nothing, so one must be given.
    Raises `ConfigError` when there is none, or the file cannot be used.
    """
    if unknown:
        return None
    data, where = _file(file)
    batch = _number(where, "batch", data.get("batch", {}).get(vendor, "1"))
    if input is not None and output is not None:
        return Price(Decimal(str(input)), Decimal(str(output)), "given on the command line", batch=batch)
    if vendor == "local":
        return Price(Decimal(0), Decimal(0), "runs on this machine")
    entry = None if other_server and file is None else _entry(data.get(vendor, {}), model)
    if entry is None:
        what = "a server of your own" if other_server and file is None else f"the model `{model}` of {vendor}"
        raise ConfigError(
            f"{where}: no price for {what}; give --price INPUT OUTPUT in US dollars a million tokens (0 0 if "
            "it is free), or --price-unknown to go on without"
        )

    def optional(key: str) -> Decimal | None:
        return _number(where, key, entry[key]) if key in entry else None

    unknown_keys = set(entry) - {
        "also",
        "input",
        "output",
        "cache_read",
        "cache_write",
        "cache_write_1h",
        "long_prompt_tokens",
    }
    if unknown_keys or not {"input", "output"} <= set(entry):
        raise ConfigError(
            f"{where}: price of `{model}` must hold `input` and `output`; found {', '.join(sorted(entry))}"
        )
    return Price(
        _number(where, "input", entry["input"]), _number(where, "output", entry["output"]),
        str(data.get("source", where)), str(data.get("date", "no date")),
        optional("cache_read"), optional("cache_write"), optional("cache_write_1h"),
        batch, long if isinstance(long := entry.get("long_prompt_tokens"), int) else None,
    )  # fmt: skip


def _file(file: Path | None) -> tuple[dict[str, dict[str, dict[str, object]]], str]:
    try:
        if file is None:
            text = (resources.files(__package__) / "prices.toml").read_text(encoding="utf-8")
        else:
            text = file.read_text(encoding="utf-8")
        return tomllib.loads(text), "prices.toml" if file is None else str(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
        raise ConfigError(f"--prices: {file} cannot be read; {fault}") from None


def _entry(models: Mapping[str, Mapping[str, object]], model: str) -> Mapping[str, object] | None:
    for name in (model, _DATED.sub("", model)):
        if name in models:
            return models[name]
        for entry in models.values():
            also = entry.get("also")
            if isinstance(also, list) and name in also:
                return entry
    return None


def _number(where: str, key: str, value: object) -> Decimal:
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or number < 0:
        raise ConfigError(f"{where}: `{key}` must be a number of dollars, found {value!r}")
    return number
