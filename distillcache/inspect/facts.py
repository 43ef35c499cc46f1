"""Facts about a cache: what is in it, whether its bytes are sound, what it says of one sequence.

Needs neither torch nor transformers, and not the teacher.
Knows nothing of how facts are shown.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distillcache.corpus.pieces import decode_pieces
from distillcache.errors import ConfigError
from distillcache_shards.cache import Cache
from distillcache_shards.container import REPAIR
from distillcache_shards.errors import CacheError
from distillcache_shards.shard import shard_file

__all__ = ["Facts", "Guess", "Problem", "SequenceView", "TokenView", "facts", "sequence_view", "verify"]


@dataclass(frozen=True)
class Facts:
    """What is in a cache, by its headers; means are over the shards that are there."""

    sequences: int
    records: int  # documents, chats; a long one is several sequences
    tokens: int
    rows: int  # supervised tokens
    supervised_share: float  # of all tokens
    longest_sequence: int
    shards: int
    shards_missing: str  # numbers and ranges
    kept_a_row: float  # ids with their values, mean
    draws_a_row: float
    mass_kept: float
    entropy_nats: float
    codec_kl_nats: float
    codec_kl_max_nats: float
    cache_bytes: int
    bytes_a_token: Mapping[str, float]  # by what they are for
    row: Mapping[str, Any]  # of what kind, with its settings
    teacher: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    codec: Mapping[str, Any]
    settings: Mapping[str, Any]  # of the corpus
    plan_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class Problem:
    """Something that is not sound, in one line: where, what, and what to do."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Guess:
    """An id that a teacher found likely."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class TokenView:
    """One token of a sequence, and what the teacher expected in its place if it is supervised."""

    position: int
    id: int
    text: str
    supervised: bool
    probability: float | None  # that the teacher gave it; None if it is in the tail or not supervised
    tail_mass: float
    entropy_nats: float
    top: tuple[Guess, ...]


@dataclass(frozen=True)
class SequenceView:
    """One sequence, token by token."""

    index: int
    record: int
    tokens: tuple[TokenView, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)


def facts(folder: Path) -> Facts:
    """What is in a cache folder, from the headers of its files. Raises CacheError if it is none."""
    cache = Cache.open(folder)
    missing = cache.missing_shards()
    sums: dict[str, float] = {}
    parts: dict[str, int] = {}
    num_tokens = num_rows = kept = draws = 0
    largest_kl = 0.0
    for number in sorted(set(range(cache.num_shards)) - set(missing)):
        shard = cache.shard(number)
        num_tokens += shard.num_tokens
        num_rows += shard.num_rows
        kept += shard.num_kept
        draws += shard.num_draws
        for name in ("mass_kept", "entropy_nats", "codec_kl_nats"):
            sums[name] = sums.get(name, 0.0) + shard.num_rows * float(shard.fidelity.get(name, 0.0))
        largest_kl = max(largest_kl, float(shard.fidelity.get("codec_kl_max_nats", 0.0)))
        for name, size in shard.part_bytes().items():
            parts[name] = parts.get(name, 0) + size
    means = {name: total / max(1, num_rows) for name, total in sums.items()}
    plan, about = cache.plan, cache.about
    a_token = {name: size / max(1, num_tokens) for name, size in parts.items()}
    if num_tokens:
        a_token["all"] = sum(parts.values()) / num_tokens
    return Facts(
        sequences=len(cache),
        records=len(np.unique(cache.records())),
        tokens=cache.num_tokens,
        rows=cache.num_rows,
        supervised_share=cache.num_rows / max(1, cache.num_tokens),
        longest_sequence=int(cache.sequence_lengths.max(initial=0)),
        shards=cache.num_shards,
        shards_missing=_ranges(missing),
        kept_a_row=kept / max(1, num_rows),
        draws_a_row=draws / max(1, num_rows),
        mass_kept=means.get("mass_kept", 0.0),
        entropy_nats=means.get("entropy_nats", 0.0),
        codec_kl_nats=means.get("codec_kl_nats", 0.0),
        codec_kl_max_nats=largest_kl,
        cache_bytes=sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()),
        bytes_a_token=a_token,
        row=dict(plan["rows"]),
        teacher={
            "name": about.get("teacher"),
            "revision": about.get("revision"),
            "parameters": about.get("num_parameters"),
            **plan["teacher"],
        },
        tokenizer=dict(plan["tokenizer"]),
        codec={
            "id": plan["codec"]["id"],
            **plan["codec"]["params"],
            **{f"asked_{name}": value for name, value in plan["codec"].get("asked", {}).items()},
            "block_rows": plan["codec"]["block_rows"],
        },
        settings={"corpus": about.get("corpus"), **plan.get("settings", {})},
        plan_sha256=cache.plan_sha256,
    )


def verify(folder: Path) -> list[Problem]:
    """Reads every byte of a cache; everything that is not sound. Raises CacheError if it will not open."""
    return [Problem(text) for text in _problems(Path(folder))]


def _problems(folder: Path) -> Iterator[str]:
    cache = Cache.open(folder)
    yield from cache.faults_of_index()
    for name, sha256 in cache.about.get("tokenizer_files", {}).items():
        file = cache.tokenizer_folder / name
        if not file.is_file():
            yield f"{file}: no such file; {REPAIR}"
        elif hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            yield f"{file}: is not what was written; {REPAIR}"
    for number in range(cache.num_shards):
        try:
            yield from cache.faults_of_shard(number)
        except CacheError as error:
            yield str(error)
    for file in sorted(folder.glob("shard-*.safetensors")):
        digits = file.name.removeprefix("shard-").removesuffix(".safetensors")
        number = int(digits) if digits.isdecimal() else cache.num_shards
        if number >= cache.num_shards or file != shard_file(folder, number):
            yield f"{file}: is no shard of this plan, of {cache.num_shards} shards; move it out of here"


def sequence_view(folder: Path, index: int, *, top: int = 5) -> SequenceView:
    """One sequence with what the teacher found likely at each supervised token, `top` ids of it at most.

    Raises ConfigError for a number that is none, CacheError if it cannot be read.
    """
    cache = Cache.open(folder)
    if not 0 <= index < len(cache):
        raise ConfigError(
            f"--sequence: must be 0 to {len(cache) - 1}, the sequences of {folder}, found {index}"
        )
    found = cache[index]
    pieces = decode_pieces(cache.tokenizer_folder)
    tokens, row = [], 0
    for position, token_id in enumerate(found.tokens.tolist()):
        guesses: tuple[Guess, ...] = ()
        probability = None
        tail_mass = entropy = 0.0
        if found.supervised[position]:
            rows = found.rows[row : row + 1]
            row += 1
            shares = np.exp(rows.head_logprobs.astype(np.float64))
            # Of equal value the lower id comes first, as when they were kept.
            order = np.lexsort((rows.head_ids, -shares))[:top]
            guesses = tuple(
                Guess(int(rows.head_ids[n]), pieces(int(rows.head_ids[n])), float(shares[n])) for n in order
            )
            its_own = np.flatnonzero(rows.head_ids == token_id)
            probability = float(shares[its_own[0]]) if len(its_own) else None
            tail_mass, entropy = float(rows.tail_mass[0]), float(rows.entropy[0])
        tokens.append(
            TokenView(
                position,
                token_id,
                pieces(token_id),
                bool(found.supervised[position]),
                probability,
                tail_mass,
                entropy,
                guesses,
            )
        )
    return SequenceView(index, found.record, tuple(tokens))


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in words: `3, 7-12`; `none` for none."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found) or "none"
