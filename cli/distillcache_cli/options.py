"""A command's options, from the config class that it fills.

A setting is defined once, in the library: here it becomes a flag or an argument, its help text and default.
Nothing is checked here: `load_config` gets what was typed as text, so a file and a flag hear the same words.
Knows nothing of any one command.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

from distillcache.config import Setting, load_config, settings

__all__ = ["CONFIG_HELP", "configured"]

C = TypeVar("C")
P = ParamSpec("P")
WORDS = {int: "INTEGER", float: "NUMBER", str: "TEXT", Path: "PATH"}
CONFIG_HELP = "TOML file of settings, named as the flags are, with `_` for `-`; flags override it."


def configured(config: type[C]) -> Callable[[Callable[Concatenate[C, P], None]], Callable[..., None]]:
    """Make a command of a function whose first parameter is a config.

    The command takes the settings of `config`, `--config FILE`, and the function's other parameters, which
    are typer's own. Only flags that were given override the file.
    """

    def decorate(function: Callable[Concatenate[C, P], None]) -> Callable[..., None]:
        known = settings(config)
        own = list(inspect.signature(function).parameters.values())[1:]

        def command(**given: Any) -> None:
            rest = {each.name: given.pop(each.name) for each in own}
            file = given.pop("config")
            # typer gives None or an empty list for what was not typed.
            overrides = {name: value for name, value in given.items() if value is not None and value != []}
            function(load_config(config, file, overrides), **rest)  # type: ignore[call-arg]  # P is `rest`

        parameters = [
            *(_parameter(each) for each in known if each.positional),
            _keyword("config", Path | None, typer.Option("--config", help=CONFIG_HELP, metavar="FILE")),
            *own,
            *(_parameter(each) for each in known if not each.positional),
        ]
        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
        )
        return command

    return decorate


def _parameter(each: Setting) -> inspect.Parameter:
    """One setting as typer wants it: text or nothing, with the real default in the help text."""
    word = "|".join(map(str, each.choices)) if each.choices else WORDS.get(each.kind, "")
    kind: Any = list[str] | None if each.many else bool | None if each.kind is bool else str | None
    about: Any = {"help": _help(each), "show_default": False}
    if each.positional:
        many = "..." if each.many else ""
        return _keyword(each.name, kind, typer.Argument(metavar=f"{each.flag}{many}", **about))
    if each.kind is bool:
        return _keyword(each.name, kind, typer.Option(f"{each.flag}/--no-{each.flag[2:]}", **about))
    return _keyword(each.name, kind, typer.Option(each.flag, metavar=word, **about))


def _keyword(name: str, kind: Any, about: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, about]
    )


def _help(each: Setting) -> str:
    notes = [
        f"{word} {bound:g}"
        for word, bound in (
            ("at least", each.minimum),
            ("above", each.above),
            ("at most", each.maximum),
            ("below", each.below),
        )
        if bound is not None
    ]
    if each.many:
        notes.append("may be repeated")
    if each.required:
        notes.append("required")
    elif each.kind is bool and each.default is not None:
        notes.append(f"default: --{'' if each.default else 'no-'}{each.flag[2:]}")
    elif each.default is not None and each.default != ():
        shown = ", ".join(map(str, each.default)) if each.many else str(each.default)
        notes.append(f"default: {shown}")
    return f"{each.help}  [{'; '.join(notes)}]" if notes else each.help
