"""Claims about schedules of alpha and temperature: straight lines over steps, heeded and reported."""

import dataclasses
from pathlib import Path

import pytest
import torch

from distillcache.learn.events import Event, Step
from distillcache.learn.objective import Objective
from distillcache.learn.run import learn
from distillcache.learn.schedule import Schedule
from tests.distillcache.learning import Make, Stopped, losses, refusal, stop_after

START = Objective(
    alpha=0.9, soft_loss="forward-kl", temperature=4.0, row_kind="topk", row_temperature=1.0, row_tau=None
)


def test_a_schedule_goes_straight_from_its_first_step_to_its_last() -> None:
    """Both ends are reached; what has no end stays."""
    schedule = Schedule(START, alpha_end=0.1, temperature_end=2.0, num_steps=5)
    found = [(schedule.at(step).alpha, schedule.at(step).temperature) for step in range(5)]
    wanted = [(0.9, 4.0), (0.7, 3.5), (0.5, 3.0), (0.3, 2.5), (0.1, 2.0)]
    assert found == [pytest.approx(each) for each in wanted]
    assert schedule.moves
    still = Schedule(START, alpha_end=None, temperature_end=4.0, num_steps=5)
    assert {still.at(step) for step in range(5)} == {START} and not still.moves
    assert Schedule(START, alpha_end=0.1, temperature_end=None, num_steps=1).at(0) == START


def test_thresholds_of_tilted_rows_neither_move_nor_stand_in_the_way() -> None:
    """They are a tensor, which is not one answer when it is compared."""
    tilted = dataclasses.replace(START, row_kind="sampled", row_tau=torch.tensor([0.1, 0.2]))
    for alpha_end in (None, 0.1):
        schedule = Schedule(tilted, alpha_end, temperature_end=None, num_steps=5)
        assert schedule.moves == (alpha_end is not None)
        assert schedule.at(4).row_tau is schedule.on_rows.row_tau is tilted.row_tau
    other = dataclasses.replace(tilted, row_tau=torch.tensor([0.3, 0.4]))
    assert other == tilted and hash(other) == hash(tilted)


def test_held_out_loss_means_the_same_all_run_long() -> None:
    """That of the last step; of sampled rows what they allow, whatever a teacher in the loop is asked for."""
    assert Schedule(START, 0.1, 2.0, 5).on_rows == dataclasses.replace(
        START, alpha=pytest.approx(0.1), temperature=2.0
    )
    sampled = dataclasses.replace(START, row_kind="sampled", soft_loss="js", row_temperature=1.5)
    found = Schedule(sampled, None, 2.0, 5).on_rows
    assert (found.soft_loss, found.temperature, found.alpha) == ("forward-kl", 1.5, 0.9)


def test_every_step_minimises_what_the_schedule_says(config: Make, tmp_path: Path) -> None:
    """The reported loss is the reported alpha's mixture; accumulation changes nothing of it."""
    for accumulation in (1, 2):
        events: list[Event] = []
        learn(
            config(
                alpha=1.0,
                alpha_end=0.0,
                temperature=3.0,
                temperature_end=1.0,
                max_steps=5,
                gradient_accumulation=accumulation,
                output=tmp_path / str(accumulation),
            ),
            on_event=events.append,
        )
        steps = [event for event in events if isinstance(event, Step)]
        assert [event.alpha for event in steps] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
        assert [event.temperature for event in steps] == pytest.approx([3.0, 2.5, 2.0, 1.5, 1.0])
        for event in steps:
            assert event.alpha is not None and event.soft_loss is not None
            mixture = event.alpha * event.hard_loss + (1 - event.alpha) * event.soft_loss
            assert event.loss == pytest.approx(mixture, rel=1e-5)
        # At temperature 1 the soft loss is KL itself; hotter it is not.
        assert steps[-1].soft_loss == pytest.approx(steps[-1].kl, rel=1e-5)
        assert steps[0].soft_loss != pytest.approx(steps[0].kl, rel=1e-2)
    card = (tmp_path / "1" / "README.md").read_text()
    assert "alpha from 1 to 0, temperature from 3 to 1" in card


def test_a_schedule_goes_on_where_it_was_stopped(config: Make, tmp_path: Path) -> None:
    """Not from its start."""
    settings = {"alpha": 0.9, "alpha_end": 0.1, "max_steps": 9, "save_every": 4}
    whole: list[Event] = []
    learn(config(**settings, output=tmp_path / "whole"), on_event=whole.append)
    parts: list[Event] = []
    with pytest.raises(Stopped):
        learn(config(**settings), on_event=stop_after(6, parts))
    learn(config(**settings), on_event=parts.append)
    assert losses(parts) == losses(whole)


def test_without_a_schedule_there_is_nothing_to_report(config: Make) -> None:
    """Alpha and temperature stand on the command line already."""
    events: list[Event] = []
    learn(config(max_steps=1), on_event=events.append)
    assert {(event.alpha, event.temperature) for event in events if isinstance(event, Step)} == {(None, None)}


def test_the_temperature_of_sampled_rows_does_not_move(config: Make, room: Path) -> None:
    """It is theirs; alpha may."""
    sampled = {"cache": room / "sampled", "max_steps": 2}
    assert refusal(config(**sampled, temperature_end=1.0)).startswith("--temperature-end: these rows")
    learn(config(**sampled, temperature_end=2.0, alpha_end=0.0))
