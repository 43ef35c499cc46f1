"""The plan of a cache, `cache.json`: what the cache is, decided before the teacher runs, and its hash.

Two runs belong together if their plans are equal; where they are not, the difference has a name.
Knows nothing of what the entries mean to a teacher.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distillcache_shards.canonical import canonical, parse, sha256_of
from distillcache_shards.container import FORMAT_VERSION
from distillcache_shards.durable import write_whole
from distillcache_shards.errors import CacheError, CorruptError, MismatchError, UnsupportedError, printable
from distillcache_shards.limits import MAX_VOCABULARY
from distillcache_shards.rows import KINDS

__all__ = ["PLAN_FILE", "Plan", "difference"]

PLAN_FILE = "cache.json"
MAX_PLAN_BYTES = 1 << 20
# What a reader needs; teach adds more beside it.
NEEDED: dict[str, dict[str, type]] = {
    "tokenizer": {"sha256": str, "vocab_size": int},
    "teacher": {"sha256": str},
    "rows": {"kind": str},
    "codec": {"id": str, "params": dict, "block_rows": int},
    "corpus": {"sequences": int, "tokens": int, "rows": int, "shards": int, "index_sha256": str},
}


class Plan:
    """A cache's plan and what is told about it.

    `data` is the plan, plain JSON data, and `sha256` names it.
    `about` holds names for people, such as the teacher's; it may differ between equal caches.
    Raises CacheError for data that are no plan.
    """

    def __init__(self, data: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.data = dict(data)
        self.about = dict(about)
        fault = _fault(self.data) or _about_fault(self.about)
        if fault:
            raise CacheError(f"is no plan: {fault}")
        self.sha256 = sha256_of(self.data)
        self.num_sequences: int = data["corpus"]["sequences"]
        self.num_tokens: int = data["corpus"]["tokens"]
        self.num_rows: int = data["corpus"]["rows"]
        self.num_shards: int = data["corpus"]["shards"]
        self.index_sha256: str = data["corpus"]["index_sha256"]
        # The first caches lack it: theirs is only told from another by reading all of it.
        self.index_header_sha256: str | None = data["corpus"].get("index_header_sha256")
        self.vocab_size: int = data["tokenizer"]["vocab_size"]
        self.tokenizer_sha256: str = data["tokenizer"]["sha256"]
        self.row_kind: str = data["rows"]["kind"]
        self.block_rows: int = data["codec"]["block_rows"]

    def write(self, folder: Path) -> None:
        """Write `cache.json` into a folder, whole or not at all. Raises CacheError if the disk fails."""
        content = {
            "about": self.about,
            "format": FORMAT_VERSION,
            "plan": self.data,
            "plan_sha256": self.sha256,
        }
        content["sha256"] = sha256_of(content)
        write_whole(folder / PLAN_FILE, [canonical(content), b"\n"])

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """The plan of a cache folder.

        Raises CacheError if it is no cache, CorruptError if the file is damaged, UnsupportedError if it is of
        a later format or codec.
        """
        file = folder / PLAN_FILE
        try:
            with file.open("rb") as stream:
                text = stream.read(MAX_PLAN_BYTES + 1)
        except FileNotFoundError:
            raise CacheError(
                f"{folder}: is not a cache; found no {PLAN_FILE}; make one by `distillcache teach {folder}`"
            ) from None
        except OSError as error:
            raise CacheError(f"{file}: cannot be read: {error.strerror}; name a cache folder") from None
        return cls.parse(text, file)

    @classmethod
    def parse(cls, text: bytes, where: Path) -> "Plan":
        """The plan in the bytes of `cache.json`; errors as in `read`, beginning with `where`."""
        remedy = "copy the file again, or delete it and teach again on this folder"
        if len(text) > MAX_PLAN_BYTES:
            raise CorruptError(f"{where}: is over {MAX_PLAN_BYTES} bytes and no plan; {remedy}")
        try:
            content = parse(text)
            version = content["format"]
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise UnsupportedError(
                    f"{where}: has format version {printable(version)}; "
                    f"this release reads up to {FORMAT_VERSION}; read it with a newer distillcache"
                )
            own_hash = content.pop("sha256")
            if version != FORMAT_VERSION or sha256_of(content) != own_hash:
                raise ValueError("it fails its checksum")
            plan = cls(content["plan"], content["about"])
            if plan.sha256 != content["plan_sha256"]:
                raise ValueError("its plan fails its checksum")
        except UnsupportedError:
            raise
        except CacheError as error:
            raise CorruptError(f"{where}: {error}; {remedy}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptError(f"{where}: is no plan of a cache: {printable(str(error))}; {remedy}") from None
        return plan

    def require_same(self, data: Mapping[str, Any], where: Path) -> None:
        """Raises MismatchError that names the first entry in which `data` is another plan.

        `data` may lack whole sections, those not yet known.
        """
        for section, wanted in data.items():
            found = difference(self.data.get(section), wanted, section)
            if found:
                name, old, new = found
                raise MismatchError(
                    f"{where}: holds a cache of another plan: {name} is {_shown(old)} there and "
                    f"{_shown(new)} here; name another folder, or ask for what is there"
                )


def difference(old: Any, new: Any, name: str) -> tuple[str, Any, Any] | None:
    """The first entry in which two JSON values differ: its dotted name, and both values; None if equal."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            found = difference(old.get(key), new.get(key), f"{name}.{key}")
            if found:
                return found
        return None
    return None if old == new and type(old) is type(new) else (name, old, new)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else canonical(value).decode()
    # Of a hash the beginning tells it apart.
    return f"{text[:12]}..." if len(text) == 64 and " " not in text else printable(text)


def _about_fault(about: Mapping[str, Any]) -> str | None:
    files = about.get("tokenizer_files", {})
    if not isinstance(files, Mapping) or not all(isinstance(each, str) for each in files.values()):
        return "about.tokenizer_files must name the files of the tokenizer"
    return None


def _fault(data: Mapping[str, Any]) -> str | None:
    for section, entries in NEEDED.items():
        found = data.get(section)
        if not isinstance(found, Mapping):
            return f"no section {section!r}"
        for name, kind in entries.items():
            value = found.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):
                return f"{section}.{name} must be {kind.__name__}, found {printable(value)}"
            if isinstance(value, int) and value < 0:
                return f"{section}.{name} must be at least 0, found {value}"
    if data["rows"]["kind"] not in KINDS:
        return f"rows.kind must be one of {', '.join(KINDS)}, found {printable(data['rows']['kind'])}"
    if not 1 <= data["tokenizer"]["vocab_size"] <= MAX_VOCABULARY:
        return f"tokenizer.vocab_size must be 1 to {MAX_VOCABULARY}"
    if data["codec"]["block_rows"] < 1:
        return "codec.block_rows must be at least 1"
    return None
