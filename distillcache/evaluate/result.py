"""What came of an evaluation, as data: every figure with what it is over.

Knows nothing of how it was reached.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distillcache.metrics import Bin

__all__ = ["CodeScores", "EvaluateResult", "Figure", "RowScores", "TaskScore"]


@dataclass(frozen=True)
class Figure:
    """One figure; its unit ends its name. Without a value, the note says why there is none."""

    name: str
    value: float | None
    over: str  # what it is a mean over, in words
    stderr: float | None = None  # with the records as independent; None where it is not known
    note: str | None = None


@dataclass(frozen=True)
class RowScores:
    """A student on sequences of a cache."""

    teacher: str
    row_kind: str
    split: str  # "held-out" or "all"
    num_sequences: int
    num_rows: int
    figures: tuple[Figure, ...]
    exact: tuple[Figure, ...] | None  # against the whole teacher; None if it was not asked for
    bins: tuple[Bin, ...]  # of the calibration error


@dataclass(frozen=True)
class CodeScores:
    """A student on problems whose programs are run."""

    benchmark: str
    num_problems: int
    num_samples: int  # a problem
    pass_at: Mapping[int, Figure]  # by k
    outcomes: Mapping[str, int]  # how many programs passed, failed, timed out, ...
    walls: tuple[str, ...]  # what held the programs in
    solved: tuple[str, ...]  # problems of which some program passed


@dataclass(frozen=True)
class TaskScore:
    """One metric of one of lm-eval's tasks."""

    task: str
    metric: str
    value: float
    stderr: float | None
    num_fewshot: int | None
    num_questions: int | None


@dataclass(frozen=True)
class EvaluateResult:
    """All that was asked for; None and () where it was not."""

    student: str
    student_sha256: str
    num_parameters: int
    rows: RowScores | None
    code: CodeScores | None
    tasks: tuple[TaskScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data; figures by their names."""
        data = asdict(self)
        if self.rows is not None:
            data["rows"] |= {"figures": _by_name(self.rows.figures)}
            if self.rows.exact is not None:
                data["rows"] |= {"exact": _by_name(self.rows.exact)}
        if self.code is not None:
            data["code"] |= {"pass_at": {str(k): _values(each) for k, each in self.code.pass_at.items()}}
        return data


def _by_name(figures: tuple[Figure, ...]) -> dict[str, Any]:
    return {each.name: _values(each) for each in figures}


def _values(figure: Figure) -> dict[str, Any]:
    values = asdict(figure)
    del values["name"]
    return values
