"""Tokenizers: who one is, where it is kept, and whether two are the same.

Two tokenizers are the same if every token has the same id in both, special ones included, and both have the
same chat template; sizes of vocabularies say nothing, since models pad them.
Knows nothing of corpora or models.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distillcache.corpus.pieces import Pieces, decode_pieces
from distillcache.errors import ConfigError
from distillcache_shards.durable import disk_errors
from distillcache_shards.errors import CacheError, MismatchError

__all__ = [
    "Pieces",
    "decode_pieces",
    "fingerprint",
    "load_tokenizer",
    "require_same_tokenizer",
    "save_tokenizer",
    "text_bytes",
    "valid_ids",
    "vocabulary",
]

SPECIAL = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


class HasTokenizer(Protocol):
    """A cache, as far as it is known here."""

    @property
    def tokenizer_folder(self) -> Path:
        """Where its tokenizer is kept."""

    @property
    def tokenizer_sha256(self) -> str:
        """The fingerprint of the tokenizer it was made with."""


def identity(tokenizer: Any) -> dict[str, Any]:
    """What makes a tokenizer the one it is, as plain JSON data."""
    return {
        "tokens": {str(token): int(number) for token, number in tokenizer.get_vocab().items()},
        "special": {name: getattr(tokenizer, f"{name}_token_id", None) for name in SPECIAL},
        "chat_template": getattr(tokenizer, "chat_template", None),
    }


def fingerprint(tokenizer: Any) -> str:
    """sha256, hexadecimal, over the canonical JSON of all tokens and their ids, special ids, template.

    A tokenizer that was saved and loaded again has the same.
    """
    canonical = json.dumps(identity(tokenizer), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def valid_ids(tokenizer: Any, vocab_size: int) -> NDArray[np.bool_]:
    """Which of `vocab_size` logits stand for a token, bool [V]; the others pad the embedding matrix."""
    ids = np.fromiter(tokenizer.get_vocab().values(), dtype=np.int64)
    valid = np.zeros(vocab_size, dtype=np.bool_)
    valid[ids[ids < vocab_size]] = True
    return valid


def load_tokenizer(source: str | Path, *, gguf_file: str | None = None, revision: str | None = None) -> Any:
    """The tokenizer of a folder or a hub name, or of a GGUF file in one.

    Raises ConfigError, one line, if there is none.
    """
    from transformers import AutoTokenizer

    options = {"gguf_file": gguf_file, "revision": revision}
    try:
        return AutoTokenizer.from_pretrained(
            str(source), **{k: v for k, v in options.items() if v is not None}
        )
    except Exception as error:  # of the hub, the network, the file or the class: they have no common base
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{source}: no tokenizer that can be loaded: {first}") from None


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer beside `folder`, then put it there in one step; an older one there is replaced.

    Raises CacheError for a slow tokenizer, which has no tokenizer.json, and for a disk that does not take it.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise CacheError(
            f"{folder}: {type(tokenizer).__name__} is a slow tokenizer without a tokenizer.json; "
            "convert it to a fast one first"
        )
    folder = Path(folder)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            written = fresh / "new"
            _save(tokenizer, written)
            if not (written / "tokenizer.json").is_file():
                raise CacheError(
                    f"{folder}: {type(tokenizer).__name__} writes no tokenizer.json; use a fast tokenizer"
                )
            if folder.exists():
                folder.rename(fresh / "old")
            written.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _save(tokenizer: Any, folder: Path) -> None:
    """Raises OSError also where tokenizers, which is no Python, raises an Exception that names one."""
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def require_same_tokenizer(tokenizer: Any, cache: HasTokenizer) -> None:
    """Raises MismatchError that names the first thing in which a tokenizer differs from the cache's."""
    if fingerprint(tokenizer) == cache.tokenizer_sha256:
        return
    theirs = identity(load_tokenizer(cache.tokenizer_folder))
    difference = first_difference(identity(tokenizer), theirs)
    if difference is None:
        raise MismatchError(
            f"{cache.tokenizer_folder}: not the tokenizer that the cache was made with; "
            f"found a fingerprint other than {cache.tokenizer_sha256[:12]}; copy the whole cache again"
        )
    raise MismatchError(
        f"{cache.tokenizer_folder}: not the student's tokenizer: {difference}; "
        "use the cache's tokenizer, or teach again with the student's"
    )


def first_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """In words, the difference of lowest id between two identities; None if they are the same."""
    mine, cached = ours["tokens"], theirs["tokens"]
    for token, number in sorted(cached.items(), key=lambda each: each[1]):
        if mine.get(token) != number:
            return (
                f"token {token!r} has id {_id(mine.get(token))} in the student's and {number} in the cache's"
            )
    for token, number in sorted(mine.items(), key=lambda each: each[1]):
        if token not in cached:
            return f"token {token!r} has id {number} in the student's and none in the cache's"
    for name in SPECIAL:
        a, b = ours["special"][name], theirs["special"][name]
        if a != b:
            return f"the {name} token has id {_id(a)} in the student's and {_id(b)} in the cache's"
    if ours["chat_template"] != theirs["chat_template"]:
        a, b = (_template(each["chat_template"]) for each in (ours, theirs))
        return f"the chat templates differ, {a} in the student's and {b} in the cache's"
    return None


def _id(number: int | None) -> str:
    return "none" if number is None else str(number)


def _template(template: object) -> str:
    return "none" if not template else f"{len(str(template))} characters"


def vocabulary(tokenizer: Any) -> int:
    """V: one more than the largest id of the tokenizer."""
    return 1 + max(int(each) for each in tokenizer.get_vocab().values())


def text_bytes(tokenizer: Any, tokens_L: NDArray[Any], supervised_L: NDArray[np.bool_]) -> int:
    """UTF-8 bytes that the supervised tokens add to the text.

    Special tokens add none. A character whose bytes belong to tokens of both kinds, which byte-level
    tokenizers may cut, counts where its last byte stands, or as the three bytes of U+FFFD.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], supervised_L, [False]]).astype(np.int8)))

    def before(end: int) -> int:
        text = tokenizer.decode(
            tokens_L[:end].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return len(text.encode("utf-8", errors="replace"))

    # Runs are decoded behind what precedes them: alone, some decoders would drop their first blank.
    return sum(before(int(b)) - before(int(a)) for a, b in zip(edges[::2], edges[1::2], strict=True))
