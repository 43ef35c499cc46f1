"""Token ids of text, with the character at which each token starts, in batches.

Decides what the name of a special token is read as where the corpus spells it out.
Knows nothing of records, templates or masks.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from distillcache.errors import CorpusError

__all__ = ["BREAK", "STAND_IN", "Encoded", "Encoder", "alias", "refuse_private", "special_tokens"]

# Characters of a private plane, which no text of this world holds: around an alias, inside a name that is to
# be plain text, and in place of a message.
ALIAS_OPEN, ALIAS_CLOSE, BREAK, STAND_IN = "\U000ff000", "\U000ff001", "\U000ff002", "\U000ff003"
PROBE = "a b"
PRIVATE = re.compile(f"[{ALIAS_OPEN}-{STAND_IN}]")


@dataclass(frozen=True)
class Encoded:
    """One text as L tokens."""

    ids: NDArray[np.uint32]  # [L]
    starts: NDArray[np.int64]  # [L], first character of each token


class Encoder:
    """A fast tokenizer without additions of its own: no BOS, no truncation, no padding, offsets untrimmed.

    What the tokenizer itself puts around a document is in `before_ids` and `after_ids`.
    The caller's tokenizer is not touched.
    Raises CorpusError for a slow tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not getattr(tokenizer, "is_fast", False) or backend is None:
            raise CorpusError(
                f"{type(tokenizer).__name__}: a slow tokenizer, which cannot say where its tokens stand; "
                "use a model with a tokenizer.json"
            )
        # A copy, since to switch truncation and padding off is to change the tokenizer.
        self.described = json.loads(backend.to_str())
        self.described.update(truncation=None, padding=None)
        self.plain = Tokenizer.from_str(json.dumps(self.described))
        whole = self.plain.encode(PROBE).ids
        # BOS is put on, and offsets are trimmed, by the post-processor.
        self.described["post_processor"] = None
        self.plain.post_processor = None
        self.renamed: Tokenizer | None = None
        self.special = special_tokens(tokenizer)
        self.pattern = re.compile(
            "|".join(re.escape(s) for s in sorted(self.special, key=len, reverse=True)) or "(?!)"
        )
        self.before_ids, self.after_ids = _additions(self.plain, whole, type(tokenizer).__name__)
        eos = tokenizer.eos_token_id
        self.eos_id: int | None = eos if isinstance(eos, int) else None
        if self.eos_id is not None and self.after_ids[-1:] != [self.eos_id]:
            self.after_ids = [*self.after_ids, self.eos_id]

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Texts as the tokenizer reads them: the name of a special token is that token."""
        return _encode(self.plain, texts)

    def encode_aliased(self, texts: Sequence[str]) -> list[Encoded]:
        """Texts in which only `alias(id)` is a special token, and its name is plain text.

        Exact for any tokenizer, since it is the same tokenizer with its special tokens under other names.
        """
        if self.renamed is None:
            self.renamed = _rename(
                self.described, {name: alias(number) for name, number in self.special.items()}
            )
        return _encode(self.renamed, texts)


def alias(token_id: int) -> str:
    """The other name of a special token, one that no text spells by accident."""
    return f"{ALIAS_OPEN}{token_id}{ALIAS_CLOSE}"


def refuse_private(text: str, where: str) -> None:
    """Raises CorpusError if a text holds one of the characters that stand for something else here."""
    if found := PRIVATE.search(text):
        raise CorpusError(
            f"{where}: holds the private character U+{ord(found[0]):X}, which is a mark here; remove it"
        )


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that stand for something else than their text, and their ids."""
    named = set(tokenizer.all_special_tokens)
    added = {
        str(each.content): (int(number), each.special)
        for number, each in tokenizer.added_tokens_decoder.items()
    }
    found = {name: number for name, (number, special) in added.items() if special or name in named}
    return {name: number for name, number in found.items() if name.strip()}


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
    return [
        Encoded(
            ids=np.array(each.ids, dtype=np.uint32),
            starts=np.fromiter((start for start, _ in each.offsets), np.int64, len(each.ids)),
        )
        for each in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]


def _additions(plain: Tokenizer, whole: list[int], name: str) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text; `whole` is the probe with them."""
    inner = plain.encode(PROBE).ids
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    raise CorpusError(
        f"{name}: puts special tokens inside a text; found {whole} for {inner}; use another tokenizer"
    )


def _rename(described: dict[str, Any], names: dict[str, str]) -> Tokenizer:
    """The same tokenizer, ids included, with other names for some tokens."""
    copy = json.loads(json.dumps(described))
    known = {token["content"] for token in copy["added_tokens"]}
    for token in copy["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    vocabulary = copy["model"]["vocab"]
    if isinstance(vocabulary, dict):
        copy["model"]["vocab"] = {names.get(t, t) if t in known else t: n for t, n in vocabulary.items()}
    else:
        copy["model"]["vocab"] = [[names.get(t, t) if t in known else t, score] for t, score in vocabulary]
    unknown = copy["model"].get("unk_token")
    if unknown in known:
        copy["model"]["unk_token"] = names.get(unknown, unknown)
    return Tokenizer.from_str(json.dumps(copy))
