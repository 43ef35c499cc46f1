"""The errors a user can mend. One line each: where, what is wrong, what was found, what to do."""

__all__ = [
    "CacheError",
    "CorruptError",
    "DistillcacheError",
    "MismatchError",
    "MissingShardError",
    "UnsupportedError",
    "printable",
]


class DistillcacheError(Exception):
    """Base of every error that the user can mend; its text is one complete line."""


class CacheError(DistillcacheError):
    """A cache folder that cannot be used as it is."""


class CorruptError(CacheError):
    """Bytes on disk that are not what was written: cut, altered, or never a shard."""


class UnsupportedError(CacheError):
    """A format version or codec that this release does not read."""


class MismatchError(CacheError):
    """Parts that do not belong together: another plan, teacher, tokenizer or codec."""


class MissingShardError(CacheError):
    """A sequence whose shard has not been taught yet."""


def printable(value: object) -> str:
    """A value out of a file, short and printable: what a file says is not to draw on a terminal."""
    text = ascii(str(value))[1:-1]
    return text if len(text) <= 120 else f"{text[:117]}..."
