"""A corpus as sequences: token ids, and which of them are supervised targets.

Decides for every token whether it counts, and cuts what is too long.
Knows nothing of models, shards or files.

A token is supervised if it starts inside what is supervised; one that straddles its beginning is not.
The first token of a sequence never is: no position predicts it.
L tokens of one sequence.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from distillcache.corpus.chat import ChatTemplate
from distillcache.corpus.config import CorpusConfig
from distillcache.corpus.encoder import Encoded, Encoder, refuse_private
from distillcache.corpus.records import Message, Record, read_records
from distillcache.corpus.report import CorpusReport
from distillcache.corpus.windows import windows
from distillcache.errors import CorpusError

__all__ = ["Tokenised", "tokenise", "tokenise_corpus"]

BATCH_RECORDS = 256
BATCH_CHARS = 1 << 22
# Above this a text is tokenised in parts that end with a line: tokens with offsets take far more memory.
PART_CHARS = 1 << 20


@dataclass(frozen=True)
class Tokenised:
    """One sequence: `tokens` uint32 [L], `supervised` bool [L], and the number of its record, from 0."""

    tokens: NDArray[np.uint32]
    supervised: NDArray[np.bool_]  # True for a target that counts; the first never does
    record: int


@dataclass(frozen=True)
class Prepared:
    """A record as text, before it is tokenised."""

    where: str
    record: int
    text: str
    spans: tuple[tuple[int, int], ...] | None  # characters that are supervised; None is all
    document: bool  # the tokenizer's own BOS and EOS belong around it
    aliased: bool


def tokenise_corpus(
    config: CorpusConfig, tokenizer: Any, report: CorpusReport, stdin: BinaryIO | None = None
) -> Iterator[Tokenised]:
    """The sequences of a corpus, in the order of its records.

    `report` is complete when the iterator has ended; `report.require_supervised()` then refuses a corpus that
    teaches nothing.
    Raises CorpusError as `read_records` does, and for a chat that the template cannot render provably.
    """
    records = read_records(
        config.sources,
        format=config.format,
        text_column=config.text_column,
        limit=config.limit,
        report=report,
        stdin=stdin,
    )
    return tokenise(records, tokenizer, config, report)


def tokenise(
    records: Iterable[Record], tokenizer: Any, config: CorpusConfig, report: CorpusReport
) -> Iterator[Tokenised]:
    """The sequences of records, in their order; `tokenizer` is a fast one of transformers and stays as it is.

    Raises CorpusError.
    """
    encoder = Encoder(tokenizer)
    template = None
    if getattr(tokenizer, "chat_template", None):
        template = ChatTemplate(tokenizer, encoder, special_as_text=config.special_tokens == "text")
    elif config.system is not None:
        raise CorpusError(
            "--system: the tokenizer has no chat template to put a system prompt in; leave it out"
        )
    seen: set[int] = set()
    for batch in _batches(_prepare(records, encoder, template, config, report)):
        for prepared, encoded in zip(batch, _encode(batch, encoder, config), strict=True):
            tokens, supervised = _with_mask(prepared, encoded, encoder)
            yield from _sequences(prepared, tokens, supervised, config, report, seen)


def _prepare(
    records: Iterable[Record],
    encoder: Encoder,
    template: ChatTemplate | None,
    config: CorpusConfig,
    report: CorpusReport,
) -> Iterator[Prepared]:
    for number, record in enumerate(records):
        report.records += 1
        if _is_empty(record):
            report.empty.add(record.where)
            continue
        if any(encoder.pattern.search(text) for text in _texts(record)):
            report.written_special.add(record.where)
        yield _prepare_one(record, number, encoder, template, config)


def _prepare_one(
    record: Record, number: int, encoder: Encoder, template: ChatTemplate | None, config: CorpusConfig
) -> Prepared:
    messages = record.messages
    if record.response is not None and template is not None:
        messages = (Message("user", record.prompt or ""), Message("assistant", record.response))
    if messages is None:
        text = record.text if record.text is not None else (record.prompt or "") + (record.response or "")
        whole = record.text is not None or config.supervise == "all"
        aliased = config.special_tokens == "text" and encoder.pattern.search(text) is not None
        if aliased:
            refuse_private(text, record.where)
        return Prepared(
            where=record.where,
            record=number,
            text=text,
            spans=None if whole else ((len(record.prompt or ""), len(text)),),
            document=True,
            aliased=aliased,
        )
    if template is None:
        raise CorpusError(
            f"{record.where}: a chat, and the tokenizer has no chat template; "
            "use an instruct model's tokenizer, or records with `prompt` and `response`"
        )
    if config.system is not None and messages[0].role != "system":
        messages = (Message("system", config.system), *messages)
    rendered = template.render(messages, record.where, spans=config.supervise != "all")
    return Prepared(
        where=record.where,
        record=number,
        text=rendered.text,
        spans=None if config.supervise == "all" else rendered.spans,
        document=False,
        aliased=rendered.aliased,
    )


def _texts(record: Record) -> list[str]:
    said = [each.content for each in record.messages or ()]
    return [*said, *(text for text in (record.text, record.prompt, record.response) if text is not None)]


def _is_empty(record: Record) -> bool:
    """True for a record in which nothing is said, or nothing in answer."""
    if record.messages is not None:
        return not any(each.content.strip() for each in record.messages)
    text = record.text if record.text is not None else record.response or ""
    return not text.strip()


def _batches(prepared: Iterable[Prepared]) -> Iterator[list[Prepared]]:
    batch: list[Prepared] = []
    chars = 0
    for each in prepared:
        batch.append(each)
        chars += len(each.text)
        if len(batch) >= BATCH_RECORDS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _encode(batch: list[Prepared], encoder: Encoder, config: CorpusConfig) -> list[Encoded]:
    """Tokens of each text of a batch, in its order."""
    plain = iter(encoder.encode([part for each in batch if not each.aliased for part in _parts(each.text)]))
    aliased_texts = [part for each in batch if each.aliased for part in _parts(each.text)]
    aliased = iter(encoder.encode_aliased(aliased_texts) if aliased_texts else ())
    found = []
    for each in batch:
        source = aliased if each.aliased else plain
        ids, starts, offset = [], [], 0
        for part in _parts(each.text):
            encoded = next(source)
            ids.append(encoded.ids)
            starts.append(encoded.starts + offset)
            offset += len(part)
        found.append(Encoded(ids=np.concatenate(ids), starts=np.concatenate(starts)))
    return found


def _parts(text: str) -> list[str]:
    """The text in parts of at most PART_CHARS characters, each but the last ending with a line if it can."""
    parts, start = [], 0
    while len(text) - start > PART_CHARS:
        newline = text.rfind("\n", start, start + PART_CHARS)
        end = newline + 1 if newline >= start else start + PART_CHARS
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def _with_mask(
    prepared: Prepared, encoded: Encoded, encoder: Encoder
) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Tokens and mask of a whole record, with what the tokenizer puts around a document."""
    tokens = encoded.ids
    if prepared.spans is None:
        supervised = np.ones(len(tokens), dtype=np.bool_)
    else:
        supervised = np.zeros(len(tokens), dtype=np.bool_)
        for start, end in prepared.spans:
            supervised |= (encoded.starts >= start) & (encoded.starts < end)
    if prepared.document:
        before = np.array(encoder.before_ids, dtype=np.uint32)
        after = np.array(encoder.after_ids, dtype=np.uint32)
        tokens = np.concatenate([before, tokens, after])
        # A document's end is its author's word too: it is what teaches to stop.
        supervised = np.concatenate(
            [np.zeros(len(before), np.bool_), supervised, np.ones(len(after), np.bool_)]
        )
    supervised[:1] = False
    return tokens, supervised


def _sequences(
    prepared: Prepared,
    tokens: NDArray[np.uint32],
    supervised: NDArray[np.bool_],
    config: CorpusConfig,
    report: CorpusReport,
    seen: set[int],
) -> Iterator[Tokenised]:
    if not supervised.any():
        report.unsupervised.add(prepared.where)
        return
    is_cut = len(tokens) > config.max_length
    if is_cut:
        report.cut.add(prepared.where)
    for number, (piece, mask) in enumerate(
        windows(tokens, supervised, config.max_length, config.stride), start=1
    ):
        where = f"{prepared.where} (window {number})" if is_cut else prepared.where
        if not mask.any():
            report.unsupervised_windows.add(where)
            continue
        # Eight bytes are enough to count by, and this set is what grows with the corpus: 70 bytes a sequence.
        key = int.from_bytes(sha256(piece.astype("<u4").tobytes()).digest()[:8], "little")
        if key in seen:
            report.duplicates.add(where)
        seen.add(key)
        report.sequences += 1
        report.windows += is_cut
        report.tokens += len(piece)
        report.supervised += int(mask.sum())
        yield Tokenised(tokens=piece, supervised=mask, record=prepared.record)
