"""A student on sequences of a cache: losses, agreement, calibration, acceptance, each with what it is over.

Logits of all positions never exist at once: a chunk of positions of the student, and of a teacher if there
is one.
Knows nothing of which sequences are held out, or of command lines.

B sequences of a batch, T tokens of the longest, N supervised positions, V vocabulary, S sequences of all.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillcache.evaluate.events import OnEvent, Progress
from distillcache.evaluate.result import Figure, RowScores
from distillcache.head import OutputHead
from distillcache.learn.data import IGNORED, batches_in_order, collate, sampled_at
from distillcache.losses import TeacherRows
from distillcache.metrics import (
    NUM_SUMS,
    Means,
    RowMetrics,
    exact_metrics,
    means,
    row_metrics,
    stderr_of_mean,
    summed,
)
from distillcache.teach.teacher import Teacher
from distillcache.tokenizer import text_bytes
from distillcache_shards.cache import Cache

__all__ = ["evaluate_rows"]

# Logits of one chunk in fp32, as in learning.
CHUNK_BYTES = 24 << 20


class _Sums:
    """Sums over rows, and of some metrics over the rows of each sequence."""

    def __init__(self, num_sequences: int) -> None:
        self.all = torch.zeros(NUM_SUMS, dtype=torch.float64)
        self.of_sequence = {
            name: torch.zeros(num_sequences, dtype=torch.float64)
            for name in ("hard", "kl", "correct", "accept_low", "accept_high")
        }

    def add(self, metrics: RowMetrics, sequences_n: Tensor) -> None:
        """The rows of a chunk, and the places of their sequences in the list of all."""
        self.all += summed(metrics)
        for name, sums_S in self.of_sequence.items():
            values_n: Tensor | None = getattr(metrics, f"{name}_N")
            if values_n is not None:
                sums_S.index_add_(0, sequences_n.cpu(), values_n.cpu().double())


@dataclass(frozen=True)
class _Totals:
    """Sums of all rows that were evaluated."""

    cached: _Sums
    exact: _Sums
    teacher_hard_S: Tensor  # the teacher's own cross-entropy, summed by sequence
    num_rows_S: Tensor
    num_bytes_S: Tensor


@torch.inference_mode()
def evaluate_rows(
    student: Teacher,
    cache: Cache,
    indices: NDArray[np.int64],
    *,
    teacher: Teacher | None,
    split: str,
    batch_size: int,
    tell: OnEvent,
) -> RowScores:
    """Scores on these sequences of a cache, whose tokenizer the student and the teacher must have."""
    totals = _totals(student, cache, indices, teacher, batch_size, tell)
    records_S = cache.records()[indices]
    about = cache.about
    return RowScores(
        teacher=str(about.get("teacher") or "an unnamed teacher"),
        row_kind=cache.row_kind,
        split=split,
        num_sequences=len(indices),
        num_rows=int(totals.num_rows_S.sum()),
        figures=_figures(totals, records_S, cache),
        exact=None if teacher is None else _exact_figures(totals, records_S),
        bins=means(totals.cached.all).bins,
    )


def _totals(
    student: Teacher,
    cache: Cache,
    indices: NDArray[np.int64],
    teacher: Teacher | None,
    batch_size: int,
    tell: OnEvent,
) -> _Totals:
    num_sequences = len(indices)
    totals = _Totals(
        _Sums(num_sequences),
        _Sums(num_sequences),
        *(torch.zeros(num_sequences, dtype=torch.float64) for _ in range(3)),
    )
    temperature, tau = sampled_at(cache)
    total_rows = int(cache.sequence_row_counts[indices].sum(dtype=np.int64))
    done = 0
    lengths = cache.sequence_lengths[indices].astype(np.int64)
    for places in batches_in_order(lengths, batch_size=batch_size, batch_tokens=None):
        read = cache.read(indices[np.asarray(places)])
        batch = collate(read)
        places_B = torch.tensor(places)
        for place, start, end in zip(places, read.token_offsets[:-1], read.token_offsets[1:], strict=True):
            totals.num_bytes_S[place] = text_bytes(
                student.tokenizer, read.tokens[start:end], read.supervised[start:end]
            )
        totals.num_rows_S[places_B] = torch.from_numpy(np.diff(read.row_offsets)).double()
        rows = TeacherRows(cache.row_kind, **batch["rows"]) if "rows" in batch else None
        if rows is None:
            continue  # sequences with nothing supervised
        start = 0
        for sequences_n, targets_n, logits_nV, theirs_nW in _chunks(student, teacher, batch):
            stop = start + len(targets_n)
            rows_n = _on(rows[start:stop], logits_nV.device)
            totals.cached.add(
                row_metrics(logits_nV, targets_n, rows_n, temperature=temperature, tau=tau),
                places_B[sequences_n.cpu()],
            )
            if theirs_nW is not None:
                _add_exact(totals, logits_nV, targets_n, theirs_nW, places_B[sequences_n.cpu()])
            start = stop
        done += start
        tell(Progress("rows", done, total_rows))
    return totals


def _add_exact(
    totals: _Totals, logits_nV: Tensor, targets_n: Tensor, theirs_nW: Tensor, places_n: Tensor
) -> None:
    theirs_nW = theirs_nW.to(logits_nV.device)
    totals.exact.add(exact_metrics(logits_nV, targets_n, theirs_nW), places_n)
    hard_n = -theirs_nW.gather(1, targets_n[:, None])[:, 0]
    totals.teacher_hard_S.index_add_(0, places_n, hard_n.cpu().double())


def _chunks(
    student: Teacher, teacher: Teacher | None, batch: dict[str, Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Of a batch, a chunk of supervised positions at a time, in the order of its rows.

    The number of their sequence in the batch, their targets, the student's logits, and the teacher's
    log-probabilities, -inf where an id is not valid.
    """
    ids_BT, mask_BT, labels_BT = batch["input_ids"], batch["attention_mask"], batch["labels"]
    sequences_N, positions_N = (labels_BT[:, 1:] != IGNORED).nonzero(as_tuple=True)
    targets_N = labels_BT[sequences_N, positions_N + 1]
    models = [student] if teacher is None else [student, teacher]
    widest = max(each.vocab_size for each in models)
    chunk = max(1, CHUNK_BYTES // (4 * widest))

    def logits(head: OutputHead, sequences: slice, n: Tensor) -> Iterator[Tensor]:
        return head.rows_logits(
            ids_BT[sequences], mask_BT[sequences], sequences_N[n] - sequences.start, positions_N[n], chunk
        )

    # Whole logits come by sequence, which is where the chunks of both then have to end.
    whole = any(each.head.whole_logits for each in models)
    num_sequences = len(ids_BT)
    groups = [slice(b, b + 1) for b in range(num_sequences)] if whole else [slice(0, num_sequences)]
    start = 0
    for group in groups:
        n = ((sequences_N >= group.start) & (sequences_N < group.stop)).nonzero()[:, 0]
        for parts in zip(*(logits(each.head, group, n) for each in models), strict=True):
            stop = start + len(parts[0])
            theirs = None
            if teacher is not None:
                valid_V = teacher.valid_V.to(parts[1].device)
                theirs = parts[1].masked_fill(~valid_V, -math.inf).log_softmax(1)
            yield sequences_N[start:stop], targets_N[start:stop].to(parts[0].device), parts[0], theirs
            start = stop


def _on(rows: TeacherRows, device: torch.device) -> TeacherRows:
    """The rows on a device."""
    values = {name: value.to(device) for name, value in vars(rows).items() if isinstance(value, Tensor)}
    return TeacherRows(rows.kind, **values)


def _figures(totals: _Totals, records_S: NDArray[np.int64], cache: Cache) -> tuple[Figure, ...]:
    found = means(totals.cached.all)
    rows = f"{found.num_rows:,} tokens"
    stderr = _Stderr(totals.cached, totals.num_rows_S, records_S)
    num_bytes = int(totals.num_bytes_S.sum())
    temperature, tau = sampled_at(cache)
    sampled = cache.row_kind == "sampled"
    at = f" at temperature {temperature:g}" if temperature != 1 else ""
    kl_note = (
        f"estimated without bias from sampled rows{at}"
        if sampled
        else "over the kept ids and one bucket for all others, at most the KL of the whole distributions"
    )
    known = f"p is known for kept ids alone{at}"
    if sampled and tau is None:
        untold = "rows that were drawn without a threshold do not tell it; give --against"
        agreement = Figure("top1_agreement", None, rows, note=untold)
        acceptance = [Figure(name, None, rows, note=untold) for name in ("acceptance_min", "acceptance_max")]
    else:
        agreement = _agreement(found)
        acceptance = [
            Figure("acceptance_min", found.acceptance_low, rows, stderr("accept_low"), known),
            Figure("acceptance_max", found.acceptance_high, rows, stderr("accept_high"), known),
        ]
    return (
        Figure("kl_nats", found.kl, rows, stderr("kl"), kl_note),
        *_own(found, num_bytes, stderr),
        agreement,
        *acceptance,
        Figure("calibration_error", found.calibration_error, f"{rows}, in {len(found.bins)} bins"),
    )


def _own(found: Means, num_bytes: int, stderr: "_Stderr") -> list[Figure]:
    """Figures that need no teacher."""
    rows = f"{found.num_rows:,} tokens"
    hard = found.hard_loss
    bits = hard * found.num_rows / math.log(2) / num_bytes if num_bytes else None
    no_text = None if num_bytes else "the tokens stand for no text"
    return [
        Figure("hard_loss_nats", hard, rows, stderr("hard")),
        Figure("perplexity", found.perplexity, rows),
        Figure("bits_per_byte", bits, f"{num_bytes:,} bytes of their text", note=no_text),
        Figure("next_token_accuracy", found.accuracy, rows, stderr("correct")),
    ]


def _agreement(found: Means) -> Figure:
    if found.top1_agreement is None:
        return Figure("top1_agreement", None, "no token", note="no row tells the teacher's likeliest id")
    over = f"{found.num_asked:,} tokens"
    if found.num_asked < found.num_rows:
        over = f"the {found.num_asked:,} of {found.num_rows:,} tokens whose row tells it"
    return Figure("top1_agreement", found.top1_agreement, over)


def _exact_figures(totals: _Totals, records_S: NDArray[np.int64]) -> tuple[Figure, ...]:
    found = means(totals.exact.all)
    rows = f"{found.num_rows:,} tokens"
    stderr = _Stderr(totals.exact, totals.num_rows_S, records_S)
    teachers = float(totals.teacher_hard_S.sum()) / found.num_rows
    return (
        Figure("kl_nats", found.kl, rows, stderr("kl"), "over the whole vocabulary"),
        Figure("top1_agreement", found.top1_agreement, rows),
        Figure("acceptance", found.acceptance_low, rows, stderr("accept_low")),
        Figure(
            "teacher_hard_loss_nats", teachers, rows, stderr.of(totals.teacher_hard_S), "the teacher's own"
        ),
    )


class _Stderr:
    """Standard errors of means over rows, with the records as independent of each other."""

    def __init__(self, sums: _Sums, num_rows_S: Tensor, records_S: NDArray[np.int64]) -> None:
        numbers, place_S = np.unique(records_S, return_inverse=True)
        self._place_S = torch.from_numpy(place_S)
        self._num_records = len(numbers)
        self._sums = sums
        self._counts_G = self._by_record(num_rows_S)

    def __call__(self, name: str) -> float | None:
        return self.of(self._sums.of_sequence[name])

    def of(self, sums_S: Tensor) -> float | None:
        """Of the mean whose sums by sequence these are; None of one record."""
        return stderr_of_mean(self._by_record(sums_S), self._counts_G)

    def _by_record(self, values_S: Tensor) -> Tensor:
        return torch.zeros(self._num_records, dtype=torch.float64).index_add_(0, self._place_S, values_S)
