"""Which answers are fit to teach: each filter gives a reason or nothing, in a fixed order, in the order of
prompts.

Made from what is on disk, so other thresholds cost no new request.
Knows nothing of teachers, files or money.
"""

import hashlib
import re
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]  # ships no types

from distillcache.generate.languages import LANGUAGES, syntax_fault
from distillcache.generate.leaks import leaked_problem, word_runs
from distillcache.generate.prompts import Prompt

__all__ = ["FILTERS", "Filters", "Rejection", "code_blocks"]

# Names, in the order in which they are asked; the first that applies is the reason.
FILTERS = (
    "refusal", "empty", "cut_off", "too_short", "no_code", "does_not_parse", "evaluation_leak",
    "duplicate", "near_duplicate",
)  # fmt: skip

_FENCE = re.compile(
    r"^(?P<fence>`{3,}|~{3,})[ \t]*(?P<tag>[\w+#.-]*)[^\n]*\n(?P<code>.*?)^(?P=fence)[`~]*[ \t]*$",
    re.M | re.S,
)
# A refusal begins the answer; the same words further down belong to advice.
_REFUSAL = re.compile(
    r"\s*(?:unfortunately,?\s+)?(?:"
    r"(?:i['\u2019]?m|i am|we are|we['\u2019]re)\s+(?:(?:very|so|really)\s+)?"
    r"(?:sorry|afraid|unable|not able)\b"
    r"|(?:my\s+)?apologies\b|i\s+apologi[sz]e\b|sorry,?\s+(?:but\s+)?i\b"
    r"|i\s+(?:must|have to)\s+decline\b"
    r"|i\s+(?:can['\u2019]?t|cannot|can not|won['\u2019]?t|will not)\s+(?:be able to\s+)?"
    r"(?:help|assist|provide|comply|fulfil|do (?:that|this)|write|create|generate|answer|discuss|support"
    r"|share|continue|engage|complete|produce|respond)"
    r"|as an ai\b|as a (?:large )?language model\b)",
    re.I,
)


@dataclass(frozen=True)
class Rejection:
    """Why an answer is left out: the filter's name and what it saw."""

    filter: str
    detail: str


@dataclass(frozen=True)
class Block:
    """One fenced block: its tag in lower case, perhaps empty, and its code."""

    tag: str
    code: str


def code_blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order; a block that is not closed is none."""
    return [Block(m["tag"].lower(), m["code"]) for m in _FENCE.finditer(text)]


class Filters:
    """Judges answers one after another; duplicates are judged against those kept before."""

    def __init__(
        self,
        *,
        min_response_chars: int,
        min_code_chars: int,
        near_duplicate: float | None,
        leak_share: float | None,
        parse: tuple[str, ...],
    ) -> None:
        self._min_response_chars = min_response_chars
        self._min_code_chars = min_code_chars
        self._leak_share = leak_share
        self._parse = parse
        self._exact: dict[bytes, str] = {}
        self._near = None if near_duplicate is None else MinHashLSH(threshold=near_duplicate, num_perm=128)
        self._threshold = near_duplicate
        self._minhashes: dict[str, MinHash] = {}

    def judge(self, prompt: Prompt, text: str, finish: str) -> Rejection | None:
        """None for an answer that is kept, which later ones are then compared with."""
        rejection = self._alone(prompt, text, finish) or self._leak(prompt, text)
        return rejection or self._duplicate(prompt.id, text)

    def _alone(self, prompt: Prompt, text: str, finish: str) -> Rejection | None:
        body = text.strip()
        if finish == "refusal" or _REFUSAL.match(body):
            return Rejection("refusal", body[:80])
        if not body:
            return Rejection("empty", "no text")
        if finish == "length":
            return Rejection("cut_off", "ended by the limit on tokens")
        if len(body) < self._min_response_chars:
            return Rejection("too_short", f"{len(body)} characters")
        return self._code(prompt, body) if prompt.code_due else None

    def _code(self, prompt: Prompt, body: str) -> Rejection | None:
        language = LANGUAGES.get(prompt.language or "")
        blocks = code_blocks(body)
        if not blocks and language is not None and syntax_fault(language.id, body) is None and "\n" in body:
            return None  # bare code without a fence
        known = {tag for each in LANGUAGES.values() for tag in each.tags}
        tags = set(language.tags) if language is not None else known
        mine = [b for b in blocks if b.tag in tags] or [b for b in blocks if b.tag not in known]
        longest = max(mine, key=lambda block: len(block.code), default=None)
        if longest is None or len(longest.code.strip()) < self._min_code_chars:
            where = f" in {language.name}" if language is not None else ""
            return Rejection("no_code", f"no block of code{where}")
        if language is not None and language.id in self._parse:
            fault = syntax_fault(language.id, longest.code)
            if fault is not None:
                return Rejection("does_not_parse", fault)
        return None

    def _leak(self, prompt: Prompt, text: str) -> Rejection | None:
        if self._leak_share is None:
            return None
        for what, each in (("prompt", prompt.text), ("answer", text)):
            problem = leaked_problem(each, self._leak_share)
            if problem is not None:
                return Rejection("evaluation_leak", f"{what} holds {problem}")
        return None

    def _duplicate(self, id: str, text: str) -> Rejection | None:
        digest = hashlib.sha256(" ".join(text.split()).encode("utf-8", "replace")).digest()
        if digest in self._exact:
            return Rejection("duplicate", f"same as {self._exact[digest]}")
        if self._near is not None and self._threshold is not None:
            minhash = MinHash(num_perm=128)
            minhash.update_batch([run.encode("utf-8", "replace") for run in word_runs(text, 3) or [text]])
            for other in sorted(self._near.query(minhash)):
                share = minhash.jaccard(self._minhashes[other])
                if share >= self._threshold:
                    return Rejection("near_duplicate", f"{share:.2f} like {other}")
            self._near.insert(id, minhash)
            self._minhashes[id] = minhash
        self._exact[digest] = id
        return None
