"""An API key: where it comes from, and how it never gets anywhere else.

A key is read from the environment or a file, shown by nobody, and struck out of every text that is written or
raised.
Knows nothing of what it opens.
"""

import json
import os
from pathlib import Path

from distillcache.errors import ConfigError

__all__ = ["Key", "find_key"]


class Key:
    """A secret that neither `repr`, `str`, pickling nor JSON shows."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def reveal(self) -> str:
        """The key itself, for the client's constructor and nothing else."""
        return self._secret

    def strike(self, text: str) -> str:
        """`text` with the key, plain or as JSON would write it, replaced by `[key]`."""
        if not self._secret:
            return text
        return text.replace(self._secret, "[key]").replace(json.dumps(self._secret)[1:-1], "[key]")

    def __repr__(self) -> str:
        return "Key(...)"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled")


def find_key(vendor: str, *, base_url: str | None, key_file: Path | None, key_env: str | None) -> Key:
    """The key for a vendor or server.

    With `base_url` the vendor's own variable is not read: a key must not reach a server that its owner did
    not name it
    for, and many servers need none.
    Raises `ConfigError` where no key is found.
    """
    if key_file is not None:
        try:
            secret = key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as fault:
            raise ConfigError(f"--key-file: {key_file} cannot be read; {fault.__class__.__name__}") from None
        if not secret or len(secret.split()) != 1:
            raise ConfigError(f"--key-file: {key_file} must hold the key and nothing else")
        return Key(secret)
    name = key_env or (None if base_url else f"{vendor.upper()}_API_KEY")
    if name is None:
        return Key("")
    secret = os.environ.get(name, "").strip()
    if not secret:
        raise ConfigError(
            f"{name}: not set; put the API key into this environment variable, or name a --key-file"
        )
    return Key(secret)
