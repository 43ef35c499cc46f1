"""The values of rows as they are stored: log-probabilities rounded, entropy in 8 bits, small ids.

Knows nothing of how these arrays are laid out or compressed.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache_shards.errors import CorruptError
from distillcache_shards.rows import Rows

__all__ = ["LOGPROB_DTYPES", "Fields", "entropy_codes", "entropy_nats", "id_dtype", "read_entropy"]

LOGPROB_DTYPES: dict[str, np.dtype[Any]] = {"f16": np.dtype("<f2"), "f32": np.dtype("<f4")}
ENTROPY_STEPS = 255


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """Two bytes an id where they are enough, else four."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True, eq=False)
class Fields:
    """The arrays of N rows with H kept ids and D draws, little-endian."""

    head_counts: NDArray[np.uint32]  # [N]
    draw_counts: NDArray[np.uint32]  # [N]
    tail_mass: NDArray[np.float32]  # [N]
    head_logprobs: NDArray[Any]  # [H], f16 or f32
    head_ids: NDArray[Any]  # [H], u16 or u32
    draw_ids: NDArray[Any]  # [D], as head_ids
    entropy: NDArray[np.uint8]  # [N], in 255ths of ln V

    @classmethod
    def of(cls, rows: Rows, vocab_size: int, logprobs: str) -> "Fields":
        """What is stored of rows, that are not tilted; log-probabilities are rounded to the nearest."""
        assert rows.draw_weights is None
        dtype = LOGPROB_DTYPES[logprobs]
        ids = id_dtype(vocab_size)
        return cls(
            np.diff(rows.head_offsets).astype("<u4"),
            np.diff(rows.draw_offsets).astype("<u4"),
            rows.tail_mass.astype("<f4"),
            np.maximum(rows.head_logprobs, np.finfo(dtype).min).astype(dtype),
            rows.head_ids.astype(ids),
            rows.draw_ids.astype(ids),
            entropy_codes(rows.entropy, vocab_size),
        )

    def rows(self, kind: str, vocab_size: int) -> Rows:
        """The rows that these are. Raises CorruptError if they are none."""
        rows = Rows(
            kind,
            _offsets(self.head_counts),
            self.head_ids.astype(np.int32),
            self.head_logprobs.astype(np.float32),
            self.tail_mass.astype(np.float32),
            _offsets(self.draw_counts),
            self.draw_ids.astype(np.int32),
            entropy_nats(self.entropy, vocab_size),
        )
        if fault := rows.fault(vocab_size):
            raise CorruptError(f"holds {fault}")
        return rows


def entropy_codes(entropy: NDArray[np.float32], vocab_size: int) -> NDArray[np.uint8]:
    """Entropies in nats as 255ths of the largest there is, rounded to the nearest."""
    codes: NDArray[np.uint8] = np.rint(np.clip(entropy / _entropy_unit(vocab_size), 0, ENTROPY_STEPS)).astype(
        np.uint8
    )
    return codes


def entropy_nats(codes: NDArray[np.uint8], vocab_size: int) -> NDArray[np.float32]:
    """`entropy_codes` undone."""
    return codes.astype(np.float32) * np.float32(_entropy_unit(vocab_size))


def read_entropy(codes: NDArray[np.uint8], vocab_size: int, out: NDArray[np.float32]) -> None:
    """`entropy_nats`, into an array that is there."""
    np.multiply(codes, np.float32(_entropy_unit(vocab_size)), out=out)


def _entropy_unit(vocab_size: int) -> float:
    """Nats of one step: the entropy of V ids is at most ln V."""
    return max(math.log(vocab_size), 1e-9) / ENTROPY_STEPS


def _offsets(counts: NDArray[np.uint32]) -> NDArray[np.int64]:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
