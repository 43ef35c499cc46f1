"""Room for what lives during one pass: each thread keeps its arrays, since new ones are paid by the page."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["scratch"]

MOST_KEPT_BYTES = 1 << 23  # of larger ones the price is small beside the work
_of_thread = threading.local()


def scratch(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """[count], of any content, until this thread asks for the same type again."""
    kept: dict[str, NDArray[Any]] = _of_thread.__dict__
    found = kept.get(dtype.str)
    if found is None or len(found) < count:
        found = np.empty(count, dtype)
        if found.nbytes <= MOST_KEPT_BYTES:
            kept[dtype.str] = found
    return found[:count]
