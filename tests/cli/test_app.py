"""The command `distillcache` as a user runs it: quick, torch left out, one line for every refusal."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from distillcache.errors import ConfigError, DistillcacheError
from distillcache_cli.app import COMMANDS
from distillcache_cli.errors import exit_code

HEAVY = ("torch", "transformers", "numpy", "rich", "openai", "anthropic")


def distillcache(*arguments: str, folder: Path | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "distillcache_cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def imported(*arguments: str) -> set[str]:
    """The packages that a command line imports, by `-X importtime`."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "distillcache_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS)], ids=lambda each: " ".join(each) or "-"
)
def test_help_imports_neither_torch_nor_anything_else_heavy(command: Sequence[str]) -> None:
    """Asking for help costs a tenth of a second, not the five of torch."""
    packages = imported(*command, "--help")
    assert "typer" in packages
    assert packages.isdisjoint(HEAVY)


def test_help_returns_in_half_a_second() -> None:
    """Of a processor, the best of five: other people's work on this machine is none of its business."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert distillcache("--help")[0] == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0 < min(seconds) < 0.5


def test_without_a_command_the_help_is_shown() -> None:
    """On stdout, and it is no error."""
    assert distillcache() == distillcache("--help")
    assert distillcache()[0] == 0


def test_version_is_the_distribution_s() -> None:
    """`distillcache --version` can be quoted in a report."""
    assert distillcache("--version") == (0, f"distillcache {version('distillcache')}\n", "")


def test_every_command_says_what_it_is_in_one_whole_sentence() -> None:
    """In the list of commands, no sentence is cut."""
    _, out, _ = distillcache("--help")
    assert "..." not in out.split("Commands:")[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["taech"], "distillcache: No such command 'taech'"),
        (["--verbos"], "distillcache: No such option: --verbos"),
        (["demo", "--foldr", "x"], "distillcache demo: No such option: --foldr"),
        (["demo", "a", "b"], "distillcache demo: Got unexpected extra argument"),
        (["generate", "x", "--teacher"], "distillcache: Option '--teacher' requires an argument"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line_and_2(arguments: list[str], line: str) -> None:
    """With where to look, and without the usage that nobody asked for."""
    code, out, err = distillcache(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(line)
    assert err.rstrip().endswith("--help`")
    assert err.count("\n") == 1


GENERATE = ["generate", "x", "--teacher", "openai:m"]
NO_OUT = "OUT: missing; give it on the command line, or `out` in the file of --config"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([*GENERATE, "--concurrency", "0"], "--concurrency: must be at least 1, found 0"),
        ([*GENERATE, "--seed", "one"], "--seed: must be a whole number, found 'one'"),
        (["generate", "--teacher", "openai:m"], NO_OUT),
        (["generate", "x", "--config", "no.toml"], "no.toml: no such file; name a TOML file after --config"),
        (["generate", "x", "--config", "bad.toml"], "bad.toml: unknown key `cuont`; did you mean `count`?"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_used_is_one_line_and_1(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    """The library's own line, and nothing written."""
    (tmp_path / "bad.toml").write_text("cuont = 3\n")
    assert distillcache(*arguments, folder=tmp_path) == (1, "", line + "\n")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


def raising(error: BaseException) -> None:
    """A command that ends like this."""
    raise error


def caused(error: Exception, cause: Exception) -> Exception:
    """`error`, raised from `cause`."""
    error.__cause__ = cause
    return error


EXTRA = "gguf: this package is not installed; run `pip install 'distillcache[demo]'`\n"
FULL = "disk: no space left on the disk; free some, then run the same command again\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DistillcacheError("a.txt: empty; name another"), 1, "a.txt: empty; name another\n"),
        (ConfigError("two\nlines"), 1, "two lines\n"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C; the same command goes on where it stopped\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, FULL),
        (OSError(errno.ENOSPC, "x", "cache/a"), 1, FULL.replace("disk:", "cache/a:", 1)),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, FULL),
        (caused(RuntimeError("cannot write"), OSError(errno.EDQUOT, "Quota")), 1, FULL),
        (ModuleNotFoundError("No module", name="gguf"), 1, EXTRA),
        (PermissionError(errno.EACCES, "Permission denied", "cache/a"), 1, "cache/a: Permission denied\n"),
    ],
)
def test_what_stops_a_command_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever says it: the library, the system, a writer in another language, or the user's own hands."""
    assert exit_code(lambda: raising(error)) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), OSError(errno.EBADF, "bad"), ModuleNotFoundError("x", name="x")]
)
def test_a_mistake_of_ours_keeps_its_traceback(error: Exception) -> None:
    """It is not the user's to mend, and the traceback is what we need to hear of."""
    with pytest.raises(type(error)):
        exit_code(lambda: raising(error))


def test_a_full_disk_is_one_line_from_the_real_thing() -> None:
    """/dev/full refuses every write, as a full disk does."""
    if not Path("/dev/full").exists():
        # Only Linux has it; the errors that it raises are tested above, everywhere.
        return
    with open("/dev/full", "wb", buffering=0) as full:
        assert exit_code(lambda: full.write(b"x")) == 1


def test_a_closed_pipe_is_silent() -> None:
    """`distillcache ... | head -1` ends without a traceback."""
    done = subprocess.run(
        f"{sys.executable} -m distillcache_cli generate --help | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("Usage:")


def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path) -> None:
    """At whatever moment after the command has begun."""
    os.mkfifo(tmp_path / "settings.toml")  # reading it waits for ever
    process = subprocess.Popen(
        [sys.executable, "-m", "distillcache_cli", "generate", "x", "--config", "settings.toml"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with open(tmp_path / "settings.toml", "w"):  # returns once the command reads
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "stopped by Ctrl-C; the same command goes on where it stopped\n"
