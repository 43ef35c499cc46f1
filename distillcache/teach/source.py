"""Where rows come from: what `teach` asks of a teacher, be it a model on this machine or one behind an API.

Knows nothing of any of them.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distillcache.corpus.report import CorpusReport
from distillcache.corpus.spool import Spool
from distillcache.corpus.tokenise import Tokenised
from distillcache.teach.events import Event
from distillcache_shards.codecs.tilt import TiltedGrid
from distillcache_shards.rows import Rows
from distillcache_shards.shard import Sequences

__all__ = ["Heard", "OnEvent", "RowSource"]

OnEvent = Callable[[Event], None]
# Told after every batch: the share of the tokens that is done, in thousandths, and the rows of the batch.
Heard = Callable[[int, int], None]


class RowSource(Protocol):
    """A teacher, from its name to its rows. The methods are called in the order in which they stand here."""

    def identity(self) -> dict[str, Any] | None:
        """The `teacher` section of a plan; None if only `load` can tell. Raises DistillcacheError."""

    def tokenizer(self) -> Any:
        """Its tokenizer, a fast one of transformers."""

    def sequences(self, report: CorpusReport) -> Iterator[Tokenised]:
        """The sequences that it will teach, in order; counted in the report."""

    def load(self, longest: int) -> dict[str, Any]:
        """Make ready whatever `rows` needs, and return the `teacher` section. A second call does nothing.

        Raises TeacherError if it cannot read a sequence of `longest` tokens.
        """

    def about(self) -> dict[str, Any]:
        """What is told of it beside the plan: `teacher`, its name without a folder, at least."""

    def probe(self, spool: Spool) -> Iterator[str]:
        """What is odd about it, before it runs for hours; warnings of a line each."""

    def rows(
        self,
        sequences: Sequences,
        numbers: NDArray[np.int64],
        batch_tokens: int,
        heard: Heard,
        tilted: TiltedGrid | None = None,
    ) -> Rows:
        """The rows of sequences, whose numbers in the plan are `numbers`; drawn with this tilt, if any."""

    def topk_rows(
        self, sequences: Sequences, numbers: NDArray[np.int64], batch_tokens: int, heard: Heard
    ) -> Rows:
        """`topk` rows of them, whatever kind is kept: of those a codec is made."""
