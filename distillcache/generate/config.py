"""Settings of `distillcache generate`.

Knows neither torch nor a vendor's client.
Two kinds of setting live here: those that shape what is asked and answered, which a run folder keeps, and
those that
may change between two starts on the same folder (`MAY_CHANGE`): how fast, how dear, how filtered.
"""

import hashlib
import json
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

from distillcache.config import setting
from distillcache.errors import ConfigError

__all__ = ["MAY_CHANGE", "VENDORS", "GenerateConfig"]

VENDORS = ("openai", "anthropic", "local")

# fmt: off
MAY_CHANGE = frozenset({
    "out", "prompts", "templates", "code", "key_file", "key_env", "concurrency", "requests_per_minute",
    "tokens_per_minute",
    "request_seconds", "max_attempts", "retry_seconds", "stream", "poll_seconds", "look_for_batches",
    "batch_requests", "max_cost", "price_input", "price_output", "prices", "price_unknown",
    "min_response_chars", "min_code_chars", "near_duplicate", "leak_share", "parse",
})
# fmt: on


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to ask, whom, how fast, for how much, and what to keep."""

    out: Path = setting(positional=True, help="Run folder; start again on it to go on where it stopped.")
    teacher: str = setting(help="openai:MODEL, anthropic:MODEL, or local:FOLDER of a transformers model.")

    base_url: str | None = setting(
        None, help="Address of an OpenAI-compatible server, or of a proxy to Anthropic."
    )
    key_file: Path | None = setting(None, help="File that holds the API key and nothing else.")
    key_env: str | None = setting(
        None,
        help="Environment variable that holds the API key, if not the vendor's own; needed with --base-url.",
    )

    count: int | None = setting(None, help="Prompts to make from templates.", minimum=1)
    prompts: Path | None = setting(
        None, help="Your own prompts, .jsonl or one a line, in place of templates."
    )
    templates: tuple[str, ...] = setting(("builtin",), help="Template files or folders; `builtin` for ours.")
    code: tuple[str, ...] = setting(("stdlib",), help="Files or folders that prompts take real code from.")
    categories: tuple[str, ...] = setting((), help="Categories to ask for; all when none is named.")
    languages: tuple[str, ...] = setting((), help="Programming languages to ask for; all when none is named.")
    difficulties: tuple[str, ...] = setting(("easy", "medium", "hard"), help="Difficulties to ask for.")
    seed: int = setting(42, help="Seed of the prompts.", minimum=0)
    system: str | None = setting(None, help="System prompt sent with every prompt.")

    max_tokens: int = setting(2048, help="Most tokens of an answer.", minimum=1)
    temperature: float | None = setting(
        None, help="Sampling temperature; the server's own when not given.", minimum=0.0, maximum=2.0
    )

    concurrency: int = setting(8, help="Requests under way at once.", minimum=1, maximum=1024)
    requests_per_minute: int | None = setting(None, help="Most requests a minute.", minimum=1)
    tokens_per_minute: int | None = setting(None, help="Most tokens a minute, prompt and answer.", minimum=1)
    request_seconds: float = setting(300.0, help="Time limit of one request, seconds.", above=0.0)
    max_attempts: int = setting(6, help="Times a prompt is tried in one run.", minimum=1)
    retry_seconds: float = setting(1.0, help="Pause before the second try; doubles, with jitter.", above=0.0)
    stream: bool = setting(False, help="Receive answers in pieces, so that proxies do not cut long ones off.")

    batch: bool = setting(False, help="Use the vendor's batch interface: half the price, hours later.")
    poll_seconds: float = setting(60.0, help="Pause between two looks at a batch, seconds.", above=0.0)
    look_for_batches: bool = setting(
        True, help="Before handing in, look for batches of this run from another machine or a lost folder."
    )
    batch_requests: int = setting(10_000, help="Most requests in one batch.", minimum=1, maximum=50_000)

    max_cost: float | None = setting(None, help="Most US dollars this folder may cost.", above=0.0)
    price_input: float | None = setting(None, help="US dollars a million prompt tokens.", minimum=0.0)
    price_output: float | None = setting(None, help="US dollars a million answer tokens.", minimum=0.0)
    prices: Path | None = setting(
        None, help="Price file in place of ours (distillcache/generate/prices.toml)."
    )
    price_unknown: bool = setting(False, help="Go on without a price: tokens are counted, cost is not.")

    min_response_chars: int = setting(40, help="Shorter answers are rejected.", minimum=0)
    min_code_chars: int = setting(20, help="Where code is due, less code than this is none.", minimum=0)
    near_duplicate: float | None = setting(
        0.85, help="Answers whose word triples overlap by this share are duplicates.", above=0.0, maximum=1.0
    )
    leak_share: float | None = setting(
        0.5, help="Share of an evaluation problem's word runs that counts as a leak.", above=0.0, maximum=1.0
    )
    parse: tuple[str, ...] = setting(
        ("python", "javascript", "typescript", "java", "go", "rust", "cpp", "bash"),
        help="Languages whose code must parse where code is due; SQL has too many dialects to be among them.",
    )

    def __post_init__(self) -> None:
        vendor, _, model = self.teacher.partition(":")
        if vendor not in VENDORS or not model:
            raise ConfigError(
                f"--teacher: must be openai:MODEL, anthropic:MODEL or local:FOLDER, found {self.teacher!r}"
            )
        if (self.count is None) == (self.prompts is None):
            raise ConfigError("--count: give either --count for prompts from templates, or --prompts FILE")
        self._check_server(vendor)
        if (self.price_input is None) != (self.price_output is None):
            raise ConfigError("--price: give the prices of input and of output together")
        if self.price_unknown and (self.max_cost is not None or self.price_input is not None):
            raise ConfigError("--price-unknown: contradicts --max-cost and --price; give the price instead")
        if self.prompts is not None:
            for name, default in (
                ("categories", ()),
                ("languages", ()),
                ("templates", ("builtin",)),
                ("code", ("stdlib",)),
            ):
                if getattr(self, name) != default:
                    raise ConfigError(
                        f"--{name}: would be ignored, as --prompts gives the prompts; leave one out"
                    )

    def _check_server(self, vendor: str) -> None:
        if self.base_url is not None:
            parts = urlsplit(self.base_url)
            if parts.scheme not in ("http", "https") or not parts.netloc:
                raise ConfigError(
                    f"--base-url: must begin with http:// or https://, found {parts.scheme or 'neither'}"
                )
            if "@" in parts.netloc or parts.query:
                raise ConfigError(
                    "--base-url: must hold no key, user or password; give the key by --key-env or --key-file"
                )
        if self.key_file is not None and self.key_env is not None:
            raise ConfigError("--key-file: give only one of --key-file and --key-env")
        if vendor == "local":
            for name in ("base_url", "key_file", "key_env", "requests_per_minute", "tokens_per_minute"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"--{name.replace('_', '-')}: would be ignored by a local teacher; leave it out"
                    )
            if self.batch or self.stream:
                raise ConfigError("--batch: a local teacher has neither batches nor streams; leave them out")
        if self.batch and self.stream:
            raise ConfigError("--stream: a batch is not streamed; leave one out")

    @property
    def vendor(self) -> str:
        """openai, anthropic or local."""
        return self.teacher.partition(":")[0]

    @property
    def model(self) -> str:
        """The model's name at the vendor, or its folder."""
        return self.teacher.partition(":")[2]

    @property
    def cost_limit(self) -> Decimal | None:
        """`max_cost` as it was written, in US dollars."""
        return None if self.max_cost is None else Decimal(str(self.max_cost))

    def kept(self) -> dict[str, object]:
        """The settings that a run folder keeps, as JSON values."""
        values: dict[str, object] = {}
        for each in fields(self):
            if each.name not in MAY_CHANGE:
                value = getattr(self, each.name)
                values[each.name] = (
                    str(value)
                    if isinstance(value, Path)
                    else list(value)
                    if isinstance(value, tuple)
                    else value
                )
        return values


def settings_hash(kept: dict[str, object]) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `kept`."""
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
