"""Settings: one definition of each, in a frozen dataclass, read from a TOML file and from flags.

A setting's type, default, help text and bounds are written once, beside its name.
Everything that comes in is checked at the door, and what is wrong is said in one line.
Knows nothing of any one command, and imports the standard library alone.

    @dataclass(frozen=True, kw_only=True)
    class TeachConfig:
        out: Path = setting(positional=True, help="Cache folder.")
        k: int = setting(64, help="Ids kept a row.", minimum=1)

Types: int, float, bool, str, Path, each of them `| None`, `tuple[str, ...]` and `tuple[Path, ...]`.
A number may also be a fraction in text, `"1/50"`.
Paths are relative to the working directory, wherever the file lies that names them.
The word `none`, in a file or as a flag, is None for every setting that may be None: TOML has no word for it.
"""

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from distillcache.errors import ConfigError

__all__ = ["REQUIRED", "Setting", "check", "load_config", "refuse_given", "setting", "settings"]

T = TypeVar("T")
KEY = "distillcache.setting"
FRACTION = re.compile(r"[0-9]{1,9}/[0-9]{1,9}")
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


class Required:
    """The type of `REQUIRED`, the default of a setting that has none."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = Required()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a config class, as a file or a command line needs to know it."""

    name: str
    kind: type  # int, float, bool, str or Path; of one element if `many`
    optional: bool  # may be None
    many: bool  # a tuple
    default: Any  # REQUIRED if it has none
    help: str
    minimum: float | None
    maximum: float | None
    above: float | None
    below: float | None
    choices: tuple[Any, ...] | None
    positional: bool
    flag: str  # `--max-length`; of a positional setting `OUT`

    @property
    def required(self) -> bool:
        """True if the setting has no default."""
        return isinstance(self.default, Required)


@overload
def setting(
    default: T,
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[object, ...] | None = None,
    positional: bool = False,
    flag: str | None = None,
) -> T: ...


@overload
def setting(
    *,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[object, ...] | None = None,
    positional: bool = False,
    flag: str | None = None,
) -> Any: ...


def setting(default: Any = REQUIRED, *, help: str, flag: str | None = None, **about: Any) -> Any:
    """A field of a config class; without a default it must be given.

    `minimum` and `maximum` are allowed values, `above` and `below` are not; `choices` lists all there are.
    `positional` settings stand on the command line without a flag; `flag` replaces the one made of the name.
    """
    metadata = {KEY: {"help": help, "flag": flag, **about}}
    if isinstance(default, Required):
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings(cls: type) -> tuple[Setting, ...]:
    """The settings of a config class, those of its bases first, in the order of their definition.

    Raises TypeError for a field of another type than those this module reads: our mistake, not a user's.
    """
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        if KEY not in field.metadata:
            raise TypeError(f"{cls.__name__}.{field.name} is not made by setting()")
        about = field.metadata[KEY]
        kind, optional, many = _kind(hints[field.name], f"{cls.__name__}.{field.name}")
        positional = about.get("positional", False)
        flag = field.name.upper() if positional else "--" + field.name.replace("_", "-")
        found.append(
            Setting(
                name=field.name,
                kind=kind,
                optional=optional,
                many=many,
                default=REQUIRED if field.default is dataclasses.MISSING else field.default,
                help=about["help"],
                minimum=about.get("minimum"),
                maximum=about.get("maximum"),
                above=about.get("above"),
                below=about.get("below"),
                choices=about.get("choices"),
                positional=positional,
                flag=about["flag"] or flag,
            )
        )
    return tuple(found)


def load_config(cls: type[T], file: Path | None, overrides: Mapping[str, object]) -> T:
    """A config from the file, then from what was given on the command line.

    An override may be text, as a shell hands it over; a value in a file has its own type already.
    Raises ConfigError, one line, for a file that cannot be read, an unknown key, a value of the wrong type or
    out of bounds, and a setting that must be given and is not.
    """
    known = {each.name: each for each in settings(cls)}
    values: dict[str, object] = {}
    if file is not None:
        for name, value in _read(file).items():
            if name not in known:
                raise ConfigError(f"{file}: unknown key `{_line(name)}`{_nearest(name, known)}")
            values[name] = _checked(value, known[name], f"{file}: `{name}`", from_text=False)
    for name, value in overrides.items():
        if name not in known:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag}: unknown setting{_nearest(name, known)}")
        values[name] = _checked(value, known[name], known[name].flag, from_text=True)
    missing = [each for name, each in known.items() if each.required and name not in values]
    if missing:
        flags, names = ", ".join(m.flag for m in missing), ", ".join(f"`{m.name}`" for m in missing)
        raise ConfigError(
            f"{flags}: missing; give it on the command line, or {names} in the file of --config"
            if len(missing) == 1
            else f"{flags}: missing; give them on the command line, or {names} in the file of --config"
        )
    try:
        return cls(**values)
    except ConfigError as error:
        # A config class speaks of flags; the reader of a file must be told the file.
        where, _, what = str(error).partition(": ")
        by_flag = {each.flag: name for name, each in known.items()}
        name = by_flag.get(where, "")
        if file is not None and name in values and name not in overrides:
            raise ConfigError(f"{file}: `{name}`: {what}") from None
        raise


def check(config: object) -> None:
    """Hold a config that was made in Python to its types and bounds, as one from a file is.

    Raises ConfigError that names the class and the setting.
    """
    for each in settings(type(config)):
        value = getattr(config, each.name)
        if value is not None or not each.optional:
            _checked(value, each, f"{type(config).__name__}.{each.name}", from_text=False)


def refuse_given(config: object, names: Iterable[str], why: str) -> None:
    """Raises ConfigError for the first of these settings that is not what it is unless given.

    `why` it would be ignored, in words that end the sentence "has no use".
    """
    known = {each.name: each for each in settings(type(config))}
    for name in names:
        value, each = getattr(config, name), known[name]
        if value != each.default:
            flag = f"--no-{each.flag[2:]}" if value is False else each.flag
            # Text is not said again: an address may hold a key.
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            found = f", found {value:g}" if is_number else ""
            raise ConfigError(f"{flag}: has no use {why}{found}; leave it out")


def _kind(hint: Any, where: str) -> tuple[type, bool, bool]:
    """The plain type, whether it may be None, and whether there are many, of an annotation."""
    optional = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        optional = len(arms) < len(typing.get_args(hint))
        hint = arms[0] if len(arms) == 1 else hint
    if hint in NAMES:
        return hint, optional, False
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and not optional and args in ((str, ...), (Path, ...)):
        return args[0], False, True
    raise TypeError(f"{where}: a setting cannot be of type {hint}")


def _read(file: Path) -> dict[str, object]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; name a TOML file after --config") from None
    except IsADirectoryError:
        raise ConfigError(f"{file}: is a folder; name a TOML file after --config") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text, at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{file}: not TOML: nested too deep; settings are plain `name = value`") from None
    except ValueError as error:
        # tomllib says where only in its text, until Python 3.14.
        what = str(error)
        place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", what)
        if place is None:
            raise ConfigError(f"{file}: not TOML: {_line(what)}") from None
        line = place[1] or str(max(1, len(text.rstrip("\n").split("\n"))))
        what = what[: place.start()]
        raise ConfigError(f"{file}: line {line} is not TOML: {_line(what[:1].lower() + what[1:])}") from None


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(sorted(known))}"


def _checked(value: object, each: Setting, where: str, *, from_text: bool) -> object:
    """The value in the setting's own type. Raises ConfigError if it has another, or is out of bounds."""
    if each.optional and (value is None or value == "none"):
        return None
    if each.many:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: must be a list, found {_show(value)}")
        return tuple(_one(element, each, where, from_text=from_text) for element in value)
    return _one(value, each, where, from_text=from_text)


def _one(value: object, each: Setting, where: str, *, from_text: bool) -> object:
    typed = _typed(value, each.kind, from_text=from_text)
    if typed is None:
        or_none = ", or `none`" if each.optional else ""
        raise ConfigError(f"{where}: must be {NAMES[each.kind]}{or_none}, found {_show(value)}")
    if each.choices is not None and typed not in each.choices:
        wanted = ", ".join(map(str, each.choices))
        raise ConfigError(f"{where}: must be one of {wanted}, found {_show(value)}")
    if isinstance(typed, int | float):
        limit = (
            f"at least {each.minimum}" if each.minimum is not None and typed < each.minimum
            else f"at most {each.maximum}" if each.maximum is not None and typed > each.maximum
            else f"above {each.above}" if each.above is not None and typed <= each.above
            else f"below {each.below}" if each.below is not None and typed >= each.below
            else None
        )  # fmt: skip
        if limit:
            raise ConfigError(f"{where}: must be {limit}, found {_show(typed)}")
    return typed


def _typed(value: object, kind: type, *, from_text: bool) -> object:
    """The value as `kind`, or None where it is not one."""
    if kind is bool:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if kind is str:
        return value if isinstance(value, str) else None
    if kind is Path:
        if isinstance(value, str) and value and "\0" not in value:
            # A shell expands `~` before we see it; nobody does in a file.
            return Path(value) if from_text else Path(value).expanduser()
        return value if isinstance(value, Path) else None
    if isinstance(value, str) and kind is float and FRACTION.fullmatch(value):
        # TOML has no fractions, so a file says them as text.
        over, under = (int(part) for part in value.split("/"))
        return over / under if under else None
    if isinstance(value, str) and not from_text:
        return None
    if not isinstance(value, int | float | str) or (kind is int and isinstance(value, float)):
        return None
    try:
        number: int | float = kind(value)
    except (ValueError, OverflowError):
        return None
    return number if isinstance(number, int) or math.isfinite(number) else None


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of over 40 digits"  # Python refuses to print very long ones
    if isinstance(value, int | float):
        return str(value)
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _line(text: str) -> str:
    """`text` without what would break one line."""
    return text.encode("unicode_escape").decode() if not text.isprintable() else text
