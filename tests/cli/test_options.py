"""A command's options come from its config class: names, help, defaults, and what overrides what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer

from distillcache.config import setting
from distillcache_cli.errors import exit_code
from distillcache_cli.options import configured


@dataclass(frozen=True, kw_only=True)
class Config:
    """One setting of every kind."""

    out: Path = setting(positional=True, help="Folder.")
    files: tuple[str, ...] = setting((), positional=True, help="Files.")
    k: int = setting(64, help="Ids kept.", minimum=1, maximum=512)
    rate: float = setting(0.5, help="Rate.", above=0.0, below=1.0)
    dtype: str = setting("auto", help="Number type.", choices=("auto", "fp32"))
    verify: bool = setting(True, help="Verify.")
    quiet: bool = setting(False, help="Quiet.")
    more: tuple[str, ...] = setting(("a", "b"), help="More.")
    seed: int | None = setting(None, help="Seed.")


def run(*arguments: str) -> tuple[int, list[tuple[Config, bool]]]:
    """Exit code, and what the command was called with."""
    calls: list[tuple[Config, bool]] = []

    @configured(Config)
    def command(
        config: Config, as_json: Annotated[bool, typer.Option("--json", help="JSON.")] = False
    ) -> None:
        """Do it."""
        calls.append((config, as_json))

    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(command)
    group = typer.main.get_command(app)
    return exit_code(lambda: group.main(list(arguments), standalone_mode=False, terminal_width=100)), calls


def test_without_flags_the_defaults_hold() -> None:
    """The class's own, not typer's."""
    assert run("x") == (0, [(Config(out=Path("x")), False)])


def test_every_flag_reaches_its_setting() -> None:
    """In the setting's own type; both words of a truth; lists by repeating."""
    flags = ["--k", "7", "--rate", "0.25", "--dtype", "fp32", "--no-verify", "--quiet", "--seed", "-3"]
    _, [(config, as_json)] = run("x", "f", "g", *flags, "--more", "c", "--more", "d", "--json")
    assert as_json
    assert config == Config(
        out=Path("x"), files=("f", "g"), k=7, rate=0.25, dtype="fp32", verify=False, quiet=True,
        more=("c", "d"), seed=-3
    )  # fmt: skip


def test_only_given_flags_override_the_file(tmp_path: Path) -> None:
    """A default is not a flag."""
    file = tmp_path / "some.toml"
    file.write_text('out = "from-file"\nk = 9\nverify = false\nmore = ["z"]\n')
    _, [(config, _)] = run("--config", str(file), "--k", "8")
    assert config == Config(out=Path("from-file"), k=8, verify=False, more=("z",))


def test_help_shows_every_setting_with_its_bounds_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    """As the class defines them, once."""
    assert run("--help")[0] == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "--k INTEGER Ids kept. [at least 1; at most 512; default: 64]",
        "--rate NUMBER Rate. [above 0; below 1; default: 0.5]",
        "--dtype auto|fp32 Number type. [default: auto]",
        "--verify / --no-verify Verify. [default: --verify]",
        "--quiet / --no-quiet Quiet. [default: --no-quiet]",
        "--more TEXT More. [may be repeated; default: a, b]",
        "--seed INTEGER Seed. --",
        "Folder. [required]",
        "--config FILE",
    ):
        assert words.removesuffix(" --") in text


@pytest.mark.parametrize(
    "flag", [["--k", "0"], ["--k", "513"], ["--rate", "1"], ["--dtype", "x"], ["--seed", "1.5"]]
)
def test_a_wrong_flag_is_one_line_and_nothing_runs(
    flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Named as it was typed."""
    assert run("x", *flag) == (1, [])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{flag[0]}: must be ")
    assert err.count("\n") == 1
