"""What a teacher behind an API may be told, and what it may not: every refusal is one line."""

from pathlib import Path
from typing import Any

import pytest

from distillcache.errors import ConfigError
from distillcache.teach.config import TeachConfig


def config(**settings: Any) -> TeachConfig:
    """A config of a server of one's own."""
    known: dict[str, Any] = {
        "cache": Path("cache"), "sources": ("x.jsonl",), "teacher": "openai:m", "tokenizer": "t",
        "base_url": "http://127.0.0.1:1/v1",
    }  # fmt: skip
    return TeachConfig(**(known | settings))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"teacher": "anthropic:claude-x"}, "no log-probabilities; .*generate.*learn --type output"),
        ({"teacher": "openai:"}, "--teacher: must be openai:MODEL"),
        ({"tokenizer": None}, "--tokenizer: missing"),
        ({"dtype": "fp32"}, "--dtype: has no use as --teacher is an API"),
        ({"batch_tokens": 9}, "--batch-tokens: has no use as --teacher is an API"),
        ({"teacher": "folder"}, "--tokenizer: has no use as --teacher is no API"),
        ({"teacher": "folder", "tokenizer": None}, "--base-url: has no use as --teacher is no API"),
        ({"stride": 3}, "--stride: has no use with --ask answers"),
        ({"supervise": "all"}, "--supervise: has no use with --ask answers"),
        ({"ask": "echo", "temperature": 1.0}, "--temperature: has no use with --ask echo"),
        ({"ask": "echo", "max_tokens": 5}, "--max-tokens: has no use with --ask echo"),
        ({"base_url": None, "top_logprobs": 21}, "--top-logprobs: must be at most 20 at OpenAI, found 21"),
        ({"base_url": None, "ask": "prompt_logprobs"}, "--ask: prompt_logprobs is a field of vLLM's"),
        ({"base_url": None, "token_ids": False}, "--no-token-ids: has no use without --base-url"),
        ({"base_url": "ftp://x"}, "--base-url: must begin with http"),
        ({"base_url": "http://me:secret@x/v1"}, "--base-url: must hold no key"),
        ({"price_input": 1.0}, "--price: give the prices of input and of output together"),
        ({"price_unknown": True, "max_cost": 1.0}, "--price-unknown: contradicts --max-cost"),
        ({"key_file": Path("k"), "key_env": "K"}, "--key-file: give only one"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], line: str) -> None:
    """One line that begins with the flag."""
    with pytest.raises(ConfigError, match=line) as fault:
        config(**settings)
    assert str(fault.value).startswith("--") and "\n" not in str(fault.value)


def test_settings_that_do() -> None:
    """From the other side of each bound."""
    assert config(base_url=None, top_logprobs=20).row_k == 20
    assert config(k=7).row_k == 7 and config(top_logprobs=100).row_k == 64
    assert config(ask="echo_text", stride=3, supervise="all").is_api
    local = TeachConfig(cache=Path("c"), sources=("x",), teacher="folder", k=64, dtype="fp32", batch_tokens=9)
    assert not local.is_api and local.row_k == 64


def test_a_server_without_a_price_needs_one(tmp_path: Path) -> None:
    """0 0 if it is free, or --price-unknown: never a silent zero."""
    from distillcache.generate.prompts import Prompt
    from distillcache.teach.api.asker import ask_all

    prompt = Prompt('{"messages": [], "max_tokens": 1}', "answers", None, None, False)
    with pytest.raises(ConfigError, match="no price for a server of your own; give --price"):
        ask_all(
            config(cache=tmp_path / "c"),
            [prompt],
            settled=False,
            confirm=lambda _: True,
            progress=lambda _: None,
        )
