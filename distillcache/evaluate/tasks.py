"""A student on tasks of lm-eval, where that package is installed: its own tasks, or a folder of one's own.

Knows nothing of command lines.
"""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from distillcache.errors import ConfigError
from distillcache.evaluate.config import EvaluateConfig
from distillcache.evaluate.result import TaskScore
from distillcache.quiet import quiet_transformers
from distillcache.teach.teacher import Teacher

__all__ = ["evaluate_tasks", "require_tasks"]

MISSING = "--tasks: the package lm-eval is not installed; pip install 'distillcache[evaluate]'"


def require_tasks(config: EvaluateConfig) -> None:
    """Raises ConfigError where lm-eval is not installed, or has no such task."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(MISSING)
    if config.task_folder is not None and not config.task_folder.is_dir():
        raise ConfigError(f"--task-folder: {config.task_folder}: no such folder; name one of .yaml files")
    with _quiet():
        manager = _manager(config)
        unknown = [name for name in config.tasks if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(
            f"--tasks: lm-eval has no task {unknown[0]}; `lm-eval ls` lists them; "
            "those of your own need --task-folder"
        )


def _manager(config: EvaluateConfig) -> Any:
    """lm-eval's list of tasks, with those of the folder."""
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found,import-untyped,unused-ignore]

    folder = None if config.task_folder is None else str(config.task_folder.resolve())
    return TaskManager(include_path=folder)


def evaluate_tasks(student: Teacher, config: EvaluateConfig) -> tuple[TaskScore, ...]:
    """Scores of `config.tasks`, as `lm_eval.simple_evaluate` gives them: bootstrap errors, its own seeds.

    Raises ConfigError for a task whose data cannot be had.
    """
    with _quiet():
        from lm_eval import simple_evaluate  # type: ignore[import-not-found,import-untyped,unused-ignore]
        from lm_eval.models.huggingface import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
            HFLM,
        )

        try:
            found = simple_evaluate(
                model=HFLM(
                    pretrained=student.model, tokenizer=student.tokenizer, batch_size=config.batch_size
                ),
                tasks=list(config.tasks),
                task_manager=_manager(config),
                num_fewshot=config.fewshot,
                limit=config.task_limit,
                apply_chat_template=config.chat,
                log_samples=False,
            )
        except Exception as error:  # data sets, tasks and metrics each fail in their own way
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
            raise ConfigError(
                f"--tasks: lm-eval stopped: {type(error).__name__}: {lines[0].rstrip('.')[:240]}; "
                "data of its own tasks comes from the hub, and needs a network once"
            ) from error
    return tuple(_scores(found))


def _scores(found: Mapping[str, Any]) -> Iterator[TaskScore]:
    """Every metric of every task and group; lm-eval names them `acc,none` and `acc_stderr,none`."""
    for task, values in found["results"].items():
        questions = found.get("n-samples", {}).get(task, {}).get("effective")
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{chosen}")
            yield TaskScore(
                task=task,
                metric=metric if chosen == "none" else f"{metric} ({chosen})",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                num_fewshot=found.get("n-shot", {}).get(task),
                num_questions=questions,
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What lm-eval logs, warns of and draws while it works goes nowhere; errors are raised all the same."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    silence = io.StringIO()
    try:
        with (
            quiet_transformers(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
