"""The command `distillcache`: its list of commands, `--version`, and where errors become exit codes.

Commands import the library inside their functions, so that `distillcache --help` is quick and has no torch.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from distillcache_cli import demo, evaluate, generate, inspect, learn, teach
from distillcache_cli.errors import exit_code

__all__ = ["COMMANDS", "WIDTH", "app", "main", "run"]

WIDTH = 100
# In the order of a user's way through them; a new command is one line here.
COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "generate": (generate.generate, generate.EXAMPLE),
    "teach": (teach.teach, teach.EXAMPLE),
    "inspect": (inspect.inspect, inspect.EXAMPLE),
    "learn": (learn.learn, learn.EXAMPLE),
    "evaluate": (evaluate.evaluate, evaluate.EXAMPLE),
    "demo": (demo.demo, demo.EXAMPLE),
}

# Without rich: it would double the time of --help, and the page in COMMANDS.md is plain text anyway.
app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)
for name, (function, example) in COMMANDS.items():
    # Given, so that the list of commands shows a whole sentence, and not its first words.
    first_line = (function.__doc__ or "").strip().split("\n")[0]
    app.command(name, short_help=first_line, epilog=f"\b\nExample:\n  {example}")(function)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"distillcache {version('distillcache')}")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog="\b\nExample:\n  distillcache demo")
def distillcache(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Distil a large language model into a small one, from a cache of what the teacher said.

    `teach` runs the teacher once over a corpus and keeps what it said; `inspect` says what is in that cache;
    `learn` trains a student from it, without the teacher.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str], *, width: int | None = None) -> int:
    """Run one command line and return its exit code. Prints; raises only what is a mistake of ours.

    `width` fixes the width of help texts, in characters.
    """
    command = typer.main.get_command(app)
    return exit_code(
        lambda: command.main(
            list(arguments), prog_name="distillcache", standalone_mode=False, terminal_width=width
        )
    )


def main() -> None:
    """The entry point of `distillcache`."""
    sys.exit(run(sys.argv[1:]))
