"""JSON in one spelling, so that equal data are equal bytes, and strict on the way back.

Knows nothing of what the data mean.
"""

import hashlib
import json
from typing import Any

from distillcache_shards.errors import printable

__all__ = ["canonical", "parse", "sha256_of"]


def canonical(data: Any) -> bytes:
    """Plain JSON data as bytes: sorted keys, no blanks, ASCII. Raises ValueError for nan and inf."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode(
        "ascii"
    )


def sha256_of(data: Any) -> str:
    """sha256, in hex, of the canonical spelling."""
    return hashlib.sha256(canonical(data)).hexdigest()


def parse(text: bytes) -> Any:
    """JSON as data. Raises ValueError for what is no JSON, nan and inf, and a key that comes twice."""
    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key '{printable(name)}' comes twice")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
