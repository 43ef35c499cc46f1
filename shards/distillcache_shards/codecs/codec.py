"""What a codec is: a name for bytes of a block, with JSON parameters that travel with the data.

Every codec is one class in one file here, found by its id in `distillcache_shards.codecs`.
Knows nothing of files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs.tilt import TiltedGrid
from distillcache_shards.rows import Rows

__all__ = ["Codec", "EncodedBlock", "OpenRows", "PackedBlock", "Spans", "Tables", "WholeRows", "decoded"]

# Arrays that a codec needs beside its parameters, such as an order of the vocabulary; they lie in the index
# file, named `codec.NAME`.
Tables = Mapping[str, NDArray[Any]]
# From here to there, several times.
Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class EncodedBlock:
    """The bytes of one block, and how many they become when they are expanded."""

    data: bytes
    expanded_bytes: int  # what a reader lets a decompressor make; of bytes read in place their number


@dataclass(frozen=True)
class PackedBlock:
    """The bytes of one block as they are found, with what is to be in them."""

    data: NDArray[np.uint8]
    num_rows: int
    expanded_bytes: int


class OpenRows(Protocol):
    """The rows of some blocks, expanded and checked but not decoded: any of them may be read."""

    @property
    def head_offsets(self) -> NDArray[np.int64]:
        """Of the kept ids of its rows, [N + 1]."""

    @property
    def draw_offsets(self) -> NDArray[np.int64]:
        """Of their draws, [N + 1]."""

    def read(self, spans: Spans, out: Rows) -> None:
        """Writes the rows of these spans, one after another, into arrays that have just room for them.

        Offsets are not written. Raises CorruptError, without a place, if they are no rows.
        """


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
    def tilted(self) -> TiltedGrid | None:
        """What units and draws of its rows weigh, if they are tilted."""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters, as plain JSON data, all of them."""

    @property
    def tables(self) -> Tables:
        """The arrays it needs beside them; most need none."""

    def encode(self, rows: Rows) -> EncodedBlock:
        """The bytes of a block of rows."""

    def open(self, blocks: Sequence[PackedBlock]) -> OpenRows:
        """The rows of at least one block. Raises CorruptError, without a place, for other bytes."""

    def decode(self, data: NDArray[np.uint8], num_rows: int, expanded_bytes: int) -> Rows:
        """The rows of a block. Raises CorruptError, without a place, for other bytes."""

    def row_bytes(self, kept: float, draws: float) -> float:
        """Bytes that a row of so many kept ids and draws is expected to take on real text."""


def decoded(rows: OpenRows, kind: str, *, tilted: bool = False) -> Rows:
    """All of them. Raises CorruptError, without a place."""
    out = Rows.room(kind, rows.head_offsets, rows.draw_offsets, tilted=tilted)
    rows.read([(0, len(out))], out)
    return out


class WholeRows:
    """Rows of codecs that are read whole."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._rows = Rows.concatenate(parts)

    @property
    def head_offsets(self) -> NDArray[np.int64]:
        """Of kept ids, [N + 1]."""
        return self._rows.head_offsets

    @property
    def draw_offsets(self) -> NDArray[np.int64]:
        """Of draws, [N + 1]."""
        return self._rows.draw_offsets

    def read(self, spans: Spans, out: Rows) -> None:
        """Copies some rows."""
        found = Rows.concatenate([self._rows[start:end] for start, end in spans])
        for name in ("head_ids", "head_logprobs", "tail_mass", "draw_ids", "entropy"):
            np.copyto(getattr(out, name), getattr(found, name))
