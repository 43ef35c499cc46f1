"""Every --help on one page, at a fixed width and without colours.

`python -m distillcache_cli.commands_page [FILE]` writes it.
"""

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from distillcache_cli.app import COMMANDS, WIDTH, run

__all__ = ["commands_page"]

OPENING = """# Commands

Written by `make fix`, from what each command says of itself; a test keeps it fresh.
"""


def commands_page() -> str:
    """The page, in Markdown: the help of `distillcache`, then that of every command."""
    parts = [OPENING]
    for command in ([], *([name] for name in COMMANDS)):
        title = " ".join(["distillcache", *command])
        parts.append(f"## {title}\n\n```text\n{_help(command)}\n```\n")
    return "\n".join(parts)


def _help(command: Sequence[str]) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        code = run([*command, "--help"], width=WIDTH)
    assert code == 0
    return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").split("\n"))


if __name__ == "__main__":
    page = commands_page()
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page, encoding="utf-8")
    else:
        print(page, end="")
