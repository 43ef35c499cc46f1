"""One real mistake put into working code: an off-by-one, a swapped operator, a lost negation.

A mutation replaces one token, so the rest of the text, comments included, stays as its author wrote it.
Knows nothing of prompts.
"""

import re
from dataclasses import dataclass
from random import Random

from distillcache.generate.languages import syntax_fault, syntax_tree, walk

__all__ = ["Mutation", "mutate", "mutations", "one_mutation"]

# Parents in which an operator token computes or compares; elsewhere (`*args`, generics, shell redirections)
# the same
# token means something else.
_EXPRESSIONS = {"binary_operator", "comparison_operator", "boolean_operator", "binary_expression"}
_SWAPS = {
    "<": ("<=",),
    "<=": ("<",),
    ">": (">=",),
    ">=": (">",),
    "==": ("!=",),
    "!=": ("==",),
    "===": ("!==",),
    "!==": ("===",),
    "+": ("-",),
    "-": ("+",),
    "and": ("or",),
    "or": ("and",),
    "&&": ("||",),
    "||": ("&&",),
    "is not": ("is",),
    "not in": ("in",),
    "in": ("not in",),
}
_WORDS = {"True": "False", "False": "True", "true": "false", "false": "true", "break": "continue"}
_INTEGERS = {
    "integer",
    "number",
    "decimal_integer_literal",
    "int_literal",
    "integer_literal",
    "number_literal",
}


@dataclass(frozen=True)
class Mutation:
    """Bytes `start` to `stop` of the UTF-8 code become `after`; `line` counts from 1."""

    start: int
    stop: int
    before: str
    after: str
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: `{self.before}` " + (f"became `{self.after}`" if self.after else "is gone")


def mutations(language: str, code: str) -> tuple[Mutation, ...]:
    """Every mistake that can be made in `code` so that it still parses, in the order of the text."""
    return tuple(m for m in _candidates(language, code) if syntax_fault(language, mutate(code, m)) is None)


def one_mutation(language: str, code: str, random: Random) -> Mutation | None:
    """One of them, each as likely as the others, without trying them all; None where there is none."""
    candidates = _candidates(language, code)
    random.shuffle(candidates)
    return next((m for m in candidates if syntax_fault(language, mutate(code, m)) is None), None)


def _candidates(language: str, code: str) -> list[Mutation]:
    raw = code.encode()
    found: list[Mutation] = []
    for node in walk(syntax_tree(language, raw)):
        if node.child_count:
            continue
        before = raw[node.start_byte : node.end_byte].decode()
        parent = node.parent.type if node.parent else ""
        options: tuple[str, ...] = ()
        stop = node.end_byte
        if before in _SWAPS and parent in _EXPRESSIONS:
            options = _SWAPS[before]
        elif before in _WORDS and node.type not in ("string_content", "comment", "identifier"):
            options = (_WORDS[before],)
        elif before == "not" and parent == "not_operator":
            options = ("",)
            stop += 1  # with the space that follows
        elif node.type in _INTEGERS and re.fullmatch(r"[0-9]{1,3}", before):
            options = (str(int(before) + 1),)
        for after in options:
            found.append(Mutation(node.start_byte, stop, before, after, node.start_point.row + 1))
    return found


def mutate(code: str, mutation: Mutation) -> str:
    """`code` with the mistake in it."""
    raw = code.encode()
    changed = raw[: mutation.start] + mutation.after.encode() + raw[mutation.stop :]
    return changed.decode()
