"""A run of `teach` against the tests' own server, with everything that waits made short."""

from pathlib import Path
from typing import Any, NamedTuple

from logprob_server import LogprobServer

from distillcache.teach.config import TeachConfig
from distillcache.teach.events import Event
from distillcache_shards.cache import Cache

KEY = "sk-proj-Not+A/Real=Key_0123456789"


class Served(NamedTuple):
    """A teacher, as a model for a server and as a folder."""

    model: Any
    tokenizer: Any
    folder: Path
    ascii: list[int]


class Taught(NamedTuple):
    """A cache, and what was told while it was made."""

    cache: Cache
    events: list[Event]


def config_for(
    server: LogprobServer, cache: Path, source: Path, tokenizer: Path, **settings: Any
) -> TeachConfig:
    """A config with short waits and a known price."""
    known: dict[str, Any] = {
        "cache": cache, "sources": (str(source),), "teacher": "openai:tiny", "tokenizer": str(tokenizer),
        "base_url": server.url, "key_env": "TEST_KEY", "price_input": 1.0, "price_output": 5.0,
        "request_seconds": 20.0, "retry_seconds": 0.01, "shard_rows": 32,
        "codec": "zstd",
    }  # fmt: skip
    if settings.get("ask", "answers") == "answers":
        known["max_tokens"] = 10
    return TeachConfig(**(known | settings))
