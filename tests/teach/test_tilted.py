"""Tilted rows from end to end: taught through crashes and by two, and what a student makes of them."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillcache.evaluate.config import EvaluateConfig
from distillcache.evaluate.run import evaluate
from distillcache.learn.config import LearnConfig
from distillcache.learn.events import Event
from distillcache.learn.run import learn
from distillcache.teach import run as teaching
from distillcache.teach.rows_config import TILT, TILTED_TAU
from distillcache_cli.app import run
from distillcache_shards.cache import Cache
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.tilt import SURELY_KEPT, Tilt, TiltedGrid
from tests.distillcache.learning import FEW_STEPS, SIZES, losses
from tests.distillcache.tiny_models import save_teacher, tiny
from tests.teach.processes import Command, wait_until
from tests.teach.teaching import MANY_SHARDS, NUM_IDS, command_line, contents, teach_into

TILTED: dict[str, Any] = {"keep": "sampled", "k": None}


@pytest.fixture(scope="module")
def exact_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with the tokenizer's ids and no more, so that it may be a student too."""
    return save_teacher(tmp_path_factory.mktemp("teachers") / "exact", tiny("llama", vocab_size=NUM_IDS))


@pytest.fixture(scope="module")
def taught_tilted(exact_teacher: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as it is made where nothing else is asked for; for reading only."""
    folder = tmp_path_factory.mktemp("caches") / "tilted"
    teach_into(folder, exact_teacher, corpus, **TILTED)
    return folder


def test_ids_of_the_corpus_have_the_higher_thresholds(taught_tilted: Path) -> None:
    """By how often they are targets, in every sequence; ids that never are have the lowest of all."""
    cache = Cache.open(taught_tilted)
    assert cache.plan["codec"]["id"] == "compact-tilted" and cache.plan["rows"]["tilt"] == TILT
    read = cache.read(np.arange(len(cache)))
    counts_V = np.bincount(read.tokens[read.supervised], minlength=NUM_IDS)
    thresholds_V = cache.thresholds
    assert thresholds_V is not None and thresholds_V.shape == (NUM_IDS,)
    order = np.argsort(counts_V, kind="stable")
    assert (np.diff(thresholds_V[order]) >= 0).all()
    assert thresholds_V[counts_V == 0].max() < TILTED_TAU < thresholds_V.max() <= SURELY_KEPT
    tilted = TiltedGrid.of_counts(Grid.of(TILTED_TAU), counts_V, TILT)
    np.testing.assert_array_equal(thresholds_V, tilted.weights_V)


def test_a_killed_run_is_finished_to_the_bytes_of_one_in_one_go(
    teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    """The tilt is read from the folder."""
    teach_into(tmp_path / "whole", teacher, corpus, **MANY_SHARDS, **TILTED)
    cache = tmp_path / "cache"
    arguments = command_line(cache, teacher, corpus, **MANY_SHARDS, **TILTED)
    command = Command(arguments, tmp_path / "said")
    wait_until(lambda: len(list(cache.glob("shard-*.safetensors"))) >= 2 or command.code is not None)
    command.send(signal.SIGKILL)
    assert command.wait() == -signal.SIGKILL, command.err
    assert Cache.open(cache).missing_shards()
    assert run(arguments) == 0
    assert contents(cache) == contents(tmp_path / "whole")


def test_second_process_takes_the_tilt_of_the_first(
    exact_teacher: Path,
    corpus: Path,
    taught_tilted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though its own count would give another: while it waited, the plan was written, but not all shards."""
    whole, empty = contents(taught_tilted), tmp_path / "empty"
    found = teaching.existing_plan

    def written_meanwhile(folder: Path) -> Any:
        if not empty.exists():
            shutil.copytree(taught_tilted, empty)
            (empty / "shard-00001.safetensors").unlink()
            return None
        return found(folder)

    monkeypatch.setattr(teaching, "existing_plan", written_meanwhile)
    monkeypatch.setattr(Tilt, "of_counts", lambda counts_V, *_: Tilt(np.full(len(counts_V), 128, np.uint8)))
    report = teach_into(empty, exact_teacher, corpus, **TILTED)
    assert report.tokens_taught > 0
    assert contents(empty) == whole
    other = tmp_path / "other"
    monkeypatch.setattr(teaching, "existing_plan", found)
    teach_into(other, exact_teacher, corpus, **TILTED)
    assert contents(other) != whole  # as it would have been


@pytest.mark.parametrize("kind", ["output", "logit", "hybrid"])
def test_a_student_learns_from_tilted_rows(kind: str, taught_tilted: Path, tmp_path: Path) -> None:
    """Its loss falls, of a type that reads the rows its KL as well, on what was held out."""
    (tmp_path / "small.toml").write_text(SIZES)
    events: list[Event] = []
    settings = {**FEW_STEPS, "max_steps": 20, "cache": taught_tilted, "output": tmp_path / "student"}
    result = learn(
        LearnConfig(**settings, student=str(tmp_path / "small.toml"), type=kind), on_event=events.append
    )
    assert result.before is not None and result.after is not None
    found = list(losses(events).values())
    assert np.mean(found[-4:]) < np.mean(found[:4])
    assert result.after.hard_loss < result.before.hard_loss
    for scores in (result.before, result.after):
        assert scores.acceptance_min is not None and scores.acceptance_max is not None
        assert 0 < scores.acceptance_min <= scores.acceptance_max <= 1


def test_a_student_that_is_the_teacher_has_no_kl_to_tilted_rows(
    exact_teacher: Path, taught_tilted: Path
) -> None:
    """On average over all rows, within 4 standard errors.

    Head values are rounded by chance, to steps of a quarter of the threshold: of two ids within a step either
    may come out as the likelier, and an upper bound of acceptance misses a part of a step.
    """
    result = evaluate(
        EvaluateConfig(
            student=str(exact_teacher), cache=taught_tilted, split="all", device="cpu", dtype="fp32"
        )
    )
    assert result.rows is not None
    found = {each.name: each for each in result.rows.figures}
    kl = found["kl_nats"]
    assert kl.value is not None and kl.stderr is not None and 0 < kl.stderr < 0.05
    assert abs(kl.value) < 4 * kl.stderr
    low, high, agreement = (
        found[name].value for name in ("acceptance_min", "acceptance_max", "top1_agreement")
    )
    assert low is not None and high is not None and agreement is not None
    assert 0.5 < low < 0.98 < high < 1.0001
    assert agreement > 0.95
