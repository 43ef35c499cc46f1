"""Processes that write one cache: what is missing, shard by shard, each claimed, as `teach` does.

They may die at any step of writing a shard. All are forked from one warm interpreter of a single thread, so
that many may die in a test: `python -m tests.shards.writers` starts one for every line that it reads.
"""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillcache_shards.claims import claimed, remove_leftovers
from distillcache_shards.shard import shard_file
from tests.shards.compact_cache import compact_sampled_cache, compact_tilted_cache, compact_topk_cache
from tests.shards.small_cache import SmallCache, small_cache

__all__ = ["AFTER_RENAME", "MAKERS", "NUM_SHARDS", "STEPS", "Step", "Writers", "finish"]

ROOT = Path(__file__).parents[2]
NUM_SHARDS = 60
HOW: dict[str, Any] = {"lengths": (5,) * NUM_SHARDS, "sequences_a_shard": 1}
MAKERS: dict[str, Callable[[], SmallCache]] = {
    "zstd": lambda: small_cache(codec="zstd", params={"level": 3, "logprobs": "f16"}, **HOW),
    "compact-topk": lambda: compact_topk_cache(**HOW),
    "compact-sampled": lambda: compact_sampled_cache(**HOW),
    "compact-tilted": lambda: compact_tilted_cache(**HOW),
}


@dataclass(frozen=True)
class Step:
    """A call of the system at which a writer dies: before it, after it, or when it is half done."""

    name: str
    moment: str

    def __str__(self) -> str:
        return f"{self.moment} {self.name}"


# In the order in which a shard is written.
STEPS = (
    Step("open", "before"),
    Step("open", "after"),
    Step("write", "half"),
    Step("write", "after"),
    Step("fsync", "before"),
    Step("fsync", "half"),
    Step("fsync", "after"),
    Step("rename", "before"),
    Step("rename", "after"),
    Step("fsync of the folder", "before"),
    Step("fsync of the folder", "after"),
    Step("unlink of the claim", "before"),
    Step("unlink of the claim", "after"),
)
AFTER_RENAME = STEPS[STEPS.index(Step("rename", "after")) :]


def die() -> None:
    """As by SIGKILL: nothing is tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


@functools.cache
def made(name: str) -> SmallCache:
    """One of the caches, made once."""
    return MAKERS[name]()


def finish(
    name: str, folder: Path, shards: Sequence[int], *, claims: bool = True, dies_at: Step | None = None
) -> None:
    """Write these shards of a cache but those that are there, or die at a step of the first of them."""
    if claims:
        remove_leftovers(folder)
    if dies_at is not None:
        _die_at(dies_at)
    for number in shards:
        file = shard_file(folder, number)
        if not claims:
            made(name).write_shard(folder, number)
            continue
        with claimed(file) as ours:
            if ours and not file.exists():
                made(name).write_shard(folder, number)


class Writers:
    """Starts writers and waits for them; a context."""

    def __enter__(self) -> "Writers":
        self._warm = subprocess.Popen(
            [sys.executable, "-m", "tests.shards.writers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._warm.communicate(timeout=60)

    def start(
        self,
        name: str,
        folder: Path,
        shards: Sequence[int],
        *,
        claims: bool = True,
        dies_at: Step | None = None,
    ) -> int:
        """Begin to `finish`; what to wait for."""
        step = None if dies_at is None else dataclasses.astuple(dies_at)
        return self._ask(["start", name, str(folder), list(shards), claims, step])

    def wait(self, writer: int) -> int:
        """Wait for its end: the exit code, a signal's number negative."""
        return self._ask(["wait", writer])

    def _ask(self, words: list[Any]) -> int:
        assert self._warm.stdin is not None and self._warm.stdout is not None
        print(json.dumps(words), file=self._warm.stdin, flush=True)
        return int(self._warm.stdout.readline())


def _serve() -> None:
    for line in sys.stdin:
        words = json.loads(line)
        if words[0] == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(words[1], 0)[1]), flush=True)
            continue
        _, name, folder, shards, claims, step = words
        made(name)
        writer = os.fork()
        if writer == 0:
            code = 1
            try:
                finish(name, Path(folder), shards, claims=claims, dies_at=Step(*step) if step else None)
                code = 0
            finally:
                os._exit(code)
        print(writer, flush=True)


def _die_at(step: Step) -> None:
    """Put a trap into the calls of this process that write a shard."""
    open_, fsync, rename, unlink = Path.open, os.fsync, Path.rename, Path.unlink

    def trapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def trap(*arguments: Any, **how: Any) -> Any:
            if step == Step(name, "before"):
                die()
            found = call(*arguments, **how)
            if step == Step(name, "after"):
                die()
            return found

        return trap

    def opened(path: Path, *arguments: Any, **how: Any) -> Any:
        if not path.name.endswith(".partial"):
            return open_(path, *arguments, **how)
        return _Trapped(trapped("open", open_)(path, *arguments, **how), step)

    def synced(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            return trapped("fsync of the folder", fsync)(descriptor)
        if step == Step("fsync", "half"):
            # What a system may leave of a file that was never synced: its length, and no bytes.
            os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
            die()
        return trapped("fsync", fsync)(descriptor)

    def unlinked(path: Path, *arguments: Any, **how: Any) -> Any:
        call = trapped("unlink of the claim", unlink) if path.name.endswith(".claim") else unlink
        return call(path, *arguments, **how)

    Path.open = opened  # type: ignore[method-assign,assignment]
    os.fsync = synced
    Path.rename = trapped("rename", rename)  # type: ignore[method-assign]
    Path.unlink = unlinked  # type: ignore[method-assign]


class _Trapped:
    """A file whose writer dies when it has written half, or all."""

    def __init__(self, stream: Any, step: Step) -> None:
        self._stream, self._step, self._written = stream, step, 0

    def __enter__(self) -> "_Trapped":
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def write(self, part: Any) -> None:
        self._written += 1
        half = self._step == Step("write", "half") and self._written == 5
        self._stream.write(bytes(part)[: len(part) // 2] if half else part)
        if half:
            self._stream.flush()
            die()

    def flush(self) -> None:
        self._stream.flush()
        if self._step == Step("write", "after"):
            die()

    def fileno(self) -> int:
        descriptor: int = self._stream.fileno()
        return descriptor


if __name__ == "__main__":
    _serve()
