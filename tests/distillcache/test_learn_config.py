"""Claims about the settings of `learn`: recipes as asked for, and nothing that would be ignored."""

from pathlib import Path
from typing import Any

import pytest

from distillcache.config import load_config
from distillcache.errors import ConfigError
from distillcache.learn.config import TYPES, LearnConfig

RECIPES = Path(__file__).parents[2] / "configs" / "learn"
NEEDED = {"cache": "cache", "output": "out", "student": "s.toml"}


def config(**given: Any) -> LearnConfig:
    """A config as the command line makes it."""
    return load_config(LearnConfig, None, {**NEEDED, **given})


@pytest.mark.parametrize(
    ("kind", "alpha", "soft"),
    [("output", 1.0, None), ("logit", 0.5, "forward-kl"), ("hybrid", 0.3, "forward-kl")],
)
def test_a_type_brings_its_alpha_and_its_loss(kind: str, alpha: float, soft: str | None) -> None:
    """And alpha may be given where it has a use."""
    assert (config(type=kind).hard_weight, config(type=kind).soft_loss) == (alpha, soft)
    if soft is not None:
        assert config(type=kind, alpha=0).hard_weight == 0
        assert config(type=kind, loss="js").soft_loss == "js"


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"type": "output", "temperature": 2.0}, "--temperature"),
        ({"type": "output", "loss": "js"}, "--loss"),
        ({"type": "output", "alpha": 0.5}, "--alpha"),
        ({"type": "logit", "alpha": 1.0}, "--alpha"),
        ({"epochs": 1.0, "max_steps": 5}, "--max-steps"),
        ({"max_steps": 5, "warmup_steps": 5}, "--warmup-steps"),
        ({"held_out": 0, "eval_every": 5}, "--eval-every"),
        ({"type": "output", "alpha_end": 0.5}, "--alpha-end"),
        ({"type": "output", "temperature_end": 1.0}, "--temperature-end"),
        ({"type": "output", "online": "teacher"}, "--online"),
        ({"alpha": 1.0, "alpha_end": 1.0}, "--alpha"),
        ({"early_stopping": 2}, "--early-stopping"),
        ({"lora_alpha": 8.0}, "--lora-alpha"),
        ({"lora_dropout": 0.0}, "--lora-dropout"),
        ({"lora_targets": ["q_proj"]}, "--lora-targets"),
        ({"lora_rank": 8, "student": "new.toml"}, "--lora-rank"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(given: dict[str, Any], flag: str) -> None:
    """In one line that begins with its flag."""
    with pytest.raises(ConfigError) as caught:
        config(**given)
    assert str(caught.value).startswith(f"{flag}: ") and "\n" not in str(caught.value)


def test_what_is_next_to_an_ignored_setting_is_taken() -> None:
    """The other side of each refusal above."""
    config(type="output", alpha=1.0)
    config(type="logit", alpha=0.999, temperature=2.0)
    config(max_steps=5, warmup_steps=4)
    config(held_out=0)
    config(eval_every=5)
    config(alpha=1.0, alpha_end=0.0)
    config(alpha_end=1.0, temperature_end=1.0, online="teacher")
    config(early_stopping=2, eval_every=5)
    config(student="model", lora_rank=8, lora_alpha=8.0, lora_dropout=0.0, lora_targets=["q_proj"])


def test_a_batch_is_bounded_by_sequences_or_by_tokens_or_by_both() -> None:
    """Eight sequences, where nothing is said."""
    assert config().sequences_a_batch == 8
    assert config(batch_tokens=512).sequences_a_batch is None
    assert config(batch_tokens=512, batch_size=3).sequences_a_batch == 3


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("alpha", 0.0, -0.001),
        ("alpha", 0.99, 1.001),
        ("temperature", 0.001, 0.0),
        ("alpha_end", 0.0, -0.001),
        ("alpha_end", 1.0, 1.001),
        ("temperature_end", 0.001, 0.0),
        ("epochs", 0.1, 0.0),
        ("max_steps", 1, 0),
        ("batch_size", 1, 0),
        ("batch_tokens", 2, 1),
        ("gradient_accumulation", 1, 0),
        ("learning_rate", 1e-9, 0.0),
        ("warmup_steps", 0, -1),
        ("weight_decay", 0.0, -0.1),
        ("max_grad_norm", 0.001, 0.0),
        ("seed", 0, -1),
        ("workers", 0, -1),
        ("held_out", 0.0, -0.1),
        ("held_out", 0.999, 1.0),
        ("eval_every", 1, 0),
        ("save_every", 1, 0),
        ("keep_last", 1, 0),
        ("logging_every", 1, 0),
        ("lora_rank", 1, 0),
        ("lora_alpha", 0.5, 0.0),
        ("lora_dropout", 0.0, -0.1),
        ("lora_dropout", 0.9, 1.0),
        ("early_stopping", 1, 0),
        ("type", "hybrid", "both"),
        ("loss", "js", "kl"),
        ("schedule", "cosine", "exponential"),
        ("dtype", "bf16", "fp8"),
        ("device", "cpu", "tpu"),
        ("report_to", ["wandb"], ["mail"]),
    ],
)
def test_every_bound_holds_from_both_sides(name: str, good: object, bad: object) -> None:
    """The value beside it is taken."""
    others: dict[str, object] = {"student": "model", "lora_rank": 8}
    if name == "early_stopping":
        others["eval_every"] = 5
    config(**{**others, name: good})
    with pytest.raises(ConfigError) as caught:
        config(**{**others, name: bad})
    assert str(caught.value).startswith(f"--{name.replace('_', '-')}: must be ")


@pytest.mark.parametrize(
    ("recipe", "wanted", "alpha_and_temperature"),
    [
        ("output", ("configs/student/100m.toml", 8, 4, 1000, 50_000), (1.0, 1.0)),
        ("logit", ("configs/student/100m.toml", 8, 4, 1000, 50_000), (0.5, 2.0)),
        ("hybrid", ("configs/student/350m.toml", 4, 8, 2000, 100_000), (0.3, 2.5)),
    ],
)
def test_the_recipes_are_those_asked_for(
    recipe: str, wanted: tuple[object, ...], alpha_and_temperature: tuple[float, float]
) -> None:
    """Student, batch and accumulation, warm-up, steps, alpha and temperature; and what all three share.

    A recipe names no temperature: it is its type's, unless rows were sampled at one of their own.
    """
    found = load_config(LearnConfig, RECIPES / f"{recipe}.toml", {"cache": "c", "output": "o"})
    assert found.type == recipe
    assert wanted == (
        found.student,
        found.batch_size,
        found.gradient_accumulation,
        found.warmup_steps,
        found.max_steps,
    )
    assert (found.hard_weight, TYPES[found.type][1]) == alpha_and_temperature
    assert found.temperature is None
    assert (found.learning_rate, found.weight_decay, found.max_grad_norm, found.seed) == (1e-4, 0.01, 1.0, 42)
    assert (found.eval_every, found.save_every, found.logging_every, found.keep_last) == (500, 1000, 10, 3)
    assert found.gradient_checkpointing and found.schedule == "linear"
