"""Prompt templates, read from TOML files: texts with slots, and what an answer to them must hold.

The built-in files lie beside this one in `templates/`; a user's own have the same form:

    category = "function"
    code_due = true                 # an answer without code is rejected
    answer_tokens = [150, 800]      # for the estimate of cost
    [[template]]
    languages = ["python"]          # all, unless given
    texts = ["Write a {language} function that {task}. {rule}"]
    [template.slots]
    task = ["reverses a list", "sorts a list"]
    rule.easy = ["Keep it short."]  # a slot may depend on the difficulty

`{language}` and `{difficulty}` are always there; with `needs_source = true` so are `{source}` (a fenced block
of real
code) and `{source_language}`; `source = "same"` takes code of the prompt's language, `"other"` of another
one.
"""

import itertools
import math
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from distillcache.errors import ConfigError
from distillcache.generate.languages import LANGUAGES

__all__ = ["BUILTIN", "DIFFICULTIES", "Category", "Text", "load_categories"]

BUILTIN = "builtin"
DIFFICULTIES = ("easy", "medium", "hard")
_ALWAYS = {"language", "difficulty"}
_OF_SOURCE = {"source", "source_language"}


@dataclass(frozen=True)
class Text:
    """One text with the choices of its slots at one difficulty; `source` is None, "same" or "other"."""

    text: str
    slots: tuple[tuple[str, tuple[str, ...]], ...]
    source: str | None

    @property
    def size(self) -> int:
        """Number of ways to fill the slots."""
        return math.prod(len(choices) for _, choices in self.slots)

    def fill(self, index: int, values: Mapping[str, str]) -> str:
        """The `index`-th of `size` fillings; `values` gives the language and the source."""
        chosen = dict(values)
        for name, choices in self.slots:
            index, position = divmod(index, len(choices))
            # A choice may itself name the language.
            chosen[name] = choices[position].replace("{language}", values["language"])
        return self.text.format_map(chosen)


@dataclass(frozen=True)
class Category:
    """One kind of task: `texts[language, difficulty]`, and what its answers must hold."""

    name: str
    code_due: bool
    mutate: bool
    answer_tokens: tuple[int, int]
    texts: Mapping[tuple[str, str], tuple[Text, ...]]


def load_categories(named: Sequence[str]) -> dict[str, Category]:
    """Categories of all files named; files of one category add up. Raises `ConfigError` with the file's
    name.
    """
    categories: dict[str, Category] = {}
    for name in named:
        for where, text in _read(name):
            new = _parse(where, text)
            old = categories.get(new.name)
            if old is None:
                categories[new.name] = new
                continue
            if (old.code_due, old.mutate) != (new.code_due, new.mutate):
                raise ConfigError(
                    f"{where}: `code_due` or `mutate` differ from another file of category `{new.name}`"
                )
            keys = dict.fromkeys(itertools.chain(old.texts, new.texts))
            merged = {key: old.texts.get(key, ()) + new.texts.get(key, ()) for key in keys}
            categories[new.name] = Category(old.name, old.code_due, old.mutate, old.answer_tokens, merged)
    return categories


def _read(name: str) -> list[tuple[str, str]]:
    if name == BUILTIN:
        folder = resources.files(__package__) / "templates"
        files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
        return [(f.name, f.read_text(encoding="utf-8")) for f in files if f.name != "languages.toml"]
    path = Path(name)
    if not path.exists():
        raise ConfigError(f"--templates: no file or folder {name}; name one, or `{BUILTIN}`")
    paths = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not paths:
        raise ConfigError(f"--templates: {name} holds no .toml file")
    return [(str(p), p.read_text(encoding="utf-8")) for p in paths]


def _parse(where: str, text: str) -> Category:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise ConfigError(f"{where}: not TOML; {fault}") from None
    known = {"category", "code_due", "needs_source", "mutate", "answer_tokens", "template"}
    if unknown := set(data) - known:
        raise ConfigError(f"{where}: unknown key `{min(unknown)}`; known are {', '.join(sorted(known))}")
    name, code_due = data.get("category"), data.get("code_due", False)
    low_high = data.get("answer_tokens", [100, 1000])
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: `category` is missing; give it a name")
    if (
        not isinstance(low_high, list)
        or len(low_high) != 2
        or not all(isinstance(n, int) for n in low_high)
        or not 0 < low_high[0] <= low_high[1]
    ):
        raise ConfigError(f"{where}: `answer_tokens` must be two numbers, least and most, found {low_high!r}")
    texts: dict[tuple[str, str], list[Text]] = {}
    needs_source = bool(data.get("needs_source", False))
    for number, template in enumerate(data.get("template", []), 1):
        place = f"{where}: template {number}"
        source = template.get("source", "same") if needs_source else None
        if needs_source and source not in ("same", "other"):
            raise ConfigError(f"{place}: `source` must be same or other, found {source!r}")
        languages = template.get("languages", list(LANGUAGES))
        for language in languages:
            if language not in LANGUAGES:
                raise ConfigError(f"{place}: unknown language `{language}`; known are {', '.join(LANGUAGES)}")
        for difficulty in DIFFICULTIES:
            made = [_text(place, text, template, difficulty, source) for text in template.get("texts", [])]
            for language in languages:
                texts.setdefault((language, difficulty), []).extend(t for t in made if t is not None)
    if not any(texts.values()):
        raise ConfigError(f"{where}: holds no template; give at least one [[template]] with `texts`")
    return Category(
        name, bool(code_due), bool(data.get("mutate", False)), (low_high[0], low_high[1]),
        {key: tuple(value) for key, value in texts.items() if value},
    )  # fmt: skip


def _text(
    place: str, text: str, template: Mapping[str, object], difficulty: str, source: str | None
) -> Text | None:
    slots = template.get("slots", {})
    assert isinstance(slots, dict)
    try:
        names = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
    except ValueError as fault:
        raise ConfigError(
            f"{place}: a text cannot be read as a template; {fault}; write a brace twice"
        ) from None
    if source is not None and "source" not in names:
        raise ConfigError(f"{place}: a text lacks {{source}}, the code to work on: {text[:60]!r}")
    chosen: list[tuple[str, tuple[str, ...]]] = []
    for name in sorted(names - _ALWAYS - (_OF_SOURCE if source is not None else set())):
        choices = slots.get(name)
        if isinstance(choices, dict):
            if difficulty not in choices:
                return None  # a slot that leaves a difficulty out leaves the text out there
            choices = choices[difficulty]
        if not isinstance(choices, list) or not choices or not all(isinstance(c, str) for c in choices):
            raise ConfigError(f"{place}: the text uses {{{name}}}, but `slots.{name}` is no list of texts")
        if len(set(choices)) < len(choices):
            raise ConfigError(f"{place}: `slots.{name}` holds a text twice")
        chosen.append((name, tuple(choices)))
    return Text(text, tuple(chosen), source)
