"""`distillcache inspect`: what is in a cache, whether its bytes are sound, what it says of one sequence."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distillcache_cli.facts import print_facts
from distillcache_cli.terminal import note, print_json, print_table

if TYPE_CHECKING:
    from distillcache.inspect.facts import SequenceView

__all__ = ["EXAMPLE", "inspect"]

EXAMPLE = "distillcache inspect cache --verify"


def inspect(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="Cache folder.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte, and name what is not sound.")
    ] = False,
    sequence: Annotated[
        int | None,
        typer.Option(
            "--sequence",
            metavar="INTEGER",
            min=0,
            help="Show one sequence, with what the teacher found likely.",
        ),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", metavar="INTEGER", min=1, help="Ids shown at a token of --sequence.")
    ] = 5,
) -> None:
    """Say what is in a cache, without torch and without the teacher.

    Counts, bytes a token by part, mass kept, entropy, teacher, tokenizer, codec, and shards that are missing.
    With --verify the exit code is 1 where something is not sound.
    """
    from distillcache.inspect.facts import facts, sequence_view
    from distillcache.inspect.facts import verify as find_problems

    if sequence is not None:
        view = sequence_view(cache, sequence, top=top)
        if as_json:
            print_json(view.to_dict())
        else:
            _print_sequence(view)
        return
    found = facts(cache).to_dict()
    problems = find_problems(cache) if verify else []
    if as_json:
        print_json(found | ({"problems": [str(each) for each in problems]} if verify else {}))
    else:
        print_facts(str(cache), found)
        if verify and not problems:
            print("every byte is sound")
    for each in problems:
        note(str(each))
    if problems:
        raise typer.Exit(1)


def _print_sequence(view: "SequenceView") -> None:
    """One line a token: what it is, and at a supervised one what the teacher expected there."""
    print_table(
        f"sequence {view.index}, record {view.record}",
        [
            (
                f"{token.position}",
                _visible(token.text),
                "" if not token.supervised else _share(token.probability),
                "  ".join(f"{_visible(guess.text)} {_share(guess.probability)}" for guess in token.top),
                "" if not token.supervised else _share(token.tail_mass),
                "" if not token.supervised else f"{token.entropy_nats:.2f}",
            )
            for token in view.tokens
        ],
        headings=("", "token", "its p", "most likely", "tail", "entropy"),
        numbers=(0, 2, 4, 5),
    )


def _visible(text: str) -> str:
    """A token's text with its spaces to be seen."""
    return text.replace(" ", "·")


def _share(probability: float | None) -> str:
    """A probability in percent; `tail` for an id that was not kept."""
    if probability is None or math.isnan(probability):
        return "tail"
    return f"{100 * probability:.1f} %"
