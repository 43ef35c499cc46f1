"""Claims about lm-eval: it scores a saved student with no code of ours, and ours passes on what it says."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distillcache.errors import ConfigError
from distillcache.evaluate.config import EvaluateConfig
from distillcache.evaluate.run import evaluate
from distillcache.learn.config import LearnConfig
from distillcache.learn.run import learn
from tests.distillcache.tiny_cache import sentences, small_teacher, write_cache

ROOT = Path(__file__).parents[2]
TASK = """task: tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task of six questions, data and all."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [
        {"question": f"the {first}", "choices": [" teacher", " student"], "answer": number % 2}
        for number, first in enumerate(["one", "two", "three", "four", "five", "six"])
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (folder / "tiny.yaml").write_text(TASK.format(data=folder / "data.jsonl"))
    return folder


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A student that `learn` made."""
    write_cache(tmp_path / "cache", small_teacher(), sentences())
    sizes = "hidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 2\nnum_attention_heads = 4\n"
    (tmp_path / "small.toml").write_text(sizes + "max_position_embeddings = 128\n")
    learn(
        LearnConfig(
            cache=tmp_path / "cache",
            output=tmp_path / "student",
            student=str(tmp_path / "small.toml"),
            max_steps=2,
            batch_size=4,
            device="cpu",
            dtype="fp32",
        )
    )
    return tmp_path / "student"


def ran(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, offline, with caches of its own."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_DATASETS_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=500, cwd=ROOT, env=environment
    )


@pytest.mark.slow
def test_lm_eval_scores_a_student_with_no_code_of_ours(student: Path, tasks: Path, tmp_path: Path) -> None:
    """And `distillcache evaluate --tasks` gives the very same figure."""
    home = tmp_path / "home"
    theirs = ran(
        "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={student},dtype=float32",
        "--tasks", "tiny", "--include_path", str(tasks), "--device", "cpu",
        "--output_path", str(tmp_path / "theirs"), home=home,
    )  # fmt: skip
    assert theirs.returncode == 0, theirs.stderr[-2000:]
    (written,) = (tmp_path / "theirs").rglob("results*.json")
    expected = json.loads(written.read_text())["results"]["tiny"]

    ours = ran(
        "-m", "distillcache_cli", "evaluate", str(student), "--tasks", "tiny", "--task-folder", str(tasks),
        "--device", "cpu", "--dtype", "fp32", "--json", home=home,
    )  # fmt: skip
    assert ours.returncode == 0, ours.stderr[-2000:]
    scores = {each["metric"]: each for each in json.loads(ours.stdout)["tasks"]}
    assert scores["acc"]["value"] == pytest.approx(expected["acc,none"], abs=1e-12)
    assert scores["acc"]["stderr"] == pytest.approx(expected["acc_stderr,none"], abs=1e-12)
    assert (scores["acc"]["num_questions"], scores["acc"]["num_fewshot"]) == (6, 0)

    unknown = ran(
        "-m", "distillcache_cli", "evaluate", str(student), "--tasks", "tiny,no_such_task",
        "--task-folder", str(tasks), "--device", "cpu", home=home,
    )  # fmt: skip
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("--tasks: lm-eval has no task no_such_task")
    assert unknown.stderr.count("\n") == 1

    unreachable = ran(
        "-m",
        "distillcache_cli",
        "evaluate",
        str(student),
        "--tasks",
        "arc_easy",
        "--device",
        "cpu",
        home=home,
    )
    assert unreachable.returncode == 1
    assert unreachable.stderr.splitlines()[-1].startswith("--tasks: lm-eval stopped: ")


def test_without_lm_eval_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before the student is loaded."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name, *rest)
    )
    with pytest.raises(ConfigError) as refusal:
        evaluate(EvaluateConfig(student="nothing", tasks=("arc_easy",)))
    assert str(refusal.value) == (
        "--tasks: the package lm-eval is not installed; pip install 'distillcache[evaluate]'"
    )


def test_a_folder_of_tasks_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Not taken for an empty one."""
    config = EvaluateConfig(student="nothing", tasks=("tiny",), task_folder=tmp_path / "no")
    with pytest.raises(ConfigError, match="--task-folder"):
        evaluate(config)
