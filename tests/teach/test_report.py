"""Claims about the report: every figure is what the cache and the teacher themselves give."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from distillcache.teach.events import Event, Planned, Progress, TeachReport
from distillcache_cli.app import run
from distillcache_shards.cache import Cache
from tests.teach.direct import Comparison, compare
from tests.teach.teaching import (
    NUM_IDS,
    command_line,
    contents,
    documents,
    teach_into,
    write_records,
)


@pytest.fixture(scope="module")
def run_of(
    teacher: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TeachReport, list[Event], Cache]:
    """A report, the events before it, and the cache they speak of; batches of a few sequences."""
    folder, events = tmp_path_factory.mktemp("caches") / "cache", []
    report = teach_into(folder, teacher, corpus, on_event=events.append, batch_tokens=200)
    return report, events, Cache.open(folder)


@pytest.fixture(scope="module")
def direct(run_of: tuple[TeachReport, list[Event], Cache], teacher: Path) -> Comparison:
    """The same rows from the model alone."""
    return compare(run_of[2], AutoModelForCausalLM.from_pretrained(teacher).eval(), NUM_IDS)


def bucket_kl(p_NK: np.ndarray, p_tail_N: np.ndarray, q_NK: np.ndarray, q_tail_N: np.ndarray) -> np.ndarray:
    """KL(p || q) over K ids and a bucket for the rest, both scaled to a sum of 1."""
    p, q = np.column_stack([p_NK, p_tail_N]), np.column_stack([q_NK, q_tail_N])
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return (p * np.log(p / q)).sum(1)


def test_report_says_what_the_teacher_said(
    run_of: tuple[TeachReport, list[Event], Cache], direct: Comparison
) -> None:
    """Mass kept and entropy are means over all rows, before the codec rounds anything."""
    report = run_of[0]
    assert report.rows == len(direct)
    assert report.mass_kept == pytest.approx(1 - direct.direct_tail_N.mean(), abs=1e-5)
    assert report.entropy_nats == pytest.approx(direct.direct_entropy_N.mean(), abs=1e-5)


def test_report_says_what_the_codec_lost(
    run_of: tuple[TeachReport, list[Event], Cache], direct: Comparison
) -> None:
    """KL of what comes back to what the teacher said, mean and worst; the tail is kept in full."""
    report = run_of[0]
    said = np.exp(direct.kept_NK), direct.direct_tail_N
    kl_N = bucket_kl(*said, np.exp(direct.cached_NK), direct.tail_mass_N)
    assert report.codec_kl_nats > 0
    assert report.codec_kl_nats == pytest.approx(kl_N.mean(), rel=0.01)
    assert report.codec_kl_max_nats == pytest.approx(kl_N.max(), rel=0.01)


def test_every_shard_says_its_own_share(run_of: tuple[TeachReport, list[Event], Cache]) -> None:
    """The figures lie in each shard; the report is their mean, weighed by rows."""
    report, _, cache = run_of
    shards = [cache.shard(number) for number in range(cache.num_shards)]
    weights = [shard.num_rows for shard in shards]
    assert sum(weights) == report.rows
    assert sum(shard.num_kept for shard in shards) == pytest.approx(report.kept_a_row * report.rows)
    assert sum(shard.num_draws for shard in shards) == pytest.approx(report.draws_a_row * report.rows)
    for name in ("mass_kept", "entropy_nats", "codec_kl_nats", "row_bytes"):
        values = [shard.fidelity[name] for shard in shards]
        assert len(set(values)) > 1
        assert getattr(report, name) == pytest.approx(np.average(values, weights=weights), rel=1e-9)
    worst = max(shard.fidelity["codec_kl_max_nats"] for shard in shards)
    assert report.codec_kl_max_nats == worst


def test_bytes_are_those_of_the_files(run_of: tuple[TeachReport, list[Event], Cache]) -> None:
    """A row's bytes are those of its block, a token's those of all files but the tokenizer's."""
    report, _, cache = run_of
    files = {name: len(each) for name, each in contents(cache.folder).items() if each is not None}
    assert report.cache_bytes == sum(files.values())
    beside = sum(size for name, size in files.items() if not name.startswith("tokenizer/"))
    assert report.token_bytes == pytest.approx(beside / cache.num_tokens, rel=1e-9)
    rows_bytes = [cache.shard(number).part_bytes()["rows"] for number in range(cache.num_shards)]
    blocks = sum(cache.shard(number).num_blocks for number in range(cache.num_shards))
    # Blocks begin at multiples of 8 bytes.
    assert 0 <= sum(rows_bytes) - report.row_bytes * report.rows < 8 * blocks


def test_counts_are_those_of_the_cache(run_of: tuple[TeachReport, list[Event], Cache]) -> None:
    """Sequences, tokens, rows and shards, and the teacher's name without its folder."""
    report, _, cache = run_of
    lengths = [len(cache[index].tokens) for index in range(len(cache))]
    rows = [len(cache[index].rows) for index in range(len(cache))]
    assert (report.sequences, report.tokens, report.rows) == (len(lengths), sum(lengths), sum(rows))
    assert (report.shards, report.shards_missing, report.shards_redone) == (cache.num_shards, 0, 0)
    assert report.tokens_taught == report.tokens
    assert report.tokens_per_second == pytest.approx(report.tokens / report.teach_seconds)
    assert report.teacher == "tiny"


@pytest.mark.parametrize("k", [4, 64])
def test_bytes_of_the_plain_codec_are_exact(k: int, teacher: Path, corpus: Path, tmp_path: Path) -> None:
    """What the format says of a row, and one more offset a block, 4 bytes."""
    report = teach_into(tmp_path / "cache", teacher, corpus, codec="plain", k=k)
    cache = Cache.open(tmp_path / "cache")
    blocks = sum(cache.shard(number).num_blocks for number in range(cache.num_shards))
    assert report.row_bytes == pytest.approx(9 + 4 * k + 4 * blocks / report.rows, rel=1e-6)


def test_bytes_written_a_token_do_not_depend_on_the_size_of_the_corpus(teacher: Path, tmp_path: Path) -> None:
    """Eight times the corpus: the same a token, and every byte of a shard is written once."""
    written = {}
    for count in (12, 96):
        source = write_records(tmp_path / f"{count}.jsonl", documents(count))
        cache, events = tmp_path / str(count), []
        report = teach_into(cache, teacher, source, on_event=events.append, shard_rows=400)
        assert report.shards >= count / 12
        far = [each for each in events if isinstance(each, Progress)][-1]
        assert far.bytes_written == sum(each.stat().st_size for each in cache.glob("shard-*"))
        written[count] = far.bytes_written / report.tokens
    assert written[96] == pytest.approx(written[12], rel=0.1)


def test_progress_never_falls_and_ends_at_the_totals(
    run_of: tuple[TeachReport, list[Event], Cache],
) -> None:
    """Shards, tokens, rows and bytes; several events a shard, since a shard is several batches."""
    report, events, cache = run_of
    assert isinstance(events[0], Planned) and events[0].num_shards == cache.num_shards
    far = [each for each in events if isinstance(each, Progress)]
    for name in ("shards_done", "tokens_done", "rows_done", "bytes_written"):
        values = [getattr(each, name) for each in far]
        assert values == sorted(values) and values[0] < values[-1], name
    assert len(far) >= 2 * cache.num_shards
    assert all(each.tokens_done <= each.tokens_total == report.tokens for each in far)
    last = far[-1]
    assert (last.shards_done, last.shards_total) == (report.shards, report.shards)
    assert (last.tokens_done, last.rows_done) == (report.tokens, report.rows)
    assert last.seconds_left == 0


def test_json_is_the_report(
    teacher: Path, corpus: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One object on stdout, the same names and figures as the library's; all else is on stderr."""
    capfd.readouterr()
    assert run([*command_line(cache, teacher, corpus), "--json"]) == 0
    found: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert found == teach_into(cache, teacher, corpus).to_dict()
