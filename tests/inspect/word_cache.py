"""A small cache to be looked into, with a tokenizer of words `w0`, `w1` and so on.

Needs neither torch nor transformers.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.shards.small_cache import SmallCache, small_cache


def word_cache(
    folder: Path,
    *,
    make: Callable[..., SmallCache] = small_cache,
    shards: tuple[int, ...] | None = None,
    **how: Any,
) -> SmallCache:
    """A cache written to a folder, of all its shards or some; `how` goes to `make`."""
    small = make(**how)
    file = folder / "tokenizer" / "tokenizer.json"
    file.parent.mkdir(parents=True)
    words = {f"w{number}": number for number in range(small.vocab_size)}
    Tokenizer(WordLevel(words, unk_token="w0")).save(str(file))
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    about = {"teacher": "somebody", "num_parameters": 7, "corpus": "prose", "tokenizer_files": files}
    whole = dataclasses.replace(small, about=about)
    whole.write(folder, shards=shards)
    return whole
