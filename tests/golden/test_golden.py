"""Golden folders: what an older release wrote is read to the same arrays, and written to the same bytes.

A golden file that is missing fails its test; tests/golden/make.py says how one is made.
"""

from pathlib import Path

import numpy as np
import pytest

from distillcache.inspect.facts import verify
from distillcache_shards.rows import KINDS
from tests.golden.make import GOLDEN, HERE, arrays_of, cache_of, make, wanted_arrays

PLAIN = [name for name in GOLDEN if name.startswith("plain")]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_folder_is_read_to_its_arrays(name: str) -> None:
    """Every array is equal to the bit, in type and shape too, and no byte is found at fault."""
    found, wanted = arrays_of(HERE / name), wanted_arrays(name)
    assert found.keys() == wanted.keys()
    for each, array in wanted.items():
        assert (found[each].dtype, found[each].shape) == (array.dtype, array.shape), each
        np.testing.assert_array_equal(found[each], array, err_msg=each)
    assert verify(HERE / name) == []


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_cache_is_written_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Plan, index and shards; only `plain`, since other bytes depend on the version of zstandard."""
    written = cache_of(name, wanted_arrays(name)).write(tmp_path / name)
    golden = {file.name: file.read_bytes() for file in (HERE / name).iterdir()}
    assert {file.name: file.read_bytes() for file in written.iterdir()} == golden
    assert len(golden) == 4


def test_golden_folders_hold_what_is_hard_to_read() -> None:
    """Both kinds for either codec, two widths of ids, a sequence without rows, and rows in several blocks."""
    assert {(how["codec"], how["kind"]) for how in GOLDEN.values()} >= {
        (codec, kind) for codec in ("plain", "zstd") for kind in KINDS
    }
    for name in GOLDEN:
        wanted = wanted_arrays(name)
        rows = np.diff(wanted["row_offsets"])
        assert rows.min() == 0 and rows.max() > 8
        assert len(set(np.diff(wanted["head_offsets"]).tolist())) > 2
        assert (wanted["head_ids"].max() > 1 << 16) == name.endswith("big")


def test_a_golden_folder_is_never_made_again() -> None:
    """What it holds is a promise, not a result."""
    with pytest.raises(FileExistsError):
        make("plain-topk")
