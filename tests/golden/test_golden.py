"""Golden folders: what an older release wrote is read to the same arrays, and written to the same bytes.

A golden file that is missing fails its test; tests/golden/make.py says how one is made.
"""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

from distillcache.inspect.facts import verify
from distillcache_shards.rows import KINDS, SAMPLED, TOPK
from tests.golden.make import GOLDEN, HERE, TABLE, arrays_of, cache_of, golden_cache, make, wanted_arrays
from tests.golden.reader import read_cache

PLAIN = [name for name in GOLDEN if name.startswith("plain")]


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Equal to the bit, in type and shape too; tables of the codec aside."""
    wanted = {name: array for name, array in wanted.items() if not name.startswith(TABLE)}
    assert found.keys() == wanted.keys()
    for each, array in wanted.items():
        assert (found[each].dtype, found[each].shape) == (array.dtype, array.shape), each
        np.testing.assert_array_equal(found[each], array, err_msg=each)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_folder_is_read_to_its_arrays(name: str) -> None:
    """Every array is equal to the bit, in type and shape too, and no byte is found at fault."""
    assert_same(arrays_of(HERE / name), wanted_arrays(name))
    assert verify(HERE / name) == []


@pytest.mark.parametrize("name", GOLDEN)
def test_the_page_is_enough_to_read_a_golden_folder(name: str) -> None:
    """A reader that was written from FORMAT.md alone finds the same, to the bit."""
    assert_same(read_cache(HERE / name), wanted_arrays(name))


def test_the_second_reader_knows_the_page_alone() -> None:
    """Under 200 lines, with numpy and zstandard and nothing of ours."""
    text = (HERE / "reader.py").read_text()
    assert len(text.splitlines()) < 200
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [e.name for e in node.names]
        )
    }
    assert imported - sys.stdlib_module_names == {"numpy", "zstandard"}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_cache_is_written_to_equal_bytes_and_read_to_equal_arrays(name: str, tmp_path: Path) -> None:
    """Twice from the same arrays; what is read again is what the golden folder holds."""
    wanted = wanted_arrays(name)
    one, two = (cache_of(name, wanted).write(tmp_path / each) for each in ("one", "two"))
    assert contents(one) == contents(two)
    assert_same(arrays_of(one), wanted)


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_cache_is_written_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Plan, index and shards; only `plain`, since other bytes depend on the version of zstandard."""
    written = cache_of(name, wanted_arrays(name)).write(tmp_path / name)
    assert contents(written) == contents(HERE / name)
    assert len(contents(written)) == 4


def test_golden_folders_hold_what_is_hard_to_read() -> None:
    """Every codec and kind, two widths of ids, a sequence without rows, and rows in several blocks."""
    kinds = {(cache.codec, cache.kind) for cache in map(golden_cache, GOLDEN)}
    general = {(codec, kind) for codec in ("plain", "zstd") for kind in KINDS}
    assert kinds == general | {(f"compact-{each}", SAMPLED) for each in ("sampled", "tilted")} | {
        ("compact-topk", TOPK)
    }
    for name in GOLDEN:
        wanted = wanted_arrays(name)
        rows = np.diff(wanted["row_offsets"])
        assert rows.min() == 0 and rows.max() > 8
        assert len(set(np.diff(wanted["head_offsets"]).tolist())) > 2
        assert (wanted["head_ids"].max() > 1 << 16) == name.endswith("big")
    draws = np.diff(wanted_arrays("compact-rs-kd")["draw_offsets"])
    assert draws.max() > 10 and len(set(draws.tolist())) > 2


@pytest.mark.parametrize("name", [name for name in GOLDEN if "tilted" in name])
def test_golden_tilted_rows_are_of_many_factors(name: str) -> None:
    """Some without a head or without draws, one whose likeliest id is not the first, and an id drawn twice.

    Draws weigh unlike each other, and the mass of a row is not 1.
    """
    wanted = wanted_arrays(name)
    heads, draws = (np.diff(wanted[each]) for each in ("head_offsets", "draw_offsets"))
    assert heads.min() == draws.min() == 0
    row_H, row_D = np.repeat(np.arange(len(heads)), heads), np.repeat(np.arange(len(draws)), draws)
    rises = (np.diff(wanted["head_logprobs"]) > 0) & (np.diff(row_H) == 0)
    again = (np.diff(wanted["draw_ids"]) == 0) & (np.diff(row_D) == 0)
    assert rises.any() and again.any()
    assert len(set(wanted["draw_weights"].tolist())) > 20
    drawn_N = np.bincount(row_D, wanted["draw_weights"], len(draws))
    assert (np.abs(drawn_N - wanted["tail_mass"]) > 0.01).any()
    assert {"codec.tilt", "codec.common", "codec.fronts"} < wanted.keys()


def test_a_golden_folder_is_never_made_again() -> None:
    """What it holds is a promise, not a result."""
    with pytest.raises(FileExistsError):
        make("plain-topk")
