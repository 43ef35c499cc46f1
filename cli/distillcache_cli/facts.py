"""Facts as tables: a mapping of names to numbers, texts, and further mappings, for people to read.

Units are read from the names (`shard_bytes`, `teach_seconds`), so that a new fact needs no new code here.
Knows nothing of what the facts are about.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from distillcache_cli.terminal import bytes_words, print_table, seconds_words

__all__ = ["print_facts", "value_words"]


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """One table on stdout for the plain facts, and one for every mapping and list of mappings inside."""
    plain = [
        (_name(name), value_words(name, value)) for name, value in facts.items() if not _is_nested(value)
    ]
    if plain:
        print_table(title, plain)
    for name, value in facts.items():
        if not _is_nested(value) or not value:
            continue
        below = f"{title}: {_name(name)}"
        if isinstance(value, Mapping):
            print_facts(below, value)
        else:
            _print_list(below, value)


def value_words(name: str, value: object) -> str:
    """One value for people, in the unit that the end of its name says."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and name.endswith("_bytes"):
        return bytes_words(value)
    if isinstance(value, int | float) and name.endswith("_seconds"):
        return seconds_words(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(value_words(name, each) for each in value) or "-"
    return str(value)


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(each, Mapping) for each in value)
    )


def _print_list(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {
        column
        for column, name in enumerate(names)
        if all(isinstance(row.get(name), int | float | None) for row in rows)
    }
    print_table(
        title,
        [[value_words(name, row.get(name)) for name in names] for row in rows],
        headings=[_name(name) for name in names],
        numbers=numeric,
    )


def _name(name: str) -> str:
    for unit in ("_bytes", "_seconds"):
        name = name.removesuffix(unit) if name.count("_") else name
    return name.replace("_", " ")
