"""Claims about what `learn` refuses, in one line each: folders, caches and settings that do not agree."""

import shutil
from pathlib import Path

import pytest

from distillcache.config import load_config
from distillcache.errors import StudentError
from distillcache.learn.config import LearnConfig
from distillcache.learn.events import Done, Event
from distillcache.learn.run import learn, objective_of
from distillcache_shards.cache import Cache
from distillcache_shards.errors import MissingShardError
from tests.distillcache.learning import Make, refusal
from tests.distillcache.tiny_cache import sentences, small_teacher, write_cache
from tests.distillcache.tiny_models import save_teacher

RECIPES = Path(__file__).parents[2] / "configs" / "learn"


def test_a_folder_of_another_run_is_refused_and_named_what_differs(
    config: Make, room: Path, tmp_path: Path
) -> None:
    """Settings, student and cache; nothing in it is touched.

    `overwrite` removes our files and no others, and none if the new run is refused.
    """
    learn(config(max_steps=1))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "student").rglob("*")}
    assert "learning_rate is 0.01 there and 0.02 here" in refusal(config(max_steps=1, learning_rate=0.02))
    assert "student.architecture is" in refusal(config(max_steps=1, student=str(room / "teacher")))
    assert "cache is" in refusal(config(max_steps=1, cache=room / "sampled"))
    assert "5 steps" in refusal(config(max_steps=None, warmup_steps=9, overwrite=True))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "student").rglob("*")} == before

    (tmp_path / "student" / "notes.txt").write_text("mine")
    result = learn(config(max_steps=2, overwrite=True))
    assert result.num_steps == 2
    assert (tmp_path / "student" / "notes.txt").read_text() == "mine"


def test_a_folder_of_something_else_is_refused(config: Make, tmp_path: Path) -> None:
    """Also with `overwrite`."""
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "thesis.txt").write_text("mine")
    assert "is not empty" in refusal(config(overwrite=True))
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["thesis.txt"]
    assert "is a file" in refusal(config(output=tmp_path / "student" / "thesis.txt"))


def test_a_damaged_record_of_a_run_is_refused(config: Make, tmp_path: Path) -> None:
    """It is not taken for no record."""
    learn(config(max_steps=1))
    (tmp_path / "student" / "learn.json").write_text("{}")
    assert "cannot be read" in refusal(config(max_steps=1))


def test_what_sampled_rows_do_not_allow_is_refused(config: Make, room: Path) -> None:
    """Another loss, another temperature; their own is taken."""
    sampled = {"cache": room / "sampled", "max_steps": 1}
    assert refusal(config(**sampled, loss="js")).startswith("--loss: sampled rows")
    assert "sampled at 2, found 1" in refusal(config(**sampled, temperature=1.0))
    learn(config(**sampled, temperature=2.0))


@pytest.mark.parametrize(("name", "of_topk"), [("output", 1.0), ("logit", 2.0), ("hybrid", 2.5)])
def test_our_recipes_go_with_either_kind_of_row(name: str, of_topk: float, room: Path) -> None:
    """Temperature is the type's on the likeliest ids, and a sample's own."""
    for cache, temperature in (("cache", of_topk), ("sampled", 1.0 if name == "output" else 2.0)):
        known = {"cache": room / cache, "output": room / "student"}
        recipe = load_config(LearnConfig, RECIPES / f"{name}.toml", known)
        assert objective_of(recipe, Cache.open(room / cache)).temperature == temperature


def test_a_cache_that_is_not_finished_is_refused(config: Make, tmp_path: Path) -> None:
    """Before anything is written."""
    write_cache(tmp_path / "half", small_teacher(), sentences(), shards=[0, 2])
    text = refusal(config(cache=tmp_path / "half"), MissingShardError)
    assert "1 of 3 shards" in text and not (tmp_path / "student").exists()


def test_warm_up_longer_than_the_run_is_refused(config: Make) -> None:
    """Also where steps follow from epochs; nothing is left that would stand in the way of the next try."""
    chosen = config(max_steps=None, epochs=1.0, warmup_steps=5)
    assert "5 steps of this run" in refusal(chosen)
    assert not chosen.output.exists()


def test_a_loss_that_is_no_number_stops_the_run(config: Make) -> None:
    """At the next report, with the remedy."""
    assert "lower --learning-rate" in refusal(config(learning_rate=1e30, max_grad_norm=None), StudentError)


def test_a_student_of_the_same_name_with_other_weights_is_another_run(
    config: Make, room: Path, tmp_path: Path
) -> None:
    """A student to continue from is its weights: a copy elsewhere is the same, a changed one is refused."""
    student = shutil.copytree(room / "teacher", tmp_path / "start" / "teacher")
    learn(config(max_steps=1, student=str(student)))
    events: list[Event] = []
    learn(config(max_steps=1, student=str(room / "teacher")), on_event=events.append)
    assert events == [Done(output=tmp_path / "student", already=True)]
    save_teacher(student, small_teacher(seed=8))
    assert "student.weights is" in refusal(config(max_steps=1, student=str(student)))
