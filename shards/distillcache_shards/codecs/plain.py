"""The codec `plain`: arrays as they are, readable in place from the memory map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.codecs.codec import EncodedBlock, PackedBlock, Tables, WholeRows
from distillcache_shards.codecs.fields import LOGPROB_DTYPES, Fields, id_dtype
from distillcache_shards.errors import CorruptError
from distillcache_shards.rows import SAMPLED, Rows

__all__ = ["Plain"]


@dataclass(frozen=True)
class Plain:
    """Sections by falling size of their elements, so that each is aligned: see FORMAT.md, codec `plain`."""

    id: ClassVar[str] = "plain"
    tilted: ClassVar[None] = None
    kind: str
    vocab_size: int
    logprobs: str = "f16"

    @classmethod
    def of(cls, kind: str, vocab_size: int, tables: Tables, params: Mapping[str, Any]) -> "Plain":
        """The codec of a cache, which keeps no tables. Raises ValueError for parameters that are none."""
        if params["logprobs"] not in LOGPROB_DTYPES:
            raise ValueError(f"log-probabilities as {params['logprobs']}")
        return cls(kind, vocab_size, **params)

    @property
    def params(self) -> dict[str, Any]:
        """`logprobs`: f16 or f32."""
        return {"logprobs": self.logprobs}

    @property
    def tables(self) -> Tables:
        """None."""
        return {}

    def encode(self, rows: Rows) -> EncodedBlock:
        """The bytes of a block of rows."""
        fields = Fields.of(rows, self.vocab_size, self.logprobs)
        sections: list[NDArray[Any]] = [rows.head_offsets.astype("<u4")]
        if self.kind == SAMPLED:
            sections.append(rows.draw_offsets.astype("<u4"))
        sections.append(fields.tail_mass)
        wide = [fields.head_logprobs, fields.head_ids, fields.draw_ids]
        sections.extend(sorted(wide, key=lambda each: -each.itemsize))
        sections.append(fields.entropy)
        data = b"".join(each.tobytes() for each in sections)
        return EncodedBlock(data, len(data))

    def open(self, blocks: Sequence[PackedBlock]) -> WholeRows:
        """The rows of at least one block. Raises CorruptError for bytes that are not theirs."""
        return WholeRows([self.decode(each.data, each.num_rows, each.expanded_bytes) for each in blocks])

    def decode(self, data: NDArray[np.uint8], num_rows: int, expanded_bytes: int) -> Rows:
        """The rows of a block. Raises CorruptError for bytes that are not `num_rows` rows."""
        place = 0

        def take(dtype: np.dtype[Any], count: int) -> NDArray[Any]:
            nonlocal place
            end = place + dtype.itemsize * count
            if end > len(data):
                raise CorruptError(f"is shorter than its {num_rows} rows; found {len(data)} bytes")
            section = data[place:end].view(dtype)
            place = end
            return section

        u4, f4 = np.dtype("<u4"), np.dtype("<f4")
        head_counts = _counts(take(u4, num_rows + 1))
        no_draws = np.zeros(num_rows, np.uint32)
        draw_counts = _counts(take(u4, num_rows + 1)) if self.kind == SAMPLED else no_draws
        tail_mass = take(f4, num_rows)
        kept, draws = int(head_counts.sum(dtype=np.int64)), int(draw_counts.sum(dtype=np.int64))
        ids = id_dtype(self.vocab_size)
        wide = [(LOGPROB_DTYPES[self.logprobs], kept), (ids, kept), (ids, draws)]
        found = {
            place_in_row: take(*wide[place_in_row])
            for place_in_row in sorted(range(3), key=lambda each: -wide[each][0].itemsize)
        }
        entropy = take(np.dtype(np.uint8), num_rows)
        if place != len(data) or expanded_bytes != len(data):
            raise CorruptError(f"is longer than its {num_rows} rows; found {len(data)} bytes")
        return Fields(head_counts, draw_counts, tail_mass, found[0], found[1], found[2], entropy).rows(
            self.kind, self.vocab_size
        )

    def row_bytes(self, kept: float, draws: float) -> float:
        """Exact: four bytes an offset, four of tail mass, one of entropy, and the arrays."""
        ids = id_dtype(self.vocab_size).itemsize
        offsets = 8 if self.kind == SAMPLED else 4
        return offsets + 5 + kept * (ids + LOGPROB_DTYPES[self.logprobs].itemsize) + draws * ids


def _counts(offsets: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Differences of offsets from 0 that never fall. Raises CorruptError for others."""
    if offsets[0] != 0 or bool((offsets[1:] < offsets[:-1]).any()):
        raise CorruptError("holds offsets that fall")
    return np.diff(offsets)
