"""Rows: parts of rows, rows one after another, and what is no rows at all."""

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillcache_shards.rows import KINDS, SAMPLED, TOPK, Rows
from tests.shards.compact_cache import THRESHOLD, tilt_table, tilted_grid, tilted_rows
from tests.shards.small_cache import assert_same_rows, random_rows

VOCAB_SIZE = 50
TILTED = "tilted"


def rows_of(seed: int, kind: str, num_rows: int) -> Rows:
    """Rows of chance, of a kind or tilted."""
    random = np.random.default_rng(seed)
    if kind == TILTED:
        return tilted_rows(random, num_rows, tilted_grid(THRESHOLD, tilt_table(VOCAB_SIZE)))
    return random_rows(random, kind, num_rows, VOCAB_SIZE)


rows_of_any_kind = st.builds(
    rows_of, st.integers(0, 1000), st.sampled_from([*KINDS, TILTED]), st.integers(0, 12)
)


@given(rows_of_any_kind, st.integers(-15, 15), st.integers(-15, 15))
def test_a_slice_is_its_rows(rows: Rows, start: int, stop: int) -> None:
    """As a list's; each row has its own ids, draws and values, and the slice is sound by itself."""
    part = rows[start:stop]
    numbers = range(len(rows))[start:stop]
    assert len(part) == len(numbers)
    assert part.fault(VOCAB_SIZE) is None
    for place, number in enumerate(numbers):
        assert_same_rows(part[place : place + 1], rows[number : number + 1])
        head = slice(*rows.head_offsets[number : number + 2].tolist())
        draws = slice(*rows.draw_offsets[number : number + 2].tolist())
        one = part[place : place + 1]
        assert one.head_ids.tolist() == rows.head_ids[head].tolist()
        assert one.head_logprobs.tolist() == rows.head_logprobs[head].tolist()
        assert one.draw_ids.tolist() == rows.draw_ids[draws].tolist()
        if rows.draw_weights is not None:
            assert one.draw_weights is not None
            assert one.draw_weights.tolist() == rows.draw_weights[draws].tolist()
        assert (one.tail_mass[0], one.entropy[0]) == (rows.tail_mass[number], rows.entropy[number])


@given(rows_of_any_kind, st.lists(st.integers(0, 12), max_size=4))
def test_rows_that_were_cut_are_the_same_when_joined(rows: Rows, cuts: list[int]) -> None:
    """Wherever they are cut, into empty parts too."""
    places = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = [rows[a:b] for a, b in pairwise(places)]
    assert_same_rows(Rows.concatenate(parts), rows)


def test_rows_that_are_tilted_join_no_others() -> None:
    """What their draws weigh would be lost; none at all are of either sort."""
    tilted, others = rows_of(0, TILTED, 9), rows_of(0, SAMPLED, 9)
    assert tilted.num_draws and others.num_draws
    with pytest.raises(AssertionError):
        Rows.concatenate([tilted, others])
    assert_same_rows(Rows.concatenate([Rows.empty(SAMPLED), tilted]), tilted)
    assert_same_rows(Rows.concatenate([Rows.empty(SAMPLED), others]), others)


def test_a_slice_shares_its_memory() -> None:
    """Reading a sequence out of a block copies no ids."""
    rows = rows_of(0, TILTED, 9)
    part = rows[2:7]
    for name in ("head_ids", "head_logprobs", "tail_mass", "draw_ids", "entropy", "draw_weights"):
        assert np.shares_memory(getattr(part, name), getattr(rows, name)), name


def test_counts_are_of_ids_and_draws() -> None:
    """Of all rows together."""
    rows = random_rows(np.random.default_rng(0), SAMPLED, 30, VOCAB_SIZE)
    assert (rows.num_kept, rows.num_draws) == (rows.head_offsets[-1], rows.draw_offsets[-1])
    assert repr(rows) == f"<30 sampled rows, {rows.num_kept} kept ids, {rows.num_draws} draws>"


def test_rows_of_one_k_are_made_from_matrices() -> None:
    """Row n of the matrices is row n, without draws."""
    ids_NK = np.arange(6, dtype=np.int64).reshape(2, 3)
    logprobs_NK = np.log(np.array([[0.5, 0.2, 0.1], [0.4, 0.3, 0.2]]))
    rows = Rows.top_k(ids_NK, logprobs_NK, np.array([0.2, 0.1]), np.array([1.0, 2.0]))
    assert rows.fault(6) is None
    assert rows.kind == TOPK
    assert rows[1:].head_ids.tolist() == [3, 4, 5]
    np.testing.assert_allclose(np.exp(rows[:1].head_logprobs), [0.5, 0.2, 0.1], rtol=1e-6)
    assert rows.draw_offsets.tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_are_rows(kind: str) -> None:
    """Sound, and of any kind."""
    assert len(Rows.empty(kind)) == 0
    assert Rows.empty(kind).fault(1) is None


def changed(name: str, place: int | slice, value: float) -> Any:
    """Rows with one value of an array changed, or all."""

    def change(rows: Rows) -> Rows:
        array = getattr(rows, name).copy()
        array[place] = value
        return dataclasses.replace(rows, **{name: array})

    return change


def shorter(name: str) -> Any:
    """Rows that lack the last value of an array."""
    return lambda rows: dataclasses.replace(rows, **{name: getattr(rows, name)[:-1]})


FAULTS = {
    "kind": (lambda rows: dataclasses.replace(rows, kind="all"), "a kind of row that does not exist: 'all'"),
    "a tail too few": (shorter("tail_mass"), "arrays of unequal length for 9 rows"),
    "an entropy too few": (shorter("entropy"), "arrays of unequal length for 9 rows"),
    "an offset of draws too few": (shorter("draw_offsets"), "arrays of unequal length for 9 rows"),
    "an id too few": (shorter("head_ids"), "offsets that do not count the kept"),
    "a draw too few": (shorter("draw_ids"), "offsets that do not count the draws"),
    "a value too few": (shorter("head_logprobs"), "log-probabilities for"),
    "offsets that begin late": (changed("head_offsets", 0, 1), "offsets that do not count the kept"),
    "offsets that fall": (changed("head_offsets", 4, 1000), "offsets that do not count the kept"),
    "draws that begin late": (changed("draw_offsets", 0, 1), "offsets that do not count the draws"),
    "draws that fall": (changed("draw_offsets", 4, 1000), "offsets that do not count the draws"),
    "the id V": (changed("head_ids", 3, VOCAB_SIZE), "a kept id outside the vocabulary of 50"),
    "the id -1": (changed("head_ids", 3, -1), "a kept id outside the vocabulary of 50"),
    "the draw V": (changed("draw_ids", 3, VOCAB_SIZE), "a drawn id outside the vocabulary of 50"),
    "the draw -1": (changed("draw_ids", 3, -1), "a drawn id outside the vocabulary of 50"),
    "a value that is no number": (changed("head_logprobs", 3, np.nan), "a log-probability that is none"),
    "a value of probability 0": (changed("head_logprobs", 3, -np.inf), "a log-probability that is none"),
    "a value over 0": (changed("head_logprobs", 3, 0.002), "a log-probability that is none"),
    "a tail that is no number": (changed("tail_mass", 3, np.nan), "a tail mass outside 0 to 1"),
    "a tail below 0": (changed("tail_mass", 3, -1e-6), "a tail mass outside 0 to 1"),
    "a tail over 1": (changed("tail_mass", 3, 1.002), "a tail mass outside 0 to 1"),
    "an entropy that is no number": (changed("entropy", 3, np.nan), "an entropy that is none"),
    "an endless entropy": (changed("entropy", 3, np.inf), "an entropy that is none"),
    "an entropy below 0": (changed("entropy", 3, -1e-6), "an entropy that is none"),
}


@pytest.mark.parametrize(("change", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_in_words(change: Any, fault: str) -> None:
    """Everything that makes rows none; the same rows without it are sound."""
    rows = random_rows(np.random.default_rng(0), SAMPLED, 9, VOCAB_SIZE)
    assert rows.fault(VOCAB_SIZE) is None
    assert fault in (change(rows).fault(VOCAB_SIZE) or "")


BOUNDS = {
    "the last id": changed("head_ids", 3, VOCAB_SIZE - 1),
    "the first id": changed("head_ids", 3, 0),
    "certainty": changed("head_logprobs", 3, 0.0),
    "the smallest probability": changed("head_logprobs", 3, np.finfo(np.float32).min),
    "no tail": changed("tail_mass", 3, 0.0),
    "all tail": changed("tail_mass", 3, 1.0),
    "no entropy": changed("entropy", 3, 0.0),
}


@pytest.mark.parametrize("change", BOUNDS.values(), ids=BOUNDS)
def test_what_is_just_within_the_bounds_is_sound(change: Any) -> None:
    """Each bound from the other side."""
    rows = random_rows(np.random.default_rng(0), SAMPLED, 9, VOCAB_SIZE)
    assert change(rows).fault(VOCAB_SIZE) is None


TILTED_FAULTS = {
    "a weight too few": (shorter("draw_weights"), "draws without a weight of their own"),
    "a weight that is no number": (changed("draw_weights", 3, np.nan), "draws without a weight of their own"),
    "an endless weight": (changed("draw_weights", 3, np.inf), "draws without a weight of their own"),
    "no weight": (changed("draw_weights", 3, 0.0), "draws without a weight of their own"),
    "a weight below 0": (changed("draw_weights", 3, -0.1), "draws without a weight of their own"),
    "a weight over 1": (changed("draw_weights", 3, 1.0001), "draws without a weight of their own"),
    "a value over 3": (changed("head_logprobs", 3, 1.1), "a log-probability that is none"),
    "a tail over 1": (changed("tail_mass", 3, 1.002), "a tail mass outside 0 to 1"),
}


@pytest.mark.parametrize(("change", "fault"), TILTED_FAULTS.values(), ids=TILTED_FAULTS)
def test_a_fault_of_tilted_rows_is_told_in_words(change: Any, fault: str) -> None:
    """Every draw weighs something, at most 1; a value may be rounded up to above 1, but not far."""
    rows = rows_of(0, TILTED, 9)
    assert rows.fault(VOCAB_SIZE) is None
    assert fault in (change(rows).fault(VOCAB_SIZE) or "")


TILTED_BOUNDS = {
    "a draw of weight 1": changed("draw_weights", 3, 1.0),
    "a draw of next to none": changed("draw_weights", 3, 1e-30),
    "a value over 1": changed("head_logprobs", 3, 1.09),
    "more than certainty in all": changed("head_logprobs", slice(None), 0.0),
}


@pytest.mark.parametrize("change", TILTED_BOUNDS.values(), ids=TILTED_BOUNDS)
def test_what_is_just_within_the_bounds_of_tilted_rows_is_sound(change: Any) -> None:
    """Each bound from the other side; their mass is bound by nothing."""
    assert change(rows_of(0, TILTED, 9)).fault(VOCAB_SIZE) is None


@given(rows_of_any_kind)
def test_what_a_writer_would_not_leave_is_told(rows: Rows) -> None:
    """An id twice in one head, a head that rises, draws that fall; never what is of two rows.

    In tilted rows a value may follow a smaller one.
    """
    assert rows.disorder() is None

    def swapped(name: str, place: int) -> Rows:
        array = getattr(rows, name).copy()
        array[place : place + 2] = array[place : place + 2][::-1]
        return dataclasses.replace(rows, **{name: array})

    for start, end in pairwise(rows.head_offsets.tolist()):
        if end - start > 1:
            ids = rows.head_ids.copy()
            ids[end - 1] = ids[start]
            assert dataclasses.replace(rows, head_ids=ids).disorder() == "an id twice in a row"
            if rows.head_logprobs[start] > rows.head_logprobs[start + 1]:
                fault = "a head out of order" if rows.draw_weights is None else None
                assert swapped("head_logprobs", start).disorder() == fault
    for start, end in pairwise(rows.draw_offsets.tolist()):
        if end - start > 1 and rows.draw_ids[start] < rows.draw_ids[start + 1]:
            assert swapped("draw_ids", start).disorder() == "draws out of order"
