"""Which token of the cache's tokenizer a server means, from the id, bytes or text that it names it by.

Never guessed: a name that fits no token, or more than one, is none.
Knows nothing of sequences or rows.

What a token stands for is read from its spelling in byte-level and SentencePiece tokenizers.
Those of other tokenizers are known by their ids alone.
"""

import json
from typing import Any

from distillcache.corpus.encoder import special_tokens
from distillcache.corpus.pieces import BYTE_ALPHABET
from distillcache.generate.logprobs import Entry

__all__ = ["TokenNames"]

# U+FFFD stands for bytes that are no whole character: which, it does not say.
UNREADABLE = "\ufffd"
BLANK = "▁"


class TokenNames:
    """The tokens of a fast tokenizer of transformers, by what they stand for."""

    def __init__(self, tokenizer: Any) -> None:
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        added = {int(number): str(each.content) for number, each in tokenizer.added_tokens_decoder.items()}
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        spell = _speller(described.get("decoder"))
        self.names = {number: name for name, number in vocabulary.items()}
        self.special = frozenset(special_tokens(tokenizer).values())
        self.bytes_of: dict[int, bytes] = {}
        self._ids: dict[bytes, int | None] = {}
        for number, name in self.names.items():
            spelled = added[number].encode() if number in added else spell(name)
            if spelled is not None:
                self.bytes_of[number] = spelled
                self._ids[spelled] = None if spelled in self._ids else number

    def id_of(self, entry: Entry) -> int | None:
        """The token that an entry names, None where that is not certain."""
        if entry.id is not None:
            return entry.id if self.agrees(entry, entry.id) else None
        said = _said(entry)
        return self._ids.get(said) if said else None

    def agrees(self, entry: Entry, number: int) -> bool:
        """Whether nothing that an entry says contradicts its being this token."""
        if number not in self.names or entry.id not in (None, number):
            return False
        said, ours = _said(entry), self.bytes_of.get(number)
        if not said or ours is None or number in self.special:
            # Servers name special tokens in many ways, or not at all.
            return True
        if said == ours:
            return True
        # With an id beside it, a text is for people: a blank may be a mark, or be left out.
        return entry.id is not None and entry.spelled is None and self._reads(entry.text or "", number)

    def _reads(self, text: str, number: int) -> bool:
        ours = self.bytes_of[number].decode("utf-8", "replace")
        return UNREADABLE in ours or text == self.names[number] or _bare(text) == _bare(ours)


def _said(entry: Entry) -> bytes | None:
    """The bytes of a token as a server says them; None where it says none that can be trusted."""
    said = entry.spelled if entry.spelled is not None else (entry.text or "").encode("utf-8", "replace")
    return None if UNREADABLE.encode() in said else said or None


def _bare(text: str) -> str:
    return text.replace(BLANK, " ").replace("Ġ", " ").replace("Ċ", "\n").strip()


def _speller(decoder: Any) -> Any:
    """How a tokenizer with this decoder spells bytes: a function of a token's name, None if not in bytes."""
    kinds = _kinds(decoder)
    if "ByteLevel" in kinds:
        return _byte_level
    if {"Metaspace", "ByteFallback"} & kinds:
        return _sentence_piece
    return lambda name: None


def _kinds(decoder: Any) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))}.union(*(_kinds(each) for each in decoder.get("decoders", ())))


def _byte_level(name: str) -> bytes | None:
    if all(each in BYTE_ALPHABET for each in name):
        return bytes(BYTE_ALPHABET[each] for each in name)
    return None


def _sentence_piece(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace(BLANK, " ").encode()
