"""Facts: what the headers of a cache say, summed over the shards that are there, and never with torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distillcache.inspect.facts import facts, verify
from distillcache_shards.errors import CacheError
from distillcache_shards.rows import SAMPLED, Rows
from tests.inspect.word_cache import word_cache
from tests.shards.compact_cache import compact_tilted_cache
from tests.shards.small_cache import LENGTHS


def test_facts_are_those_of_the_cache(tmp_path: Path) -> None:
    """Counts of the plan, names of the teacher, and the codec with its parameters."""
    small = word_cache(tmp_path / "cache", kind=SAMPLED)
    found = facts(tmp_path / "cache")
    assert (found.sequences, found.records, found.tokens) == (10, 5, sum(LENGTHS))
    assert found.rows == sum(len(rows) for rows in small.rows)
    assert found.supervised_share == found.rows / found.tokens
    assert found.longest_sequence == max(LENGTHS)
    assert (found.shards, found.shards_missing) == (3, "none")
    assert found.row["kind"] == SAMPLED
    assert found.teacher == {"name": "somebody", "revision": None, "parameters": 7, "sha256": "b" * 64}
    assert found.tokenizer == {"sha256": "a" * 64, "vocab_size": 300}
    assert found.codec == {"id": "plain", "logprobs": "f32", "block_rows": 8}
    assert found.settings == {"corpus": "prose"}
    assert found.plan_sha256 == small.plan().sha256
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_a_tilted_cache_has_facts_like_any(tmp_path: Path) -> None:
    """Its codec by name, and its ids and draws counted."""
    small = word_cache(tmp_path / "cache", make=compact_tilted_cache)
    found = facts(tmp_path / "cache")
    rows = Rows.concatenate(small.rows)
    assert found.codec == {"id": "compact-tilted", "units": 100, "draw_units": 4, "block_rows": 8}
    assert (found.kept_a_row, found.draws_a_row) == (rows.num_kept / len(rows), rows.num_draws / len(rows))
    assert found.mass_kept == pytest.approx(1 - rows.tail_mass.mean(), abs=1e-4)
    assert verify(tmp_path / "cache") == []


def test_means_are_over_rows_and_not_over_shards(tmp_path: Path) -> None:
    """A shard counts by its rows; the largest loss of the codec is that of the worst shard."""
    small = word_cache(tmp_path / "cache")
    found = facts(tmp_path / "cache")
    rows = Rows.concatenate(small.rows)
    # Headers hold four digits.
    assert found.mass_kept == pytest.approx(1 - rows.tail_mass.mean(), abs=1e-4)
    assert found.entropy_nats == pytest.approx(rows.entropy.mean(), abs=1e-4)
    counts = [sum(len(each) for each in small.rows[a:b]) for a, b in ((0, 4), (4, 8), (8, 10))]
    assert len(set(counts)) == 3
    assert found.codec_kl_nats == pytest.approx(np.dot(counts, [1, 2, 3]) / sum(counts) / 1024)
    assert found.codec_kl_max_nats == 3 / 64


def test_bytes_are_those_of_the_files(tmp_path: Path) -> None:
    """All of the folder, and a token's share of the shards by what they are for."""
    word_cache(tmp_path / "cache")
    found = facts(tmp_path / "cache")
    sizes = {file: file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert found.cache_bytes == sum(sizes.values())
    in_shards = sum(size for file, size in sizes.items() if file.name.startswith("shard-"))
    parts = dict(found.bytes_a_token)
    assert parts.pop("all") == in_shards / found.tokens
    assert sum(parts.values()) == pytest.approx(in_shards / found.tokens)
    assert parts["tokens"] == 2


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ((), "0-9"),
        ((0, 2, 4, 5, 9), "1, 3, 6-8"),
        ((0, 1, 2, 3, 4, 5, 6, 7, 8), "9"),
        (tuple(range(10)), "none"),
    ],
)
def test_missing_shards_are_told_in_ranges(tmp_path: Path, there: tuple[int, ...], missing: str) -> None:
    """And means are over those that are there, bytes a token too."""
    word_cache(tmp_path / "cache", sequences_a_shard=1, shards=there)
    found = facts(tmp_path / "cache")
    assert (found.shards, found.shards_missing) == (10, missing)
    assert found.tokens == sum(LENGTHS)
    assert (found.mass_kept > 0) == bool(there)
    if there:
        sizes = [(tmp_path / "cache" / f"shard-{n:05d}.safetensors").stat().st_size for n in there]
        assert found.bytes_a_token["all"] == sum(sizes) / sum(LENGTHS[n] for n in there)
    else:
        assert found.bytes_a_token == {}


def test_a_cache_of_no_sequences_has_facts(tmp_path: Path) -> None:
    """No share and no mean is divided by nothing."""
    word_cache(tmp_path / "cache", lengths=())
    found = facts(tmp_path / "cache")
    assert (found.sequences, found.supervised_share, found.longest_sequence) == (0, 0, 0)
    assert found.shards_missing == "none"


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    """With what makes one."""
    with pytest.raises(CacheError, match=r"is not a cache; found no cache\.json; make one by"):
        facts(tmp_path)


def test_looking_into_a_cache_needs_no_torch(tmp_path: Path) -> None:
    """Nor transformers, for any of the three views: inspection starts at once."""
    word_cache(tmp_path / "cache")
    code = (
        "import sys; from pathlib import Path; from distillcache.inspect.facts import *\n"
        "folder = Path(sys.argv[1]); facts(folder), verify(folder), sequence_view(folder, 2)\n"
        "print(sorted({'torch', 'transformers', 'typer', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "cache"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
