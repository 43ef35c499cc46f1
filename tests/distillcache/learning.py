"""What tests of `learn` share: a run of a few steps of a small student, and what is asked of it afterwards.

Everything is the same in every run, on one thread of this CPU.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distillcache.errors import ConfigError, DistillcacheError
from distillcache.learn.config import LearnConfig
from distillcache.learn.events import Event, Step
from distillcache.learn.run import learn

SIZES = """hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 128
"""
FEW_STEPS: dict[str, Any] = {
    "max_steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "held_out": 0.2,
    "logging_every": 1,
    "device": "cpu",
    "dtype": "fp32",
}

Make = Callable[..., LearnConfig]


class Stopped(Exception):
    """Whatever may stop a run."""


def losses(events: list[Event]) -> dict[int, float]:
    """The loss of every step that was reported."""
    return {event.step: event.loss for event in events if isinstance(event, Step)}


def stop_after(step: int, events: list[Event]) -> Callable[[Event], None]:
    """Collects events, and stops the run like a crash once a step is reported."""

    def hear(event: Event) -> None:
        events.append(event)
        if isinstance(event, Step) and event.step == step:
            raise Stopped

    return hear


def same_weights(one: Path, other: Path, name: str = "model.safetensors") -> bool:
    """Bit for bit."""
    a, b = load_file(one / name), load_file(other / name)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refusal(chosen: LearnConfig, error: type[DistillcacheError] = ConfigError) -> str:
    """The line that a run is refused with."""
    with pytest.raises(error) as caught:
        learn(chosen)
    text = str(caught.value)
    assert "\n" not in text and ": " in text
    return text


def command_line(room: Path, output: Path, **settings: Any) -> list[str]:
    """The same run as arguments of `distillcache`."""
    given = {"student": room / "small.toml", "output": output, **FEW_STEPS, **settings}
    cache = given.pop("cache", room / "cache")
    flags: list[str] = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return ["learn", str(cache), *flags]


def reported(output: Path) -> list[dict[str, float]]:
    """All that the last checkpoint of a run knows of its steps and evaluations, but for times."""
    number = max(int(each.name.split("-")[1]) for each in (output / "checkpoints").glob("checkpoint-*"))
    state = json.loads((output / "checkpoints" / f"checkpoint-{number}" / "trainer_state.json").read_text())
    # Counted in steps of a rank, of which two may have one more than they need.
    times = ("epoch", "tokens_per_second", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return [{k: v for k, v in line.items() if k not in times} for line in state["log_history"]]
