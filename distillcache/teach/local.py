"""A teacher on this machine, as a source of rows: batches through the model, what is kept of each.

While it computes a batch the next one is made.
Knows nothing of folders or shards' files.

B sequences of a batch, N rows.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillcache.corpus.report import CorpusReport
from distillcache.corpus.spool import Spool
from distillcache.corpus.tokenise import Tokenised, tokenise_corpus
from distillcache.device import dtype_name, pick_device, pick_dtype
from distillcache.errors import TeacherError
from distillcache.model_source import ModelSource
from distillcache.teach.batches import TeacherBatch, batch_members, input_lengths, make_batch
from distillcache.teach.bounds import Bounds
from distillcache.teach.config import TeachConfig
from distillcache.teach.keep import keep_batch
from distillcache.teach.plan import grid_of
from distillcache.teach.rows_config import MULTINOMIAL, SAMPLED, TOPK
from distillcache.teach.sample import Sampler, in_order, sample_batch
from distillcache.teach.source import Heard
from distillcache.teach.teacher import Teacher, load_teacher, probe_perplexity
from distillcache_shards.codecs.tilt import TiltedGrid
from distillcache_shards.rows import Rows
from distillcache_shards.shard import Sequences

__all__ = ["LocalTeacher"]

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 4096, 16_384
PROBE_TOKENS = 1024
Keep = Callable[[Teacher, TeacherBatch, NDArray[np.int64]], Rows]


class LocalTeacher:
    """A transformers model of a folder, the hub or a GGUF file; see `RowSource`.

    `dtype`: in which an earlier run taught, None if there was none.
    """

    def __init__(self, config: TeachConfig, dtype: str | None) -> None:
        self.config = config
        device = pick_device("auto" if config.device == "split" else config.device)
        if config.dtype != "auto" or dtype is None:
            dtype = dtype_name(pick_dtype(config.dtype, device))
        self.dtype = dtype
        self._bounds = Bounds.of(config)
        if config.kept != TOPK:
            self._sampler = Sampler(
                grid_of(config),
                seed=config.seed or 0,
                temperature=1.0 if config.row_temperature is None else config.row_temperature,
                multinomial=config.kept == MULTINOMIAL,
            )
        self._tokenizer: Any = None
        self._teacher: Teacher | None = None

    def identity(self) -> dict[str, Any] | None:
        """Of a model on this machine, from its files alone."""
        source = self._source()
        return None if source.folder is None else {"sha256": source.sha256(), "dtype": self.dtype}

    def tokenizer(self) -> Any:
        """The model's tokenizer, without the model."""
        if self._tokenizer is None:
            self._tokenizer = self._source().tokenizer()
        return self._tokenizer

    def sequences(self, report: CorpusReport) -> Iterator[Tokenised]:
        """The whole corpus."""
        return tokenise_corpus(self.config, self.tokenizer(), report)

    def load(self, longest: int) -> dict[str, Any]:
        """Load the model. Raises TeacherError, also if it has fewer positions than the longest sequence."""
        teacher = self._loaded()
        most = teacher.num_positions
        if most is not None and longest > most:
            raise TeacherError(
                f"{teacher.name}: has {most} positions, found a sequence of {longest} tokens; "
                f"pass --max-length {most}"
            )
        return {"sha256": teacher.sha256, "dtype": self.dtype}

    def about(self) -> dict[str, Any]:
        """Name, revision, parameters, and the tokens of a batch."""
        teacher = self._loaded()
        default = CPU_BATCH_TOKENS if teacher.device.type == "cpu" else GPU_BATCH_TOKENS
        return {
            "teacher": teacher.name,
            "revision": teacher.revision,
            "num_parameters": teacher.num_parameters,
            "batch_tokens": self.config.batch_tokens or default,
        }

    def probe(self, spool: Spool) -> Iterator[str]:
        """Its head, if it cannot be reproduced, and its perplexity on the first sequences."""
        teacher = self._loaded()
        if teacher.head.warning is not None:
            yield teacher.head.warning
        texts, num_tokens = [], 0
        for number in range(len(spool)):
            tokens = np.array(spool.read(number, number + 1).tokens[:PROBE_TOKENS])
            if len(tokens) > 1:
                texts.append(tokens)
                num_tokens += len(tokens)
            if num_tokens >= PROBE_TOKENS:
                break
        probe = probe_perplexity(teacher, texts)
        if probe.warning is not None:
            yield probe.warning

    def rows(
        self,
        sequences: Sequences,
        numbers: NDArray[np.int64],
        batch_tokens: int,
        heard: Heard,
        tilted: TiltedGrid | None = None,
    ) -> Rows:
        """What is kept at every supervised token."""
        if self.config.kept == TOPK:
            return self._rows(self._topk, sequences, numbers, batch_tokens, heard)
        sample = functools.partial(self._sample, dataclasses.replace(self._sampler, tilted=tilted))
        return self._rows(sample, sequences, numbers, batch_tokens, heard)

    def topk_rows(
        self, sequences: Sequences, numbers: NDArray[np.int64], batch_tokens: int, heard: Heard
    ) -> Rows:
        """The likeliest ids at every supervised token."""
        return self._rows(self._topk, sequences, numbers, batch_tokens, heard)

    def _rows(
        self,
        keep: Keep,
        sequences: Sequences,
        numbers: NDArray[np.int64],
        batch_tokens: int,
        heard: Heard,
    ) -> Rows:
        """Of batches in their own order, put into that of the sequences."""
        teacher = self._loaded()
        lengths = input_lengths(sequences)
        asked, all_asked = 0, max(1, int(lengths.sum()))
        parts, places = [], []
        for batch in _ahead(sequences, lengths, batch_tokens):
            with _memory_errors(teacher.name, batch_tokens):
                parts.append(keep(teacher, batch, numbers[batch.members]))
            places.append(batch.rows_N)
            asked += batch.num_tokens
            heard(1000 * asked // all_asked, len(batch.rows_N))
        if not parts:
            return Rows.empty(TOPK if self.config.kept == TOPK else SAMPLED)
        return in_order(Rows.concatenate(parts), np.argsort(np.concatenate(places)))

    def _topk(self, teacher: Teacher, batch: TeacherBatch, numbers_B: NDArray[np.int64]) -> Rows:
        kept = keep_batch(
            teacher.head,
            batch.ids_BT.to(teacher.device),
            batch.mask_BT.to(teacher.device),
            batch.sequences_N,
            batch.positions_N,
            min(self.config.most_ids, teacher.num_valid),
            teacher.valid_V,
            name_sequence=lambda b: f"sequence {numbers_B[b]}",
        )
        rows = Rows.top_k(kept.ids_NK, kept.logprobs_NK, kept.tail_mass_N, kept.entropy_N)
        return rows if self._bounds is None else self._bounds.bound(rows)

    def _sample(
        self, sampler: Sampler, teacher: Teacher, batch: TeacherBatch, numbers_B: NDArray[np.int64]
    ) -> Rows:
        return sample_batch(
            teacher.head,
            batch.ids_BT.to(teacher.device),
            batch.mask_BT.to(teacher.device),
            batch.sequences_N,
            batch.positions_N,
            sampler,
            numbers_B,
            teacher.valid_V,
            name_sequence=lambda b: f"sequence {numbers_B[b]}",
        )

    def _source(self) -> ModelSource:
        config = self.config
        return ModelSource.of(
            config.teacher, TeacherError, gguf_file=config.gguf_file, revision=config.revision
        )

    def _loaded(self) -> Teacher:
        if self._teacher is None:
            self._teacher = load_teacher(
                self.config.teacher,
                gguf_file=self.config.gguf_file,
                revision=self.config.revision,
                dtype=self.dtype,
                device=self.config.device,
                trust_remote_code=self.config.trust_remote_code,
                tokenizer=self.tokenizer(),
            )
        return self._teacher


def _ahead(sequences: Sequences, lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[TeacherBatch]:
    """The batches of a shard, each made while the teacher is at the one before."""
    with ThreadPoolExecutor(1, "reader") as reader:
        coming: Future[TeacherBatch] | None = None
        for members in batch_members(lengths, batch_tokens):
            following = reader.submit(make_batch, sequences, members, lengths)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


@contextlib.contextmanager
def _memory_errors(teacher: str, batch_tokens: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TeacherError(
            f"{teacher}: out of memory in batches of {batch_tokens} tokens; "
            f"pass a smaller --batch-tokens; what is done is kept ({str(error).splitlines()[0][:120]})"
        ) from None
