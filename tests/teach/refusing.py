"""How a refusal is told from an accident: one line, an exit code, and the disk as it was."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from distillcache_cli.app import run
from tests.teach.teaching import contents

WORK = re.compile(r"corpus: | *[0-9]+ %")
Refuse = Callable[[list[str]], str]


def refusal(arguments: list[str], folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command line that must be refused, all its files in `folder`, and return the one line it says.

    What it says of the corpus and of its work, before, is no part of the refusal.
    """
    before = contents(folder)
    capfd.readouterr()
    code = run(arguments)
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if not WORK.match(line) or "no supervised" in line]
    assert code == 1, err
    assert (out, len(lines)) == ("", 1), err
    assert contents(folder) == before
    where, *what = lines[0].split(": ")
    assert where and what
    return lines[0]
