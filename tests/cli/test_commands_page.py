"""The page of all --help texts, and the examples that end them."""

from pathlib import Path

import pytest

from distillcache_cli.app import COMMANDS
from distillcache_cli.commands_page import commands_page

PAGE = Path(__file__).parents[2] / "cli" / "COMMANDS.md"


def test_the_page_of_commands_is_fresh() -> None:
    """`make fix` writes it."""
    assert PAGE.read_text(encoding="utf-8") == commands_page()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_its_example(name: str) -> None:
    """A line to copy."""
    _, example = COMMANDS[name]
    assert example.startswith(f"distillcache {name}")
    text = commands_page().split(f"## distillcache {name}\n")[1].split("\n```\n")[0]
    assert text.endswith(f"Example:\n    {example}")
