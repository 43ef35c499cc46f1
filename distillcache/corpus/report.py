"""What became of a corpus: counts, and the first places of everything that is not plainly a sequence.

Nothing is left out without a count and a name here.
Knows nothing of files or tokenizers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from distillcache.errors import CorpusError

__all__ = ["CorpusReport", "Tally"]

NUM_NAMED = 5


@dataclass
class Tally:
    """How often something was met, and where first."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, where: str) -> None:
        """Count one more; the first five are named."""
        self.count += 1
        if len(self.first) < NUM_NAMED:
            self.first.append(where)

    def to_dict(self) -> dict[str, object]:
        """As plain JSON data."""
        return {"count": self.count, "first": list(self.first)}


@dataclass
class CorpusReport:
    """Counts of one reading of a corpus; complete when it has been read to its end."""

    records: int = 0
    sequences: int = 0
    tokens: int = 0
    supervised: int = 0
    windows: int = 0  # sequences that are pieces of a cut record
    empty: Tally = field(default_factory=Tally)  # records without text; left out
    unsupervised: Tally = field(default_factory=Tally)  # records without a supervised token; left out
    unsupervised_windows: Tally = field(default_factory=Tally)  # pieces without one; left out
    cut: Tally = field(default_factory=Tally)  # records over max_length, cut into windows
    duplicates: Tally = field(default_factory=Tally)  # sequences whose token ids came before; kept
    written_special: Tally = field(default_factory=Tally)  # records that spell a special token; kept
    skipped_files: Tally = field(default_factory=Tally)  # files of a folder that are no known text; left out

    def tallies(self) -> Mapping[str, Tally]:
        """All that is counted with places, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tally)}

    def require_supervised(self) -> None:
        """Raises CorpusError if nothing that was read has a supervised token."""
        if self.supervised:
            return
        reasons = {
            "empty": self.empty,
            "without a supervised token": self.unsupervised,
        }
        found = "; ".join(f"{t.count} {what}, first {t.first[0]}" for what, t in reasons.items() if t.count)
        raise CorpusError(
            f"corpus: no supervised token in {self.records} records"
            f"{f' ({found})' if found else ''}; give text, or chats in which the assistant speaks"
        )

    def to_dict(self) -> dict[str, object]:
        """As plain JSON data: numbers by name, and `{"count", "first"}` for what has places."""
        return {
            name: value.to_dict() if isinstance(value, Tally) else value for name, value in vars(self).items()
        }
