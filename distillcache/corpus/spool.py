"""The tokens of a corpus in a temporary file, so that planning knows all of them and memory holds few.

The file has no name: however the process ends, it is gone.
Knows nothing of tokenizers or teachers.

n sequences, T tokens.
"""

import contextlib
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from distillcache.corpus.tokenise import Tokenised
from distillcache_shards.durable import disk_errors
from distillcache_shards.shard import Sequences

__all__ = ["Spool"]

COUNTED_TOKENS = 1 << 20  # at a time


class Spool:
    """All sequences of a corpus, in order, readable in any."""

    def __init__(self, sequences: Iterable[Tokenised], folder: Path) -> None:
        """Write the sequences to temporary files in `folder`. Raises CacheError if its disk fails."""
        lengths, rows, records = array("Q"), array("Q"), array("Q")
        with contextlib.ExitStack() as files:
            with disk_errors(folder):
                tokens = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed below, quietly
                files.callback(_close, tokens)
                mask = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
                files.callback(_close, mask)
            for each in sequences:
                with disk_errors(folder):
                    tokens.write(each.tokens.astype("<u4").tobytes())
                    mask.write(each.supervised.tobytes())
                lengths.append(len(each.tokens))
                rows.append(int(each.supervised.sum()))
                records.append(each.record)
            with disk_errors(folder):
                tokens.flush()
                mask.flush()
            # A map outlives the file that it is of.
            self._tokens = _mapped(tokens, np.dtype("<u4"), sum(lengths))
            self._mask = _mapped(mask, np.dtype(np.bool_), sum(lengths))
        self.lengths: NDArray[np.int64] = np.array(lengths, np.int64)  # [n], tokens
        self.rows: NDArray[np.int64] = np.array(rows, np.int64)  # [n], supervised tokens
        self.records: NDArray[np.int64] = np.array(records, np.int64)  # [n]
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self._offsets[-1])

    def read(self, start: int, end: int) -> Sequences:
        """The sequences `start` to `end`, in place."""
        first, last = self._offsets[start], self._offsets[end]
        return Sequences(
            self._tokens[first:last],
            self._mask[first:last],
            self._offsets[start : end + 1] - first,
            self.records[start:end],
        )

    def supervised_counts(self, vocab_size: int) -> NDArray[np.int64]:
        """How often each id is a target, [V]."""
        counts_V = np.zeros(vocab_size, np.int64)
        for start in range(0, self.num_tokens, COUNTED_TOKENS):
            part = slice(start, start + COUNTED_TOKENS)
            counts_V += np.bincount(self._tokens[part][self._mask[part]], minlength=vocab_size)
        return counts_V

    def take(self, numbers: NDArray[np.int64]) -> Sequences:
        """The sequences of these numbers, one after another, in memory; at least one."""
        parts = [self.read(number, number + 1) for number in numbers.tolist()]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(each.tokens) for each in parts], out=offsets[1:])
        return Sequences(
            np.concatenate([each.tokens for each in parts]),
            np.concatenate([each.supervised for each in parts]),
            offsets,
            self.records[numbers],
        )


def _close(file: IO[bytes]) -> None:
    """Close a file that is of no use any more, also where what was left to write has no room."""
    with contextlib.suppress(OSError):
        file.close()


def _mapped(file: Any, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    # A map of nothing is refused by the system.
    return np.memmap(file, dtype, mode="r", shape=(count,)) if count else np.zeros(0, dtype)
