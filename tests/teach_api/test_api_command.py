"""The command, with a teacher behind an API: what it prints, and what it refuses in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from api_run import Served
from logprob_server import LogprobServer

from distillcache_cli.app import run

Prompts = Callable[[int], Path]


def arguments(cache: Path, source: Path, *more: str) -> list[str]:
    """The command line, `more` at its end."""
    return ["teach", str(cache), "--sources", str(source), *more]


def test_it_says_what_is_asked_and_what_came_of_it(
    byte_teacher: Served, prompts: Prompts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The estimate first, then progress, tokens, cost, and what was left out."""
    with LogprobServer(
        byte_teacher.model,
        byte_teacher.tokenizer,
        speakable=byte_teacher.ascii,
        fault=lambda n: 400 if n == 2 else None,
    ) as server:
        code = run(
            arguments(
                tmp_path / "cache", prompts(4), "--teacher", "openai:tiny", "--tokenizer",
                str(byte_teacher.folder), "--base-url", server.url, "--price", "1", "5", "--yes",
                "--max-tokens", "6", "--concurrency", "1",
            )
        )  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "4 requests, " in err and "price: given on the command line" in err
    assert "answers: 3, of which 3 sequences; " in err and "18 of answers, $0.000" in err
    assert "left out: 1 for no answer, first " in err and "prompts.jsonl:2 (status 400" in err
    assert "openai:tiny" in out


def test_nobody_to_ask_is_an_error(
    byte_teacher: Served, prompts: Prompts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What costs money is not asked for without a yes."""
    with LogprobServer(byte_teacher.model, byte_teacher.tokenizer) as server:
        code = run(
            arguments(
                tmp_path / "cache", prompts(1), "--teacher", "openai:tiny", "--tokenizer",
                str(byte_teacher.folder), "--base-url", server.url, "--price-unknown",
            )
        )  # fmt: skip
        assert not server.bodies
    err = capsys.readouterr().err
    assert code == 1 and err.endswith("--yes: needed where nobody can be asked; the estimate is above\n")
    assert "cost unknown: there is no price" in err


def test_anthropic_is_told_where_to_go(
    prompts: Prompts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before anything is read."""
    code = run(arguments(tmp_path / "cache", prompts(1), "--teacher", "anthropic:claude-haiku-4-5"))
    err = capsys.readouterr().err
    assert code == 1 and err.count("\n") == 1
    assert "no log-probabilities" in err and "generate" in err and "learn --type output" in err
