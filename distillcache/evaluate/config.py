"""Settings of `distillcache evaluate`: the student, and what it is measured on.

Settings that would be ignored are refused.
Knows neither torch nor transformers.
"""

from dataclasses import dataclass
from pathlib import Path

from distillcache.config import refuse_given, setting
from distillcache.errors import ConfigError

__all__ = ["SPLITS", "EvaluateConfig"]

SPLITS = ("held-out", "all")
# What each part of an evaluation reads; without that part they are refused.
OF_CACHE = ("split", "held_out", "seed", "against")
OF_CODE = (
    "allow_code_execution", "problems", "num_problems", "samples", "temperature", "top_p",
    "max_new_tokens", "program_seconds", "program_megabytes", "workers",
)  # fmt: skip
OF_TASKS = ("task_folder", "fewshot", "task_limit")
OF_TEXTS = ("chat",)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to measure of a student: on a cache's rows, on programs that it writes, on lm-eval's tasks."""

    student: str = setting(positional=True, help="Model folder or hub name.")

    cache: Path | None = setting(None, help="Cache whose rows the student is measured against.")
    split: str = setting(
        "held-out", help="Of its records: those that `learn` held out, or all.", choices=SPLITS
    )
    held_out: float | None = setting(
        None, help="Share that was held out, if the student's folder does not say.", above=0, below=1
    )
    seed: int | None = setting(
        None, help="Seed of the held-out choice, if the student's folder does not say.", minimum=0
    )
    against: str | None = setting(
        None, help="Teacher, a folder or hub name: exact figures beside those of the rows."
    )
    batch_size: int = setting(8, help="Most sequences, or prompts, at once.", minimum=1)
    device: str = setting("auto", help="auto, cpu, mps, cuda or cuda:N.")
    dtype: str = setting(
        "auto",
        help="Of weights; `auto`: the fastest that the device has natively.",
        choices=("auto", "bf16", "fp16", "fp32"),
    )

    humaneval: bool = setting(False, help="Write HumanEval's programs, and run its tests on them.")
    allow_code_execution: bool = setting(
        False, help="Agree that programs which the student wrote run on this machine, within limits."
    )
    problems: Path | None = setting(None, help="Other problems in HumanEval's form, .jsonl or .jsonl.gz.")
    num_problems: int | None = setting(None, help="The first of the problems alone.", minimum=1)
    samples: int = setting(1, help="Programs a problem; more than one need --temperature.", minimum=1)
    temperature: float | None = setting(
        None, help="Sample programs at this temperature; greedy unless given.", above=0
    )
    top_p: float | None = setting(
        None, help="Sample from the likeliest tokens of this probability.", above=0, maximum=1
    )
    max_new_tokens: int = setting(512, help="Most tokens of a program.", minimum=1)
    program_seconds: float = setting(3.0, help="Seconds that a program may take.", above=0, maximum=3600)
    program_megabytes: int = setting(1024, help="Memory that a program may take.", minimum=128)
    workers: int = setting(2, help="Programs that run at once.", minimum=1)

    tasks: tuple[str, ...] = setting((), help="Tasks of lm-eval, such as arc_easy, with commas.")
    task_folder: Path | None = setting(None, help="Folder of your own tasks, lm-eval's .yaml files.")
    fewshot: int | None = setting(
        None, help="Examples before each question; the task's own number unless given.", minimum=0
    )
    task_limit: int | None = setting(None, help="Questions of each task, for a quick look.", minimum=1)

    chat: bool = setting(False, help="Ask through the chat template: HumanEval and tasks.")
    output: Path | None = setting(None, help="File for the result, as JSON.")

    def __post_init__(self) -> None:
        names = tuple(part.strip() for each in self.tasks for part in each.split(",") if part.strip())
        object.__setattr__(self, "tasks", names)
        if self.cache is None and not self.humaneval and not self.tasks:
            raise ConfigError(
                "--cache: nothing to measure; give a cache, --humaneval, or --tasks, or several of them"
            )
        if self.cache is None:
            refuse_given(self, OF_CACHE, "without --cache")
        if not self.humaneval:
            refuse_given(self, OF_CODE, "without --humaneval")
        elif not self.allow_code_execution:
            raise ConfigError(
                "--humaneval: runs programs that the student wrote, on this machine; "
                "agree by --allow-code-execution, best in a container"
            )
        if not self.tasks:
            refuse_given(self, OF_TASKS, "without --tasks")
        if not self.humaneval and not self.tasks:
            refuse_given(self, OF_TEXTS, "without --humaneval or --tasks")
        if self.split == "all":
            refuse_given(self, ("held_out", "seed"), "with --split all")
        if self.temperature is None:
            refuse_given(
                self, ("samples", "top_p"), "without --temperature, since greedy programs are all the same"
            )
