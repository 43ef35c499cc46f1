"""`evaluate`: a student in, figures out: on a cache's rows, on programs that it writes, on lm-eval's tasks.

What can be refused is refused before a model is loaded, or else before it is run.
Knows nothing of command lines, and never prints.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillcache.config import check
from distillcache.errors import ConfigError
from distillcache.evaluate.choice import choose
from distillcache.evaluate.code import evaluate_code, limits_of, problems_of
from distillcache.evaluate.config import EvaluateConfig
from distillcache.evaluate.events import Event, OnEvent, Progress, Warned
from distillcache.evaluate.result import CodeScores, EvaluateResult, RowScores
from distillcache.evaluate.rows import evaluate_rows
from distillcache.evaluate.sandbox import require_executor
from distillcache.evaluate.tasks import evaluate_tasks, require_tasks
from distillcache.teach.teacher import Teacher, load_teacher
from distillcache.tokenizer import require_same_tokenizer
from distillcache_shards.cache import Cache
from distillcache_shards.durable import write_whole

__all__ = ["EvaluateResult", "evaluate"]


def evaluate(config: EvaluateConfig, *, on_event: OnEvent | None = None) -> EvaluateResult:
    """Measure a student; the result also goes to `config.output`, if one is named.

    Raises ConfigError, TeacherError and CacheError, one line each, for what the user can mend.
    """
    check(config)
    tell = on_event or _silent
    if config.output is not None and not config.output.resolve().parent.is_dir():
        raise ConfigError(f"--output: no folder {config.output.parent}; make it first")
    cache, indices = (None, None) if config.cache is None else _open(config)
    problems = problems_of(config) if config.humaneval else []
    walls = require_executor(limits_of(config)) if config.humaneval else ()
    if config.humaneval and "seccomp" not in walls:
        tell(Warned("programs run behind walls of Python alone; on this system run them in a container"))
    if config.tasks:
        require_tasks(config)
    student = _load(config.student, config)
    if config.chat and not getattr(student.tokenizer, "chat_template", None):
        raise ConfigError(f"--chat: the tokenizer of {student.name} has no chat template; leave it out")
    if student.head.warning is not None:
        tell(Warned(student.head.warning))
    rows: RowScores | None = None
    if cache is not None and indices is not None:
        rows = _rows(student, cache, indices, config, tell)
    code: CodeScores | None = None
    if config.humaneval:
        code = evaluate_code(student, problems, config, walls, tell)
    if config.tasks:
        tell(Progress("tasks", 0, len(config.tasks)))
    tasks = evaluate_tasks(student, config) if config.tasks else ()
    result = EvaluateResult(
        student=student.name,
        student_sha256=student.sha256,
        num_parameters=student.num_parameters,
        rows=rows,
        code=code,
        tasks=tasks,
    )
    if config.output is not None:
        write_whole(config.output, [json.dumps(result.to_dict(), indent=2).encode() + b"\n"])
    return result


def _silent(event: Event) -> None:
    """Nobody watches."""


def _open(config: EvaluateConfig) -> tuple[Cache, NDArray[np.int64]]:
    """The cache, and which of its sequences are evaluated."""
    assert config.cache is not None
    cache = Cache.open(config.cache)
    cache.require_whole()
    indices = choose(config, cache)
    if not cache.sequence_row_counts[indices].any():
        raise ConfigError(f"{config.cache}: nothing to evaluate: no held-out sequence has a supervised token")
    return cache, indices


def _load(name: str, config: EvaluateConfig) -> Teacher:
    """Any causal model with its tokenizer, to be read and not trained: loaded just as a teacher is."""
    if Path(name).suffix == ".toml":
        raise ConfigError(f"{name}: a student that was never trained; name a model folder or a hub name")
    return load_teacher(name, dtype=config.dtype, device=config.device)


def _rows(
    student: Teacher, cache: Cache, indices: NDArray[np.int64], config: EvaluateConfig, tell: OnEvent
) -> RowScores:
    require_same_tokenizer(student.tokenizer, cache)
    _check_length(student, cache, indices)
    teacher = None
    if config.against is not None:
        teacher = _load(config.against, config)
        require_same_tokenizer(teacher.tokenizer, cache)
        _check_length(teacher, cache, indices)
        if teacher.sha256 != cache.plan["teacher"]["sha256"]:
            tell(Warned(f"{teacher.name}: is not the teacher that this cache was made with"))
    return evaluate_rows(
        student,
        cache,
        indices,
        teacher=teacher,
        split=config.split,
        batch_size=config.batch_size,
        tell=tell,
    )


def _check_length(model: Teacher, cache: Cache, indices: NDArray[np.int64]) -> None:
    longest, positions = int(cache.sequence_lengths[indices].max()), model.num_positions
    if positions is not None and longest > positions:
        raise ConfigError(
            f"{model.name}: too few positions for this cache; found {positions}, needs {longest}; "
            "take a model with more"
        )
