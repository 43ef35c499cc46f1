"""Windows of a long sequence: pieces of bounded length in which every supervised target counts exactly once.

Knows nothing of text.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["windows"]


def windows(
    tokens: NDArray[np.uint32], supervised: NDArray[np.bool_], max_length: int, stride: int
) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.bool_]]]:
    """Pieces [L'], L' <= max_length, of tokens [L] and their mask; a sequence that fits is its only piece.

    A later piece starts with the last `stride` tokens of the one before, one at least: nothing would predict
    its first target otherwise.
    That context is not supervised again.
    """
    context = max(1, stride)
    if max_length <= context:
        raise ValueError(f"max_length {max_length} must be above stride {stride} and above 1")
    start = 0
    while True:
        end = min(start + max_length, len(tokens))
        mask = supervised[start:end].copy()
        mask[: context if start else 1] = False
        yield tokens[start:end], mask
        if end == len(tokens):
            return
        start = end - context
