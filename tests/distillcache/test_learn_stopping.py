"""Claims about early stopping: training ends in time, the best student is kept, a crash changes nothing."""

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState

from distillcache.learn.events import Evaluated, Event, Started, Step
from distillcache.learn.run import learn
from distillcache.learn.stopping import has_stopped
from tests.distillcache.learning import Make, Stopped, losses, same_weights, stop_after

# A learning rate at which the student gets better, and then gets lost.
LOST: dict[str, Any] = {
    "max_steps": 60,
    "learning_rate": 0.3,
    "warmup_steps": 20,
    "schedule": "constant",
    "eval_every": 3,
    "early_stopping": 3,
    "alpha": 0.0,
    "temperature": 1.0,
    "keep_last": 1,
    "save_every": 5,
}


def evaluations(events: list[Event]) -> dict[int, float]:
    """KL, which is the loss here, by step; the first evaluation has no student to keep."""
    found = [event for event in events if isinstance(event, Evaluated)]
    return {event.step: event.scores.kl for event in found if event.step}


def test_the_best_student_is_kept_and_not_the_last(config: Make, tmp_path: Path) -> None:
    """It stops after three evaluations that were no better; what is saved has the best one's scores."""
    events: list[Event] = []
    result = learn(config(**LOST), on_event=events.append)
    found = evaluations(events)
    best = min(found, key=lambda step: found[step])
    assert result.best_step == best and result.num_steps == best + 9 < 60
    assert list(found)[-1] == result.num_steps
    assert result.after is not None and result.after.kl == found[best] < found[result.num_steps]
    again = learn(
        config(student=str(result.output), max_steps=1, learning_rate=1e-12, output=tmp_path / "again")
    )
    assert again.before is not None and again.before.kl == pytest.approx(found[best], rel=1e-5)
    assert f"the best of {result.num_steps} steps, number {best}" in (result.output / "README.md").read_text()


def test_a_student_that_gets_better_to_the_end_is_not_stopped(config: Make) -> None:
    """The last is the best, also between two evaluations."""
    result = learn(config(**{**LOST, "learning_rate": 1e-4, "max_steps": 10, "warmup_steps": 0}))
    assert (result.num_steps, result.best_step) == (10, 10)


@pytest.mark.parametrize("after", ["a step", "the last evaluation"])
def test_a_run_that_was_stopped_stops_where_it_would_have(config: Make, tmp_path: Path, after: str) -> None:
    """Neither sooner nor later, with the same student; the folder may move meanwhile."""
    whole: list[Event] = []
    reference = learn(config(**LOST, output=tmp_path / "whole"), on_event=whole.append)
    assert reference.best_step is not None
    parts: list[Event] = []

    def die_at_the_end(event: Event) -> None:
        parts.append(event)
        if isinstance(event, Evaluated) and event.step == reference.num_steps:
            raise Stopped

    hear = stop_after(reference.best_step + 5, parts) if after == "a step" else die_at_the_end
    with pytest.raises(Stopped):
        learn(config(**LOST, output=tmp_path / "here"), on_event=hear)
    (tmp_path / "here").rename(tmp_path / "there")
    result = learn(config(**LOST, output=tmp_path / "there"), on_event=parts.append)
    assert (result.num_steps, result.best_step) == (reference.num_steps, reference.best_step)
    assert losses(parts) == losses(whole)
    assert same_weights(tmp_path / "there", tmp_path / "whole")


def test_a_run_killed_before_it_wrote_its_best_student_only_writes_it(config: Make, tmp_path: Path) -> None:
    """All steps are done: none is taken again."""
    reference = learn(config(**{**LOST, "keep_last": 3}, output=tmp_path / "whole"))
    output = tmp_path / "whole"
    record = (output / "learn.json").read_text()
    (output / "learn.json").write_text(record[: record.index('"result"')] + '"result": null, "files": []}')
    events: list[Event] = []
    result = learn(config(**{**LOST, "keep_last": 3}, output=output), on_event=events.append)
    assert isinstance(events[0], Started) and events[0].first_step == reference.num_steps
    assert not any(isinstance(event, Step) for event in events)
    assert (result.best_step, result.after) == (reference.best_step, reference.after)


def test_patience_counts_evaluations_since_the_best() -> None:
    """Those before it do not count, nor the one before the first step."""
    state = TrainerState(log_history=[{"eval_loss": 1.0, "step": step} for step in (0, 5, 10, 15, 20)])
    assert not has_stopped(state, 1)
    state.best_global_step = 10
    assert has_stopped(state, 2) and not has_stopped(state, 3)
