"""Claims about crashes: however a process ends, the same command makes the bytes of a run in one go."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillcache_cli.app import run
from tests.teach.processes import Command, wait_until
from tests.teach.teaching import MANY_SHARDS, command_line, contents


def shards_in(folder: Path) -> int:
    """Shards that are whole."""
    return len(list(folder.glob("shard-*.safetensors")))


def moments(kills: int, shards: int, seed: int, start_seconds: float) -> Iterator[tuple[int, float]]:
    """When to kill: so many shards are there, and so many seconds later.

    A quarter of the kills are on the way to the first shard, the others are spread over those that come.
    """
    chance = random.Random(seed)
    early = max(1, kills // 4)
    for _ in range(early):
        yield 0, chance.uniform(0, start_seconds)
    # The last quarter is left: a busy machine must not let a process end before its kill.
    step = 0.75 * shards / (kills - early)
    for number in range(kills - early):
        # Up to the time of a shard or two, so that any step of writing one may be hit.
        yield int(step * (number + chance.uniform(0.3, 1.0))), chance.uniform(0, 0.05)


def killed_and_finished(
    kills: int, seed: int, arguments: list[str], whole: Path, folder: Path, *, cold: bool
) -> None:
    """Kill so often, each time in a new process on the same cache; then finish, and compare everything."""
    cache = Path(arguments[1])
    final = contents(whole)
    for shards, seconds in moments(kills, shards_in(whole), seed, 6.0 if cold else 1.0):
        command = Command(arguments, folder, cold=cold)
        wait_until(lambda shards=shards: shards_in(cache) >= shards or command.code is not None)  # noqa: B023
        time.sleep(seconds)
        command.send(signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL, command.err
        if cache.exists():
            # Whatever has its final name is final.
            named = {name: each for name, each in contents(cache).items() if name.endswith(".safetensors")}
            assert named.items() <= final.items()
    assert 0 < shards_in(cache) < shards_in(whole)
    assert run(arguments) == 0
    assert contents(cache) == final


@pytest.mark.parametrize(("kills", "seed"), [(4, 0), pytest.param(12, 1, marks=pytest.mark.slow)])
def test_killed_at_random_moments(
    kills: int, seed: int, teacher: Path, long_corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """SIGKILL on the way to the first shard and between there and the end: the bytes of a run in one go."""
    arguments = command_line(tmp_path / "cache", teacher, long_corpus, **MANY_SHARDS)
    killed_and_finished(kills, seed, arguments, uninterrupted, tmp_path / "said", cold=False)


@pytest.mark.slow
def test_new_interpreter_killed_twelve_times(
    teacher: Path, long_corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """The same with the command as a user starts it, its own start-up included."""
    arguments = command_line(tmp_path / "cache", teacher, long_corpus, **MANY_SHARDS)
    killed_and_finished(12, 4, arguments, uninterrupted, tmp_path / "said", cold=True)


@pytest.mark.parametrize(
    "left",
    [
        "shard-00000.safetensors.host-1-0.partial",
        "shard-00000.safetensors.claim",
        "shard-00001.safetensors.claim",
        "index.safetensors.host-1-0.partial",
        ".tokenizer-abc/new/tokenizer.json",
        "cache.json.host-1-0.partial",
        "cache.json.claim",
    ],
)
def test_what_a_killed_process_left_is_removed(
    left: str, teacher: Path, corpus: Path, taught: Path, cache: Path
) -> None:
    """Of a shard that is missing, and of one that is in place: it died before it had tidied up."""
    (cache / "shard-00000.safetensors").unlink()
    (cache / left).parent.mkdir(exist_ok=True, parents=True)
    (cache / left).touch()
    assert run(command_line(cache, teacher, corpus)) == 0
    assert contents(cache) == contents(taught)


def test_folder_killed_before_its_plan_is_begun_again(
    teacher: Path, corpus: Path, taught: Path, tmp_path: Path
) -> None:
    """Index and tokenizer come first: halves of them under other names, and no plan yet."""
    cache = tmp_path / "cache"
    (cache / ".tokenizer-abc").mkdir(parents=True)
    (cache / "index.safetensors.host-1-0.partial").write_bytes(b"half")
    (cache / "cache.json.claim").touch()
    assert run(command_line(cache, teacher, corpus)) == 0
    assert contents(cache) == contents(taught)


@pytest.mark.parametrize("cold", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ctrl_c_says_one_line_and_the_same_command_goes_on(
    cold: bool, teacher: Path, long_corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Exit code 130, no traceback, nothing half done, and the end is that of a run in one go."""
    cache = tmp_path / "cache"
    arguments = command_line(cache, teacher, long_corpus, **MANY_SHARDS)
    command = Command(arguments, tmp_path / "said", cold=cold)
    wait_until(lambda: shards_in(cache) >= 1 or command.code is not None)
    command.send(signal.SIGINT)
    assert (command.wait(), command.out) == (130, ""), command.err
    assert "Traceback" not in command.err
    assert [line for line in command.err.splitlines() if "Ctrl-C" in line] == command.err.splitlines()[-1:]
    assert 1 <= shards_in(cache) < shards_in(uninterrupted)
    assert contents(cache).items() <= contents(uninterrupted).items()
    assert run(arguments) == 0
    assert contents(cache) == contents(uninterrupted)
