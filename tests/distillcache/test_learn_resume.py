"""Claims about runs that are stopped: the same command goes on, to the same losses and the same student."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from distillcache.learn.events import Done, Event, Started
from distillcache.learn.run import learn
from tests.distillcache.learning import (
    Make,
    Stopped,
    command_line,
    losses,
    reported,
    same_weights,
    stop_after,
)
from tests.distillcache.tiny_cache import NUM_IDS
from tests.distillcache.tiny_models import save_teacher, tiny
from tests.teach.processes import Command, wait_until


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(config: Make, tmp_path: Path) -> None:
    """In the middle of an epoch and of the intervals between checkpoints: same losses, same bits."""
    whole: list[Event] = []
    reference = learn(config(max_steps=12, output=tmp_path / "whole"), on_event=whole.append)
    chosen = config(max_steps=12, save_every=4)
    first: list[Event] = []
    with pytest.raises(Stopped):
        learn(chosen, on_event=stop_after(7, first))
    (chosen.output / "checkpoints" / "checkpoint-6").mkdir()  # killed while it wrote this one
    second: list[Event] = []
    result = learn(chosen, on_event=second.append)
    assert isinstance(second[0], Started) and second[0].first_step == 4
    assert list(losses(second)) == list(range(5, 13))
    assert {**losses(first), **losses(second)} == losses(whole)
    assert same_weights(chosen.output, tmp_path / "whole")
    assert (result.before, result.after) == (reference.before, reference.after)


def test_a_run_that_was_stopped_before_it_wrote_the_student_only_writes_it(
    config: Make, tmp_path: Path
) -> None:
    """No step is taken twice, none too many."""
    reference = learn(config(output=tmp_path / "whole"))
    chosen = config()

    def stop(event: Event) -> None:
        if isinstance(event, Done):
            raise Stopped

    with pytest.raises(Stopped):
        learn(chosen, on_event=stop)
    record = json.loads((chosen.output / "learn.json").read_text())
    (chosen.output / "config.json").unlink()
    (chosen.output / "learn.json").write_text(json.dumps({**record, "result": None}))
    events: list[Event] = []
    result = learn(chosen, on_event=events.append)
    assert losses(events) == {}
    assert same_weights(chosen.output, tmp_path / "whole")
    assert (result.before, result.after) == (reference.before, reference.after)
    assert result.tokens_per_second is None


# Everything that could go another way after a crash: the order of batches, what is packed and accumulated,
# schedules, dropout, and which student is the best.
ALL_OF_IT: dict[str, Any] = {
    "max_steps": 60,
    "batch_tokens": 120,
    "gradient_accumulation": 2,
    "schedule": "cosine",
    "warmup_steps": 5,
    "alpha": 0.9,
    "alpha_end": 0.1,
    "temperature": 3.0,
    "temperature_end": 1.0,
    "save_every": 10,
}
LORA = {"lora_rank": 2, "lora_dropout": 0.3, "eval_every": 4, "early_stopping": 9, "learning_rate": 1e-3}


def killed_and_finished(
    room: Path, folder: Path, settings: dict[str, Any], steps: tuple[int, ...], *, cold: bool
) -> None:
    """One run left alone; another killed as soon as there is a checkpoint of each of these steps."""

    def begin(output: Path) -> Command:
        return Command(command_line(room, output, **settings), folder / "said", cold=cold)

    whole, killed = folder / "whole", folder / "killed"
    one = begin(whole)
    assert one.wait() == 0, one.err
    for step in steps:
        command = begin(killed)
        checkpoint = killed / "checkpoints" / f"checkpoint-{step}"
        # Half written or whole: either is to be met.
        wait_until(lambda: checkpoint.exists() or command.code is not None)  # noqa: B023
        command.send(signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL, command.err
    last = begin(killed)
    assert last.wait() == 0, last.err
    assert "from step" in last.err
    assert same_weights(killed, whole)
    assert reported(killed) == reported(whole)


def test_killed_in_the_middle_the_run_ends_with_the_same_student(room: Path, tmp_path: Path) -> None:
    """SIGKILL: every loss, every score and every bit of the weights."""
    killed_and_finished(room, tmp_path, {**ALL_OF_IT, "max_steps": 40}, (20,), cold=False)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_killed_again_and_again_the_run_ends_with_the_same_student(
    lora: bool, room: Path, tmp_path: Path
) -> None:
    """Three times, of which LoRA is its own kind: its dropout, its checkpoints, and the best of them."""
    settings = {**ALL_OF_IT, **LORA, "student": room / "teacher"} if lora else ALL_OF_IT
    killed_and_finished(room, tmp_path, settings, (10, 20, 40), cold=False)


@pytest.mark.slow
def test_a_new_interpreter_killed_goes_on_too(room: Path, tmp_path: Path) -> None:
    """The same with the command as a user starts it, and dropout in the student itself."""
    student = save_teacher(tmp_path / "gpt2", tiny("gpt2", vocab_size=NUM_IDS))
    killed_and_finished(room, tmp_path, {**ALL_OF_IT, "student": student}, (10, 30), cold=True)
