"""The languages a prompt may ask for: their names, tags and suffixes, and parsers for them.

Python is parsed by `ast`, the others by tree-sitter, whose grammars come as wheels and need no network.
Knows nothing of prompts or answers.
"""

import ast
import functools
import importlib
import textwrap
import tomllib
import warnings
from dataclasses import dataclass
from importlib import resources

from tree_sitter import Language as Grammar
from tree_sitter import Node, Parser, Tree

__all__ = ["LANGUAGES", "Language", "syntax_fault", "syntax_tree", "walk"]

# Grammar package and the function in it that returns the grammar.
_GRAMMARS = {
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "java": ("tree_sitter_java", "language"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "bash": ("tree_sitter_bash", "language"),
    "sql": ("tree_sitter_sql", "language"),
}


@dataclass(frozen=True)
class Language:
    """One language: `id` in settings and records, `name` in prompts, `tags` of fenced blocks, file
    `suffixes`.
    """

    id: str
    name: str
    tags: tuple[str, ...]
    suffixes: tuple[str, ...]


def _load() -> dict[str, Language]:
    text = (resources.files(__package__) / "templates" / "languages.toml").read_text(encoding="utf-8")
    return {
        key: Language(key, value["name"], tuple(value["tags"]), tuple(value["suffixes"]))
        for key, value in tomllib.loads(text).items()
    }


LANGUAGES: dict[str, Language] = _load()


@functools.cache
def _parser(language: str) -> Parser:
    package, function = _GRAMMARS[language]
    return Parser(Grammar(getattr(importlib.import_module(package), function)()))


def syntax_tree(language: str, code: bytes) -> Tree:
    """Tree of UTF-8 `code`; `language` is a key of `LANGUAGES`."""
    return _parser(language).parse(code)


def walk(tree: Tree) -> list[Node]:
    """Every node of the tree, outer before inner, in the order of the text."""
    nodes: list[Node] = []
    stack = [tree.root_node]
    while stack:
        node = stack.pop()
        nodes.append(node)
        stack.extend(reversed(node.children))
    return nodes


def syntax_fault(language: str, code: str) -> str | None:
    """Why `code` does not parse, with the line, or None when it does.

    Code that is indented as a whole is read as if it were not: an answer often quotes a method.
    """
    code = textwrap.dedent(code)
    if language == "python":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # an invalid escape is a warning, not a fault
                ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
            return f"line {getattr(fault, 'lineno', None) or 1}: {getattr(fault, 'msg', fault)}"
        return None
    tree = syntax_tree(language, code.encode("utf-8", "replace"))
    if not tree.root_node.has_error:
        return None
    for node in walk(tree):
        if node.is_error or node.is_missing:
            return f"line {node.start_point.row + 1}: syntax error"
    return "syntax error"
