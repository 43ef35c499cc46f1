"""Token ids as text, from a tokenizer's folder alone: single tokens to look at, and whole sequences to read.

Needs `tokenizers` and neither torch nor transformers, so that looking into a cache starts at once.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer

from distillcache_shards.errors import CacheError

__all__ = ["Pieces", "decode_pieces"]


class Pieces:
    """What each token id of a tokenizer looks like."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special = {
            number: token.content
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(self, token_id: int) -> str:
        """One token as printable text, its leading blank kept.

        A new line is `\\n`, part of a character `<0xE2>`, an id that the tokenizer does not have `<id 123>`.
        """
        token_id = int(token_id)
        if token_id in self.special:
            return self.special[token_id]
        token = self.tokenizer.id_to_token(token_id)
        if token is None:
            return f"<id {token_id}>"
        # Decoders drop a blank at the very beginning, so the token stands after another one.
        return _printable(self._after_anchor(token_id) or token)

    def decode(self, token_ids: Iterable[int]) -> str:
        """A sequence as text, special tokens by their names; ids without a token are left out."""
        return str(self.tokenizer.decode([int(each) for each in token_ids], skip_special_tokens=False))

    def _after_anchor(self, token_id: int) -> str:
        anchor = self._anchor()
        if anchor is None:
            return self.decode([token_id])
        alone, both = self.decode([anchor]), self.decode([anchor, token_id])
        text = both.removeprefix(alone) if both.startswith(alone) else self.decode([token_id])
        if "\ufffd" in text:
            spelled = _bytes(self.tokenizer.id_to_token(token_id) or "")
            return "".join(f"<0x{byte:02X}>" for byte in spelled or b"") or text
        return text

    def _anchor(self) -> int | None:
        for name in ("a", "▁a", "Ġa"):
            found = self.tokenizer.token_to_id(name)
            if found is not None:
                return int(found)
        return None


def decode_pieces(folder: Path) -> Pieces:
    """The pieces of the tokenizer saved in a folder. Raises CacheError if there is none that can be read."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise CacheError(f"{file}: no such file; run `distillcache teach` again on this folder to write it")
    try:
        return Pieces(Tokenizer.from_file(str(file)))
    except Exception as error:  # tokenizers raises nothing more precise
        first = (str(error).splitlines() or [""])[0]
        raise CacheError(
            f"{file}: cannot be read as a tokenizer: {first}; copy it again from its source"
        ) from None


def _printable(text: str) -> str:
    names = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}
    return "".join(
        names.get(each) or (each if each.isprintable() else each.encode("unicode_escape").decode())
        for each in text
    )


def _byte_alphabet() -> dict[str, int]:
    """The characters in which byte-level tokenizers spell bytes (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


BYTE_ALPHABET = _byte_alphabet()


def _bytes(token: str) -> bytes | None:
    """The bytes of a token that is no whole character, None if it is not spelled in bytes."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    if all(each in BYTE_ALPHABET for each in token):
        return bytes(BYTE_ALPHABET[each] for each in token)
    return None
