"""A run against the tests' own server, with everything that waits made short."""

from pathlib import Path
from typing import Any

from vendor_server import VendorServer

from distillcache.generate.config import GenerateConfig

KEY = "sk-proj-Not+A/Real=Key_0123456789"


def config_for(
    server: VendorServer, vendor: str, out: Path, file: Path | None, **settings: Any
) -> GenerateConfig:
    """A config with short waits."""
    known: dict[str, Any] = {
        "out": out, "teacher": f"{vendor}:test-model", "prompts": file, "key_env": "TEST_KEY",
        "base_url": server.openai_url if vendor == "openai" else server.address,
        "price_input": 1.0, "price_output": 5.0, "max_tokens": 512,
        "concurrency": 16,
        "request_seconds": 5.0, "retry_seconds": 0.01, "max_attempts": 12, "poll_seconds": 0.05,
    }  # fmt: skip
    return GenerateConfig(**(known | settings))
