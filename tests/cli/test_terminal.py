"""What is drawn: tables as plain text where nobody looks, progress as lines, numbers in words."""

import json
import math
import os
import pty
import subprocess
import sys

import pytest

from distillcache_cli import terminal
from distillcache_cli.terminal import Progress, bytes_words, print_json, print_table, seconds_words


def test_a_table_into_a_pipe_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    """No colours, and numbers to the right."""
    print_table("Shards", [("a", "1"), ("bb", "10")], headings=("name", "rows"), numbers=(1,))
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    assert err == ""
    assert [line.rstrip() for line in out.rstrip().splitlines()] == [
        "Shards",
        "",
        "  name   rows",
        " ─────────────",
        "  a         1",
        "  bb       10",
    ]


def test_what_a_token_says_is_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """`[red]` and `:smile:` are tokens too."""
    print_table("[b]", [("[red]x[/red]", ":smile:")])
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert ":smile:" in out
    assert "[b]" in out


def test_a_long_cell_is_folded_and_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of what was measured is lost to a narrow terminal."""
    print_table("t", [("name", "x" * 300)])
    assert capsys.readouterr().out.count("x") == 300


def test_json_is_one_object_that_any_reader_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """NaN and infinities are not JSON: null stands for them."""
    print_json({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": "é"})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None, "b": [None, 1.5], "c": {"d": None}, "e": "é",
    }  # fmt: skip


def test_progress_off_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """The first, the last, and between them no more than one every few seconds; all of it on stderr."""
    with Progress() as progress:
        for done in range(1001):
            progress.show(done, 1000, f"{done} tokens")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["  0 %  0 tokens", "100 %  1000 tokens"]


def test_progress_goes_on_line_after_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no time between two lines, every call is one."""
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    with Progress() as progress:
        progress.show(1, None, "reading")
        progress.show(1, 2, "teaching")
        progress.say("a warning")
    assert capsys.readouterr().err.splitlines() == ["reading", " 50 %  teaching", "a warning"]


PROGRAM = """
from distillcache_cli.terminal import Progress
with Progress() as progress:
    progress.say("[b]a warning[/b]")
    progress.show(1, 2, "[b]half[/b]")
print("done")
"""


def test_progress_on_a_terminal_is_a_bar_on_stderr() -> None:
    """On a real terminal; stdout has nothing of it."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=theirs, text=True, timeout=60,
        check=True, env=environment,
    )  # fmt: skip
    os.close(theirs)
    drawn = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.stdout == "done\n"
    assert "[b]a warning[/b]" in drawn
    assert "━" in drawn
    assert "[b]half[/b]" in drawn


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3600, "1 h 00 min"),
        (7440, "2 h 04 min"),
    ],
)
def test_a_span_of_time_in_words(seconds: float, words: str) -> None:
    """As people say it."""
    assert seconds_words(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_440_000, "3.4 MB"),
        (5e9, "5.0 GB"),
        (2e15, "2000.0 TB"),
    ],
)
def test_a_number_of_bytes_in_words(count: float, words: str) -> None:
    """In powers of ten, as disks are sold."""
    assert bytes_words(count) == words
