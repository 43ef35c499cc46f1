"""Tables on stdout, progress on stderr. rich is imported when something is drawn, not before.

Progress is a bar on a terminal, and elsewhere a line every few seconds.
Knows nothing of any one command.
"""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import rich.progress

__all__ = ["Progress", "bytes_words", "note", "print_json", "print_table", "seconds_words"]

LINE_SECONDS = 5.0
WIDTH_PIPED = 100


def note(line: str) -> None:
    """One line on stderr."""
    print(line, file=sys.stderr, flush=True)


def print_json(facts: Mapping[str, Any]) -> None:
    """The facts on stdout, as one JSON object; not a number is null there, since JSON has no word for it."""
    print(json.dumps(_finite(facts), indent=2, ensure_ascii=False))


def print_table(
    title: str,
    rows: Iterable[Sequence[str]],
    *,
    headings: Sequence[str] | None = None,
    numbers: Iterable[int] = (),
) -> None:
    """A table on stdout, columns of `numbers` set to the right. Text is shown as it is, never as markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    width = len(headings) if headings else max((len(row) for row in rows), default=1)
    table = Table(
        title=Text(title),
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD if headings else box.SIMPLE,
        show_header=headings is not None,
    )
    right = set(numbers)
    for column in range(width):
        table.add_column(
            Text(headings[column]) if headings else "",
            justify="right" if column in right else "left",
            style="cyan" if column == 0 else None,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_PIPED)
    console.print(table)


class Progress:
    """How far a command is: `with Progress() as progress: progress.show(done, total, words)`."""

    def __init__(self) -> None:
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._said_at = -LINE_SECONDS

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                BarColumn(bar_width=30),
                TaskProgressColumn(),
                TextColumn("{task.description}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: float, total: float | None, words: str) -> None:
        """Where we are; off a terminal, at most one line every few seconds, and always the last."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=words)
            return
        now = time.monotonic()
        if now - self._said_at >= LINE_SECONDS or (total is not None and done >= total):
            self._said_at = now
            share = f"{100 * done / total:3.0f} %  " if total else ""
            note(share + words)

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            note(line)


def seconds_words(seconds: float) -> str:
    """A span of time for people: `48 s`, `3 min 05 s`, `2 h 04 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def bytes_words(count: float) -> str:
    """A number of bytes for people, in powers of ten: `812 B`, `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
