"""Every kind of row and codec through `teach`: what was asked for is in the cache, and where it belongs."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from distillcache.config import load_config
from distillcache.errors import ConfigError
from distillcache.teach.calibrate import FEWEST_ROWS, MOST_ROWS, calibration_sequences
from distillcache.teach.config import TeachConfig
from distillcache.teach.fidelity import codec_kl
from distillcache.teach.plan import plan_settings
from distillcache.teach.rows_config import TILT
from distillcache_cli.app import run
from distillcache_shards.cache import Cache
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.errors import CorruptError
from distillcache_shards.index import Index
from distillcache_shards.rows import Rows
from tests.teach.direct import compare, logprobs
from tests.teach.refusing import Refuse, refusal
from tests.teach.teaching import NUM_IDS, command_line, contents, documents, teach_into, write_records

TILTED: dict[str, Any] = {"keep": "sampled", "k": None, "tau": 1 / 10, "seed": 7}
SAMPLED = TILTED | {"tilt": 0}
KINDS: dict[str, dict[str, Any]] = {
    "topk compact": {"k": 40},
    "topk of a size": {"k": 40, "bytes_per_token": 50},
    "topk bounded": {"k": 40, "top_p": 0.6, "min_p": 0.002, "min_k": 2},
    "topk zstd": {"k": 40, "codec": "zstd"},
    "tilted": TILTED,
    "tilted hot": TILTED | {"tilt": 0.5, "row_temperature": 2.0},
    "sampled compact": SAMPLED,
    "sampled hot": SAMPLED | {"row_temperature": 2.0},
    "sampled zstd": SAMPLED | {"codec": "zstd"},
    "multinomial": {"keep": "multinomial", "k": None, "draws": 30},
}


@pytest.fixture
def refuse(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command line that must be refused; nothing in `tmp_path` may change."""
    return lambda arguments: refusal(arguments, tmp_path, capfd)


def all_rows(cache: Cache) -> Rows:
    """The rows of a cache, in order."""
    return cache.read(np.arange(len(cache))).rows


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_resumes_to_the_bytes_of_one_run(
    kind: str, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    """Half of the shards are taken away; the codec is read from the folder, and draws are drawn again."""
    settings: dict[str, Any] = KINDS[kind]
    teach_into(tmp_path / "cache", teacher, corpus, **settings)
    whole = contents(tmp_path / "cache")
    for file in sorted((tmp_path / "cache").glob("shard-*"))[::2]:
        file.unlink()
    report = teach_into(tmp_path / "cache", teacher, corpus, **settings)
    assert report.tokens_taught > 0
    assert contents(tmp_path / "cache") == whole


@pytest.mark.parametrize("max_kl", [1e-5, 1e-4, 3e-3])
def test_codec_loses_no_more_than_was_asked(
    max_kl: float, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    """Against the model itself; what was asked and what came of it stand in every shard, and are told."""
    report = teach_into(tmp_path / "cache", teacher, corpus, k=40, max_kl=max_kl)
    cache = Cache.open(tmp_path / "cache")
    assert report.asked_max_kl_nats == max_kl and report.asked_row_bytes is None
    assert 0.2 * max_kl < report.codec_kl_nats <= max_kl
    for number in range(cache.num_shards):
        assert cache.shard(number).fidelity["asked_max_kl_nats"] == max_kl
        assert cache.shard(number).fidelity["codec_kl_nats"] < 1.2 * max_kl
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    found = compare(cache, model, NUM_IDS)
    rows = all_rows(cache)
    ids_NK = rows.head_ids.reshape(-1, 40)
    said = np.take_along_axis(found.direct_NV, ids_NK, 1)
    direct = Rows.top_k(
        ids_NK,
        said.astype(np.float32),
        found.direct_tail_N.astype(np.float32),
        found.direct_entropy_N.astype(np.float32),
    )
    assert codec_kl(direct, rows).mean() == pytest.approx(report.codec_kl_nats, rel=0.05)


def test_coarser_codecs_are_smaller(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    """Bytes buy exactness; a size that was asked for is met, within what a corpus as small as this allows."""
    taught = {
        name: teach_into(tmp_path / name, teacher, corpus, k=40, **settings)
        for name, settings in {
            "fine": {"max_kl": 1e-5},
            "coarse": {"max_kl": 3e-3},
            "sized": {"bytes_per_token": 50},
            "zstd": {"codec": "zstd"},
        }.items()
    }
    assert taught["coarse"].row_bytes < taught["fine"].row_bytes < taught["zstd"].row_bytes
    assert taught["sized"].asked_row_bytes == 50
    assert taught["sized"].row_bytes == pytest.approx(50, rel=0.1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(
    ("codec", "tilt"), [("compact", TILT), ("compact", 0), ("zstd", None), ("plain", None)]
)
def test_sampled_rows_sit_at_their_targets(
    codec: str, tilt: float | None, temperature: float, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    """Each holds, at its own place and to one unit, every id of its threshold, and draws from the rest.

    Without a tilt the threshold is tau for every id, and the tail mass tells the number of draws.
    """
    grid = Grid.of(1 / 40)
    settings = {**TILTED, "tau": 1 / 40, "tilt": tilt, "row_temperature": temperature, "codec": codec}
    report = teach_into(tmp_path / "cache", teacher, corpus, **settings, batch_tokens=300)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    cache = Cache.open(tmp_path / "cache")
    assert cache.row_kind == "sampled" and (cache.thresholds is not None) == bool(tilt)
    tau_V = np.full(NUM_IDS, grid.tau) if cache.thresholds is None else cache.thresholds.astype(np.float64)
    unit_V = tau_V / grid.draw_units
    heads = shifted = 0
    for index in range(len(cache)):
        sequence = cache[index]
        direct_TV = logprobs(model, sequence.tokens, NUM_IDS) / temperature
        p_TV = np.exp(direct_TV - np.logaddexp.reduce(direct_TV, axis=1, keepdims=True))
        for n, position in enumerate((np.flatnonzero(sequence.supervised) - 1).tolist()):
            row, p_V = sequence.rows[n : n + 1], p_TV[position]
            clear_V = np.abs(p_V / tau_V - 1) > 1e-4
            head = set(row.head_ids.tolist())
            assert set(np.flatnonzero((p_V >= tau_V) & clear_V)) == head & set(np.flatnonzero(clear_V))
            units = np.exp(row.head_logprobs.astype(np.float64)) / unit_V[row.head_ids]
            assert (np.abs(units - (p_V / unit_V)[row.head_ids]) < 1.01).all()
            tail_units = round(float(row.tail_mass[0]) * grid.units)
            if tilt:
                tail_taus = (p_V / tau_V).sum() - (p_V / tau_V)[row.head_ids].sum()
                assert abs(len(row.draw_ids) - tail_taus) < 1.01
            else:
                assert len(row.draw_ids) == -(-tail_units // grid.draw_units)
            assert not set(row.draw_ids.tolist()) & head
            heads += len(head)
            other_V = p_TV[(position + 1) % len(p_TV)] / unit_V
            shifted += int((np.abs(units - other_V[row.head_ids]) < 1.01).sum())
    assert heads > 300
    assert shifted < 0.5 * heads
    rows = all_rows(cache)
    assert report.kept_a_row == pytest.approx(rows.num_kept / len(rows))
    assert report.draws_a_row == pytest.approx(rows.num_draws / len(rows))
    assert report.codec_kl_nats < (1e-9 if codec == "compact" else 1e-5)


def test_another_seed_is_another_plan_and_other_draws(
    teacher: Path, corpus: Path, tmp_path: Path, refuse: Refuse
) -> None:
    """The same folder refuses it; another folder holds other draws of the same distributions."""
    for seed in (7, 8):
        teach_into(tmp_path / str(seed), teacher, corpus, **SAMPLED | {"seed": seed})
    ours, theirs = (all_rows(Cache.open(tmp_path / str(seed))) for seed in (7, 8))
    np.testing.assert_array_equal(ours.head_offsets, theirs.head_offsets)
    assert set(ours.head_ids) == set(theirs.head_ids)
    assert not np.array_equal(ours.draw_ids, theirs.draw_ids)
    line = refuse(command_line(tmp_path / "7", teacher, corpus, **SAMPLED | {"seed": 8}))
    assert "rows.seed is 7 there and 8 here" in line
    line = refuse(command_line(tmp_path / "7", teacher, corpus, **SAMPLED | {"tau": "1/11"}))
    assert "rows.units is 40 there and 44 here" in line


def test_multinomial_rows_are_as_many_draws_as_were_asked_for(
    teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    """Each stands for one part in 30, whether it was drawn once or more often."""
    teach_into(tmp_path / "cache", teacher, corpus, **KINDS["multinomial"])
    rows = all_rows(Cache.open(tmp_path / "cache"))
    row_H = np.repeat(np.arange(len(rows)), np.diff(rows.head_offsets))
    units_N = np.bincount(row_H, np.exp(rows.head_logprobs.astype(np.float64)) * 30, len(rows))
    np.testing.assert_allclose(units_N + np.diff(rows.draw_offsets), 30, atol=1e-3)


def test_bounded_rows_keep_what_their_bounds_ask(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    """The rows of 40 ids, cut by a nucleus and a floor; two at least."""
    for name, settings in {"all": {"k": 40}, "some": KINDS["topk bounded"]}.items():
        teach_into(tmp_path / name, teacher, corpus, **settings, codec="zstd")
    every, some = (all_rows(Cache.open(tmp_path / name)) for name in ("all", "some"))
    p_NK = np.exp(every.head_logprobs.astype(np.float64)).reshape(-1, 40)
    before_NK = np.cumsum(p_NK, 1) - p_NK
    kept_NK = (before_NK < 0.6) & (p_NK >= 0.002)
    kept_NK[:, :2] = True
    # Sums of values rounded to 16 bits fall on either side of a bound.
    clear_N = (np.abs(before_NK - 0.6) > 1e-3).all(1) & (np.abs(p_NK - 0.002) > 1e-5).all(1)
    assert clear_N.mean() > 0.5
    counts_N = np.diff(some.head_offsets)
    np.testing.assert_array_equal(counts_N[clear_N], kept_NK.sum(1)[clear_N])
    assert counts_N.min() >= 2 and len(set(counts_N)) > 3


def test_calibration_is_a_twentieth_of_the_work_from_all_over_the_corpus() -> None:
    """Few rows of a small corpus, a bound for a large one, no sequence twice, none without rows."""
    for num_sequences, rows in ((10, 100), (1000, 100), (100_000, 100)):
        rows_n = np.full(num_sequences, rows)
        rows_n[::2] = 0
        numbers = calibration_sequences(rows_n)
        total = int(rows_n.sum())
        wanted = min(MOST_ROWS, max(FEWEST_ROWS, total // 20), total)
        assert wanted <= rows_n[numbers].sum() <= wanted + 2 * rows
        assert len(set(numbers.tolist())) == len(numbers) and rows_n[numbers].min() > 0
        assert np.diff(numbers).max(initial=0) < 3 * num_sequences / len(numbers)
    assert len(calibration_sequences(np.zeros(5, np.int64))) == 0


def test_lost_index_is_made_again_with_the_same_codec(
    teacher: Path, corpus: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On this machine the same rows calibrate it."""
    whole = contents(cache)
    (cache / "index.safetensors").unlink()
    assert run(command_line(cache, teacher, corpus)) == 0
    assert contents(cache) == whole


def test_lost_index_that_cannot_be_made_again_is_told(
    teacher: Path, corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's numbers may calibrate another codec, which cannot read the shards that are there."""
    (cache / "index.safetensors").unlink()
    monkeypatch.setattr("distillcache.teach.calibrate.FEWEST_ROWS", 50)
    before = contents(cache)
    with pytest.raises(CorruptError, match=r"index\.safetensors: is damaged or lost, and cannot be "):
        teach_into(cache, teacher, corpus)
    assert contents(cache) == before


def test_codec_is_read_from_the_folder_and_not_made_again(
    teacher: Path, corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a machine whose numbers differ in the last bit can go on with the work of another."""
    whole = contents(cache)
    tables = Index(cache, len(Cache.open(cache)), Cache.open(cache).num_shards).tables
    assert set(tables) == {"common", "fronts", "levels"}
    (cache / "shard-00001.safetensors").unlink()
    monkeypatch.setattr("distillcache.teach.calibrate.FEWEST_ROWS", 50)
    teach_into(cache, teacher, corpus)
    assert contents(cache) == whole


def test_second_process_takes_the_codec_of_the_first(
    teacher: Path, corpus: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found an empty folder; while one waited for the other, the plan was written."""
    from distillcache.teach import run as teaching

    whole = contents(cache)
    empty = tmp_path / "empty"
    found = teaching.existing_plan

    def written_meanwhile(folder: Path) -> Any:
        if not empty.exists():
            shutil.copytree(cache, empty)
            return None
        return found(folder)

    monkeypatch.setattr(teaching, "existing_plan", written_meanwhile)
    monkeypatch.setattr("distillcache.teach.calibrate.FEWEST_ROWS", 50)
    report = teach_into(empty, teacher, corpus)
    assert report.tokens_taught == 0
    assert contents(empty) == whole


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 40, "bytes_per_token": 3}, "--bytes-per-token: too few; found 3, and rows like these take"),
        ({"max_kl": 1e-9}, "--max-kl: too small; found 1e-09, and the finest levels lose "),
        (SAMPLED | {"tau": 1e-9}, "--tau: must be at least 3.8e-06, found 1e-09"),
        (TILTED | {"tau": 1 / 257}, "--tau: must be at least 1/256 with a tilt, found 0.00389105; give a "),
    ],
    ids=["bytes", "kl", "tau", "tau with a tilt"],
)
def test_what_no_codec_can_do_is_refused(
    settings: dict[str, Any], words: str, teacher: Path, tmp_path: Path
) -> None:
    """With what it can do."""
    source = write_records(tmp_path / "corpus.jsonl", documents(9))
    with pytest.raises(ConfigError, match=f"^{words}"):
        teach_into(tmp_path / "cache", teacher, source, **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": "5", "tau": "1/25"}, "--tau: has no use with --keep topk, found 0.04"),
        ({"keep": "topk", "seed": "1"}, "--seed: has no use with --keep topk, found 1"),
        ({"keep": "sampled", "k": "3"}, "--k: has no use with --keep sampled, found 3"),
        ({"keep": "sampled", "top_p": "0.5"}, "--top-p: has no use with --keep sampled, found 0.5"),
        ({"keep": "sampled", "draws": "5"}, "--draws: has no use with --keep sampled, found 5"),
        ({"keep": "multinomial", "tau": "0.1"}, "--tau: has no use with --keep multinomial, found 0.1"),
        ({"keep": "topk", "tilt": "0.25"}, "--tilt: has no use with --keep topk, found 0.25"),
        ({"keep": "multinomial", "tilt": "0"}, "--tilt: has no use with --keep multinomial, found 0"),
        ({"codec": "zstd", "tilt": "0.1"}, "--tilt: 0.1 needs --codec compact, found --codec zstd; leave "),
        ({"codec": "plain", "tilt": "1"}, "--tilt: 1 needs --codec compact, found --codec plain; leave one "),
        ({"tilt": "-0.01"}, "--tilt: must be at least 0, found -0.01"),
        ({"tilt": "1.01"}, "--tilt: must be at most 1, found 1.01"),
        ({"keep": "sampled", "max_kl": "0.1"}, "--max-kl: has no use with --keep sampled --codec compact"),
        ({"codec": "zstd", "max_kl": "0.1"}, "--max-kl: has no use with --keep topk --codec zstd, found 0.1"),
        ({"codec": "plain", "level": "3"}, "--level: has no use with --codec plain, found 3"),
        ({"min_k": "3"}, "--min-k: has no use without --top-p or --min-p, found 3"),
        ({"min_k": "65", "min_p": "0.5"}, r"--min-k: must be at most --k \(64\), found 65"),
        ({"max_kl": "0.1", "bytes_per_token": "9"}, "--max-kl: must not stand beside --bytes-per-token"),
        ({"keep": "sampled", "tau": "1/0"}, "--tau: must be a number, or `none`, found '1/0'"),
        ({"keep": "sampled", "tau": "2/1"}, "--tau: must be at most 1, found 2.0"),
        ({"keep": "everything"}, "--keep: must be one of sampled, topk, multinomial, found 'everything'"),
        (
            {"keep": "sampled", "teacher": "openai:m", "tokenizer": "x"},
            "--keep: sampled needs whole distributions, and an API gives a few ids; take --keep topk",
        ),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings: dict[str, str], words: str) -> None:
    """What one kind of row reads, another does not."""
    known = {"cache": Path("cache"), "teacher": "teacher", "sources": ("a.jsonl",)}
    with pytest.raises(ConfigError, match=f"^{words}"):
        load_config(TeachConfig, None, known | settings)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, "sampled"),
        ({"tau": 0.1, "codec": "zstd"}, "sampled"),
        ({"tilt": 0.5}, "sampled"),
        ({"draws": 5}, "multinomial"),
        ({"k": 5}, "topk"),
        ({"top_p": 0.5}, "topk"),
        ({"max_kl": 0.1}, "topk"),
        ({"teacher": "openai:m", "tokenizer": "x"}, "topk"),
        ({"keep": "multinomial"}, "multinomial"),
    ],
)
def test_what_is_kept_follows_from_what_is_given(settings: dict[str, Any], kept: str) -> None:
    """Sampled, where nothing speaks for another kind."""
    known = {"cache": Path("cache"), "teacher": "teacher", "sources": ("a.jsonl",)}
    assert TeachConfig(**(known | settings)).kept == kept


@pytest.mark.parametrize(
    ("settings", "codec_id", "tilt", "grid"),
    [
        ({}, "compact-tilted", 3 / 16, Grid(128, 4)),
        ({"tilt": 1.0, "tau": 1 / 256}, "compact-tilted", 1.0, Grid(1024, 4)),
        ({"tilt": 1e-3}, "compact-tilted", 1e-3, Grid(128, 4)),
        ({"tilt": 0}, "compact-sampled", None, Grid(200, 4)),
        ({"tilt": 0, "tau": 1 / 257}, "compact-sampled", None, Grid(1028, 4)),
        ({"codec": "zstd"}, "zstd", None, Grid(200, 4)),
        ({"codec": "plain", "tilt": 0}, "plain", None, Grid(200, 4)),
        ({"keep": "multinomial"}, "compact-sampled", None, Grid(50, 1)),
    ],
)
def test_a_tilt_is_the_default_of_the_compact_codec(
    settings: dict[str, Any], codec_id: str, tilt: float | None, grid: Grid
) -> None:
    """tau is 1/32 with one, 1/50 without. A plan tells of a tilt where there is one, and is else as ever."""
    known = {"cache": Path("cache"), "teacher": "teacher", "sources": ("a.jsonl",)}
    plan = plan_settings(TeachConfig(**(known | settings)), None)
    assert plan["codec"]["id"] == codec_id
    assert plan["rows"] == {
        "kind": "sampled",
        "method": "multinomial" if "keep" in settings else "threshold",
        "units": grid.units,
        "draw_units": grid.draw_units,
        "seed": 0,
        "temperature": 1.0,
        **({} if tilt is None else {"tilt": tilt}),
    }


def test_another_tilt_is_another_plan(teacher: Path, corpus: Path, tmp_path: Path, refuse: Refuse) -> None:
    """Named, as is none at all."""
    teach_into(tmp_path / "cache", teacher, corpus, **TILTED)
    for tilt, found in ((0.3, "0.3"), (0, "none")):
        line = refuse(command_line(tmp_path / "cache", teacher, corpus, **TILTED | {"tilt": tilt}))
        assert f"rows.tilt is {TILT} there and {found} here" in line


def test_fractions_are_numbers_in_a_file_too(tmp_path: Path) -> None:
    """`tau = "1/25"`, for TOML has no fractions."""
    file = tmp_path / "teach.toml"
    file.write_text('tau = "1/25"\ntilt = "3/8"\nteacher = "teacher"\nsources = ["a.jsonl"]\n')
    found = load_config(TeachConfig, file, {"cache": Path("cache")})
    assert (found.tau, found.tilt) == (1 / 25, 3 / 8)
