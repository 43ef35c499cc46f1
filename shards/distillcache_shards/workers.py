"""Threads for the length of one read: none is left when it ends, so that a process may be forked at any time.

Knows nothing of what they do.
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

__all__ = ["Workers", "num_cores"]

Item = TypeVar("Item")


def num_cores() -> int:
    """Cores that this process may use; one in a worker of another process, which has others beside it."""
    if multiprocessing.parent_process() is not None:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """The calling thread and some more, which begin when there is work for two."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def each(self, work: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Does the work for each item, in any order; what it raises is raised, and the rest left undone."""
        todo = deque(items)
        others = min(self.num_threads, len(todo)) - 1

        def run() -> None:
            try:
                while True:
                    try:
                        item = todo.popleft()
                    except IndexError:
                        return
                    work(item)
            except BaseException:
                todo.clear()
                raise

        if others > 0 and self._pool is None:
            self._pool = ThreadPoolExecutor(self.num_threads - 1, thread_name_prefix="distillcache-read")
        started = [self._pool.submit(run) for _ in range(others)] if self._pool is not None else []
        try:
            run()
        finally:
            todo.clear()
        for each in started:
            each.result()
