"""Tables of the compact codecs, under checksums that are right: what is no order and no levels is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distillcache_shards.cache import Cache
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.errors import CorruptError
from tests.hostile.confined import lines_within_a_gigabyte, problems
from tests.hostile.forge import Forgery, forge_index
from tests.hostile.line import assert_line
from tests.hostile.refusal import assert_refused, read_all
from tests.hostile.subjects import subject

Change = Callable[[np.ndarray], np.ndarray]


def in_table(name: str, change: Change) -> Callable[[Forgery], None]:
    """A table of the codec, changed."""

    def forged(it: Forgery) -> None:
        it.arrays[f"codec.{name}"] = change(it.arrays[f"codec.{name}"].copy())

    return forged


def with_value(place: int, value: float) -> Change:
    """One element, changed."""

    def changed(table: np.ndarray) -> np.ndarray:
        table.reshape(-1)[place] = value
        return table

    return changed


def without(name: str) -> Callable[[Forgery], object]:
    """No such table."""
    return lambda it: it.arrays.pop(f"codec.{name}")


def twice(table: np.ndarray) -> np.ndarray:
    """The first id once more in place of the second, in one order alone."""
    table.reshape(-1)[1] = table.reshape(-1)[0]
    return table


NO_ORDERS, NO_LEVELS = "has no orders of its vocabulary", "has no levels of log-probability"
ORDERS: dict[str, Callable[[Forgery], object]] = {
    "no common order": without("common"),
    "no fronts": without("fronts"),
    "an id twice in the common order": in_table("common", twice),
    "an id twice in a front": in_table("fronts", twice),
    "an id of the common order past the vocabulary": in_table("common", with_value(0, 300)),
    "an id of a front past the vocabulary": in_table("fronts", with_value(-1, 65_535)),
    "no orders": in_table("fronts", lambda table: table[:0]),
    "too many orders": in_table("fronts", lambda table: np.repeat(table[:1], 257, 0)),
    "orders in a row": in_table("fronts", lambda table: table.reshape(-1)),
    "a common order of two axes": in_table("common", lambda table: table[:, None]),
    "orders in a wider type": in_table("fronts", lambda table: table.astype("<u4")),
    "orders in floats": in_table("common", lambda table: table.astype("<f4")),
    "a common order longer than the vocabulary": in_table(
        "common", lambda table: np.arange(301, dtype="<u2")
    ),
}
NO_TILT, HEAVY = "has no tilt of its vocabulary", "has a tilt by which a draw would weigh more than 1"
TILTS: dict[str, tuple[Callable[[Forgery], object], str]] = {
    "no tilt": (without("tilt"), NO_TILT),
    "a tilt of an id too few": (in_table("tilt", lambda table: table[:-1]), NO_TILT),
    "a tilt of an id too many": (in_table("tilt", lambda table: np.append(table, table[:1])), NO_TILT),
    "a tilt of no ids": (in_table("tilt", lambda table: table[:0]), NO_TILT),
    "a tilt of two axes": (in_table("tilt", lambda table: table[:, None]), NO_TILT),
    "a tilt in a wider type": (in_table("tilt", lambda table: table.astype("<u2")), NO_TILT),
    "a tilt in floats": (in_table("tilt", lambda table: table.astype("<f4")), NO_TILT),
    # A draw is 1/25 of probability after the tilt, and 2^(-75 / 16) is less.
    "a factor below the threshold": (in_table("tilt", with_value(7, 128 - 75)), HEAVY),
    "the smallest factor": (in_table("tilt", with_value(-1, 0)), HEAVY),
}
LEVELS: dict[str, Callable[[Forgery], object]] = {
    "no levels": without("levels"),
    "one level": in_table("levels", lambda table: table[:1]),
    "too many levels": in_table("levels", lambda table: -np.arange(4097, dtype="<f4")),
    "a level that is no number": in_table("levels", with_value(3, np.nan)),
    "an endless level": in_table("levels", with_value(-1, -np.inf)),
    "a first level above certainty": in_table("levels", with_value(0, 1.0)),
    "a first level below certainty": in_table("levels", lambda table: table[1:]),
    "levels that rise": in_table("levels", lambda table: np.concatenate([table, table[-2:-1]])),
    "a level twice": in_table("levels", lambda table: np.repeat(table, 2)),
    "levels in bytes": in_table("levels", lambda table: table.astype("u1")),
    "levels of two axes": in_table("levels", lambda table: table[:, None]),
}
FAULTS = [
    *(
        (name, change, NO_ORDERS)
        for name in ("compact topk", "compact sampled", "compact tilted")
        for change in ORDERS.values()
    ),
    *(("compact topk", change, NO_LEVELS) for change in LEVELS.values()),
    *(("compact tilted", change, fault) for change, fault in TILTS.values()),
]
NAMES = [
    *(f"{kind}, {each}" for kind in ("topk", "sampled", "tilted") for each in ORDERS),
    *LEVELS,
    *TILTS,
]


@pytest.mark.parametrize(("name", "change", "fault"), FAULTS, ids=NAMES)
def test_tables_that_are_none_are_refused(
    name: str, change: Callable[[Forgery], object], fault: str, tmp_path: Path
) -> None:
    """Orders that are no permutations, levels that do not fall, a tilt that is too small, and other types."""
    folder = subject(name).write(tmp_path / "cache")
    forge_index(folder, change)
    assert_refused(folder, "index.safetensors", fault, CorruptError)


@pytest.mark.parametrize("name", ["compact topk", "compact sampled", "compact tilted"])
def test_an_index_that_is_sealed_again_is_read(name: str, tmp_path: Path) -> None:
    """What these forgeries do by themselves changes nothing; nor do other sound tables, without a trace."""
    folder = subject(name).write(tmp_path / "cache")
    forge_index(folder, lambda it: None)
    read_all(folder)
    assert problems(folder) == []


def test_a_factor_that_is_just_the_threshold_is_read(tmp_path: Path) -> None:
    """The bound from the other side: 1/32, exactly, and a draw of this id weighs 1."""
    folder = subject("compact tilted", grid=Grid(64, 2)).write(tmp_path / "cache")
    forge_index(folder, in_table("tilt", with_value(7, 128 - 5 * 16)))
    cache = Cache.open(folder)
    assert cache.thresholds is not None and cache.thresholds[7] == 1
    forge_index(folder, in_table("tilt", with_value(7, 128 - 5 * 16 - 1)))
    assert_refused(folder, "index.safetensors", HEAVY, CorruptError)


def test_many_orders_of_a_large_vocabulary_are_refused(tmp_path: Path) -> None:
    """A kilobyte of fronts would be laid out as a gigabyte of places."""
    folder = subject("compact topk", vocab_size=1 << 20).write(tmp_path / "cache")
    forge_index(folder, in_table("fronts", lambda table: np.repeat(table[:1, :1], 256, 0)))
    said, found = lines_within_a_gigabyte(folder)
    for line in (said, *found):
        assert_line(line, "index.safetensors", NO_ORDERS)


def test_as_many_orders_as_a_vocabulary_may_have_fit(tmp_path: Path) -> None:
    """The bound from the other side: 2^25 places in all."""
    folder = subject("compact topk", vocab_size=1 << 20).write(tmp_path / "cache")
    forge_index(folder, in_table("fronts", lambda table: np.resize(table, (32, table.shape[1]))))
    assert lines_within_a_gigabyte(folder) == ("", [])
