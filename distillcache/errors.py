"""The library's own errors, beside those of the format. One line each: where, what, found, what to do."""

from distillcache_shards.errors import DistillcacheError

__all__ = ["ConfigError", "CorpusError", "DistillcacheError", "StudentError", "TeacherError"]


class ConfigError(DistillcacheError):
    """A setting, in a file or on the command line, that cannot be used."""


class CorpusError(DistillcacheError):
    """A corpus that cannot be read, or that has nothing to teach."""


class TeacherError(DistillcacheError):
    """A teacher that cannot be loaded or does not do what a teacher must."""


class StudentError(DistillcacheError):
    """A student that cannot be built, loaded, or trained on this cache."""
