"""How many bytes of text the supervised tokens of a sequence stand for.

Knows nothing of models.

L tokens of a sequence.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["text_bytes"]


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
