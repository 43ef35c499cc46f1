"""Real code to work on: functions cut out of files, the Python standard library unless others are named.

Python is cut with `ast`, other languages with tree-sitter.
A piece remembers where it comes from relative to the folder that was named, never as a path of this machine.
Knows nothing of prompts.
"""

import ast
import os
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from distillcache.errors import ConfigError
from distillcache.generate.languages import LANGUAGES, syntax_tree, walk

__all__ = ["STANDARD_LIBRARY", "Piece", "SourceFile", "cut", "source_files"]

STANDARD_LIBRARY = "stdlib"
# Tests, tables and vendored copies: code that no one would ask to have explained or repaired.
# fmt: off
_LEFT_OUT = frozenset({
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "ensurepip",
    "pydoc_data", "encodings", "__pycache__", "msilib", "node_modules", ".git", ".venv",
})
# fmt: on
_FUNCTIONS = {
    "javascript": ("function_declaration", "method_definition"),
    "typescript": ("function_declaration", "method_definition"),
    "java": ("method_declaration", "constructor_declaration"),
    "go": ("function_declaration", "method_declaration"),
    "rust": ("function_item",),
    "cpp": ("function_definition",),
    "bash": ("function_definition",),
    "sql": ("statement",),
}
# Lines of a piece, by difficulty: first and last.
LINES = {"easy": (5, 12), "medium": (13, 30), "hard": (31, 80)}
_LONGEST_LINE = 160


@dataclass(frozen=True)
class SourceFile:
    """A file to cut: `name` is its path below the folder that was named."""

    path: Path
    name: str
    language: str


@dataclass(frozen=True)
class Piece:
    """One function: its `code`, `language`, `difficulty` by length, and `origin`, such as
    `json/decoder.py:345`.
    """

    code: str
    language: str
    difficulty: str
    origin: str


def source_files(named: Sequence[str]) -> list[SourceFile]:
    """Files of the languages known, below each name, sorted by name.

    Raises `ConfigError` for a name that does not exist or holds no such file.
    """
    suffixes = {suffix: language.id for language in LANGUAGES.values() for suffix in language.suffixes}
    files: list[SourceFile] = []
    for name in named:
        root = Path(sysconfig.get_paths()["stdlib"]) if name == STANDARD_LIBRARY else Path(name)
        if not root.exists():
            raise ConfigError(
                f"--code: nothing to take code from at {name}; name a file, a folder or `{STANDARD_LIBRARY}`"
            )
        base = root.parent if root.is_file() else root
        kept = [
            SourceFile(path, path.relative_to(base).as_posix(), suffixes[path.suffix])
            for path in ([root] if root.is_file() else _below(root))
            if path.suffix in suffixes
        ]
        if not kept:
            raise ConfigError(f"--code: {name} holds no file of a known language ({', '.join(LANGUAGES)})")
        files += kept
    return sorted(files, key=lambda file: (file.name, file.path))


def _below(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        yield from (Path(folder, name) for name in names)


def cut(files: Sequence[SourceFile], random: Random) -> Iterator[Piece]:
    """Pieces of all files, file after file in a seeded order; a text that came before is left out."""
    order = list(files)
    random.shuffle(order)
    seen: set[str] = set()
    for file in order:
        for code, line in _functions(file):
            difficulty = _difficulty(code)
            if difficulty is not None and code not in seen:
                seen.add(code)
                yield Piece(code, file.language, difficulty, f"{file.name}:{line}")


def _difficulty(code: str) -> str | None:
    lines = code.split("\n")
    if any(len(line) > _LONGEST_LINE for line in lines):
        return None
    return next((name for name, (first, last) in LINES.items() if first <= len(lines) <= last), None)


def _functions(file: SourceFile) -> Iterator[tuple[str, int]]:
    try:
        text = file.path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return  # a file in another encoding has nothing to offer; the others do
    if file.language == "python":
        yield from _python_functions(text)
        return
    raw = text.encode()
    lines = text.split("\n")
    for node in walk(syntax_tree(file.language, raw)):
        if node.type in _FUNCTIONS[file.language] and not node.has_error:
            first, last = node.start_point.row, node.end_point.row
            yield textwrap.dedent("\n".join(lines[first : last + 1])).strip(), first + 1


def _python_functions(text: str) -> Iterator[tuple[str, int]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    lines = text.split("\n")
    bodies: list[list[ast.stmt]] = [module.body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.ClassDef):
                bodies.append(node.body)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                documented = ast.get_docstring(node, clean=False) is not None
                if len(node.body) - documented < 2:
                    continue  # one statement leaves nothing to explain or repair
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                yield textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno])).strip(), first
