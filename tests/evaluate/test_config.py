"""Claims about the settings of `evaluate`: bounds, consent, and nothing that would be ignored."""

from pathlib import Path
from typing import Any

import pytest

from distillcache.config import check, load_config
from distillcache.errors import ConfigError
from distillcache.evaluate.config import EvaluateConfig

CODE: dict[str, Any] = {"humaneval": True, "allow_code_execution": True}


def made(**given: Any) -> EvaluateConfig:
    """A config, held to its bounds."""
    config = EvaluateConfig(student="s", **given)
    check(config)
    return config


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "--cache: nothing to measure"),
        ({"humaneval": True}, "--humaneval: runs programs that the student wrote, on this machine; agree by"),
        ({"cache": Path("c"), "allow_code_execution": True}, "--allow-code-execution: has no use without"),
        ({"cache": Path("c"), "samples": 3}, "--samples: has no use without --humaneval, found 3"),
        ({**CODE, "against": "t"}, "--against: has no use without --cache"),
        ({**CODE, "split": "all"}, "--split: has no use without --cache"),
        ({**CODE, "samples": 3}, "--samples: has no use without --temperature"),
        ({**CODE, "top_p": 0.5}, "--top-p: has no use without --temperature"),
        ({"cache": Path("c"), "split": "all", "seed": 1}, "--seed: has no use with --split all"),
        ({"cache": Path("c"), "fewshot": 1}, "--fewshot: has no use without --tasks"),
        ({"cache": Path("c"), "task_folder": Path("t")}, "--task-folder: has no use without --tasks"),
        ({"cache": Path("c"), "chat": True}, "--chat: has no use without --humaneval or --tasks; leave"),
        ({"tasks": (" , ",)}, "--cache: nothing to measure"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(given: dict[str, Any], line: str) -> None:
    """By its flag, with what it is missing."""
    with pytest.raises(ConfigError) as refusal:
        made(**given)
    assert str(refusal.value).startswith(line)


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("held_out", 0.0, 0.01),
        ("held_out", 1.0, 0.99),
        ("seed", -1, 0),
        ("batch_size", 0, 1),
        ("num_problems", 0, 1),
        ("samples", 0, 1),
        ("temperature", 0.0, 0.01),
        ("top_p", 0.0, 0.01),
        ("top_p", 1.01, 1.0),
        ("max_new_tokens", 0, 1),
        ("program_seconds", 0.0, 0.1),
        ("program_seconds", 3601.0, 3600.0),
        ("program_megabytes", 127, 128),
        ("workers", 0, 1),
        ("fewshot", -1, 0),
        ("task_limit", 0, 1),
        ("split", "some", "held-out"),
        ("dtype", "int8", "bf16"),
    ],
)
def test_bounds_hold_from_both_sides(name: str, bad: object, good: object) -> None:
    """The last value that is allowed is; the next is not."""
    rest: dict[str, Any] = {**CODE, "cache": Path("c"), "tasks": ("t",), "temperature": 1.0}
    made(**{**rest, name: good})
    with pytest.raises(ConfigError, match=name):
        made(**{**rest, name: bad})


def test_tasks_may_be_named_with_commas_or_one_by_one() -> None:
    """As lm-eval takes them, and as our other lists are given."""
    assert made(tasks=("a, b", "c")).tasks == ("a", "b", "c")


def test_a_file_and_flags_make_a_config(tmp_path: Path) -> None:
    """Consent may stand in a file too."""
    file = tmp_path / "evaluate.toml"
    file.write_text("humaneval = true\nallow_code_execution = true\ntasks = ['arc_easy']\n")
    config = load_config(EvaluateConfig, file, {"student": "s", "num_problems": "4"})
    assert (config.num_problems, config.tasks, config.allow_code_execution) == (4, ("arc_easy",), True)
