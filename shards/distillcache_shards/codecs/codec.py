"""What a codec is: a name for bytes of a block, with JSON parameters that travel with the data.

Every codec is one class in one file here, found by its id in `distillcache_shards.codecs`.
Knows nothing of files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.rows import Rows

__all__ = ["Codec", "EncodedBlock", "Tables"]

# Arrays that a codec needs beside its parameters, such as an order of the vocabulary; they lie in the index
# file, named `codec.NAME`.
Tables = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class EncodedBlock:
    """The bytes of one block, and how many they become when they are expanded."""

    data: bytes
    expanded_bytes: int  # what a reader lets a decompressor make; of bytes read in place their number


class Codec(Protocol):
    """Rows to the bytes of a block and back.

    One object serves one cache: `kind` of row and size of the vocabulary are those of its plan.
    Encoding is deterministic. Rows come back with ids and offsets as they were, but that ids whose values
    became equal stand by rising id; what is lost in the values depends on the parameters, and every shard
    says how much that is.
    """

    id: ClassVar[str]

    @property
    def kind(self) -> str:
        """The kind of its rows, `topk` or `sampled`."""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, as plain JSON data, all of them."""

    @property
    def tables(self) -> Tables:
        """The arrays it needs beside them; most need none."""

    def encode(self, rows: Rows) -> EncodedBlock:
        """The bytes of a block of rows."""

    def decode(self, data: NDArray[np.uint8], num_rows: int, expanded_bytes: int) -> Rows:
        """The rows of a block. Raises CorruptError, without a place, for other bytes."""

    def row_bytes(self, kept: float, draws: float) -> float:
        """Bytes that a row of so many kept ids and draws is expected to take on real text."""
