"""Every file in `configs/` opens with the command that runs it, and that command takes it."""

import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

from distillcache.config import check
from distillcache_cli.app import COMMANDS
from distillcache_cli.errors import exit_code
from distillcache_cli.options import configured

CONFIGS = Path(__file__).parents[2] / "configs"
CLASSES = {
    name: getattr(import_module(f"distillcache.{name}.config"), f"{name.capitalize()}Config")
    for name in ("generate", "teach", "learn")
}
FILES = sorted(
    path.relative_to(CONFIGS.parent) for name in CLASSES for path in (CONFIGS / name).glob("*.toml")
)


def config_of(command_line: str) -> object:
    """The config that a command line makes, without what the command would do with it."""
    program, name, *arguments = shlex.split(command_line)
    assert program == "distillcache"
    configs: list[object] = []
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(configured(CLASSES[name])(configs.append))
    command = typer.main.get_command(app)
    assert exit_code(lambda: command.main(arguments, standalone_mode=False)) == 0
    (config,) = configs
    return config


def test_there_are_files_for_every_command() -> None:
    """A glob that finds nothing would pass every other test here."""
    assert {path.parts[1] for path in FILES} == set(CLASSES)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_opens_with_the_command_that_runs_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And that command reads it, from the root of the project."""
    monkeypatch.chdir(CONFIGS.parent)
    opening = path.read_text(encoding="utf-8").splitlines()[0]
    assert opening.startswith(f"# distillcache {path.parts[1]} ")
    assert f"--config {path.as_posix()}" in opening
    config_of(opening.removeprefix("# "))


@pytest.mark.parametrize("name", CLASSES)
def test_the_example_of_a_command_makes_a_config(name: str) -> None:
    """No flag in it is one that the command does not have, and every default is within its own bounds."""
    check(config_of(COMMANDS[name][1]))
