"""What happens while a teacher teaches, for whoever shows it, and the report at the end."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from distillcache.corpus.report import CorpusReport, Tally

__all__ = ["Aligned", "Asked", "Calibrating", "Event", "Planned", "Progress", "TeachReport", "Warned"]


@dataclass(frozen=True)
class Planned:
    """The corpus has been read: what became of it, and what the plan makes of it."""

    report: CorpusReport
    num_shards: int


@dataclass(frozen=True)
class Calibrating:
    """The teacher is at a few sequences, of which the codec is made."""

    rows_done: int
    rows_total: int


@dataclass(frozen=True)
class Warned:
    """Something that the user should know, in one line."""

    text: str


@dataclass(frozen=True)
class Progress:
    """Where the work stands; of shards that were there before, nothing is counted in tokens."""

    shards_done: int
    shards_total: int
    tokens_done: int
    tokens_total: int
    rows_done: int
    bytes_written: int
    tokens_per_second: float
    seconds_left: float | None


@dataclass(frozen=True)
class Asked:
    """How far an API has been asked; `spent_usd` is None without a price."""

    answered: int
    failed: int
    total: int
    spent_usd: Decimal | None


@dataclass(frozen=True)
class Aligned:
    """What became of all that an API said: sequences, and what was left out, by its reason."""

    answered: int
    sequences: int
    left_out: Mapping[str, Tally]
    ledger: Mapping[str, Any]  # tokens and cost as the API reported them, over all starts
    folder: str  # that keeps what was said


Event = Planned | Calibrating | Warned | Progress | Asked | Aligned


@dataclass(frozen=True)
class TeachReport:
    """What a cache holds and how faithful it is; over all its shards that are there."""

    teacher: str
    sequences: int
    tokens: int
    rows: int
    shards: int
    shards_missing: int  # under way in other processes
    shards_redone: int  # that were damaged
    tokens_taught: int  # by this run
    teach_seconds: float  # of this run, without loading
    tokens_per_second: float
    kept_a_row: float  # ids with their values
    draws_a_row: float
    mass_kept: float
    entropy_nats: float
    codec_kl_nats: float
    codec_kl_max_nats: float
    asked_max_kl_nats: float | None  # of the codec, a row; None where it has no choice
    row_bytes: float  # in their blocks
    asked_row_bytes: float | None
    token_bytes: float  # all files but the tokenizer's, over all tokens
    cache_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)
