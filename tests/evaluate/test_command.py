"""Claims about `distillcache evaluate` as a user runs it: tables, JSON, one line for a refusal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distillcache.tiny_cache import sentences, small_teacher, write_cache
from tests.distillcache.tiny_models import save_teacher

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache and its teacher, which is also the student."""
    room = tmp_path_factory.mktemp("command")
    write_cache(room / "cache", small_teacher(), sentences(8))
    save_teacher(room / "student", small_teacher())
    return room


def evaluate(room: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "distillcache_cli", "evaluate", *arguments, "--device", "cpu"],
        capture_output=True, text=True, timeout=300, cwd=room,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_json_is_one_object_on_stdout_and_progress_goes_to_stderr(room: Path) -> None:
    """Also where a figure has no value."""
    code, out, err = evaluate(room, "student", "--cache", "cache", "--split", "all", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["rows"]["figures"]["top1_agreement"]["value"] == 1.0
    assert (found["code"], found["tasks"]) == (None, [])
    assert "rows: " in err


def test_tables_name_every_figure_and_what_it_is_over(room: Path) -> None:
    """Those of the rows and those of the whole teacher."""
    code, out, err = evaluate(room, "student", "--cache", "cache", "--split", "all", "--against", "student")
    assert code == 0, err
    for words in ("KL to the teacher, nats", "bits a byte", "acceptance, at most", "calibration error"):
        assert words in out
    assert "Against the whole teacher" in out and "all there are" in out
    assert "warning: student: is not the teacher that this cache was made with" in err


def test_programs_do_not_run_without_consent(room: Path) -> None:
    """One line that says what to agree to."""
    code, out, err = evaluate(room, "student", "--humaneval")
    assert (code, out) == (1, "")
    assert err.startswith("--humaneval: runs programs that the student wrote, on this machine; agree by")
    assert err.count("\n") == 1


def test_a_table_of_programs_says_how_they_ended_and_what_held_them(room: Path) -> None:
    """Short prompts do not fit into this student, which is counted and not run."""
    code, out, err = evaluate(
        room,
        "student",
        "--humaneval",
        "--allow-code-execution",
        "--num-problems",
        "2",
        "--max-new-tokens",
        "4",
    )
    assert code == 0, err
    assert "pass@1" in out and "2 prompt too long" in out and "audit hook" in out
