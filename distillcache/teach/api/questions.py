"""The questions that a corpus makes for an API: prompts to answer, or sequences to score.

What is asked is text, so that the same question is known again and asked once.
Knows nothing of the network or of what is said.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache.corpus.chat import ChatTemplate
from distillcache.corpus.encoder import Encoder
from distillcache.corpus.records import Message, Record, read_records
from distillcache.corpus.report import CorpusReport, Tally
from distillcache.corpus.tokenise import Tokenised, tokenise
from distillcache.errors import CorpusError
from distillcache.generate.prompts import Prompt
from distillcache.teach.api.names import TokenNames
from distillcache.teach.config import TeachConfig

__all__ = ["LeftOut", "Question", "prompts_of", "scores_of", "uncount"]

ANSWER = "answer"


class LeftOut(dict[str, Tally]):
    """What is left out, by its reason: how often, and where first."""

    def add(self, reason: str, where: str) -> None:
        """Count one more."""
        self.setdefault(reason, Tally()).add(where)


@dataclass(frozen=True, eq=False)
class Question:
    """One question, and the tokens that it is about: a prompt's, none supervised, or a whole sequence's."""

    prompt: Prompt
    where: str
    sequence: Tokenised


def prompts_of(
    config: TeachConfig, tokenizer: Any, report: CorpusReport, left_out: LeftOut
) -> Iterator[Question]:
    """The prompts of a corpus, as the cache's tokenizer renders them, the header of the answer included.

    A record is a `prompt`, a chat of `messages`, or a text file.
    An answer that is there already, `response` or the assistant's last messages, is dropped: the API is asked
    for its own.
    Raises CorpusError.
    """
    encoder = Encoder(tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise CorpusError(
            f"--tokenizer: {config.tokenizer} has no chat template to render prompts by; "
            "name an instruct model's tokenizer"
        )
    template = ChatTemplate(tokenizer, encoder, special_as_text=True)
    records = read_records(
        config.sources,
        format=config.format,
        text_column="prompt" if config.text_column == "text" else config.text_column,
        limit=config.limit,
        report=report,
    )
    seen: set[str] = set()
    for number, record in enumerate(records):
        report.records += 1
        messages = _asked(record, config.system)
        if not any(each.role != "system" and each.content.strip() for each in messages):
            report.empty.add(record.where)
            continue
        if any(encoder.pattern.search(each.content) for each in messages):
            report.written_special.add(record.where)
        tokens = _prompt_ids(messages, template, encoder, record.where)
        room = config.max_length - len(tokens)
        if room < 1:
            left_out.add("a prompt as long as --max-length", record.where)
            continue
        asked = {
            "messages": [{"role": each.role, "content": each.content} for each in messages],
            "max_tokens": min(config.max_tokens, room),
        }
        prompt = Prompt(json.dumps(asked, ensure_ascii=False), "answers", None, None, False)
        if prompt.id in seen:
            left_out.add("a prompt that came before", record.where)
            continue
        seen.add(prompt.id)
        yield Question(prompt, record.where, Tokenised(tokens, np.zeros(len(tokens), np.bool_), number))


def scores_of(
    config: TeachConfig, tokenizer: Any, report: CorpusReport, left_out: LeftOut
) -> Iterator[Question]:
    """The sequences of a corpus, as they are taught to a local teacher, to be scored.

    Raises CorpusError.
    """
    places: list[str] = []

    def placed(records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            places.append(record.where)
            yield record

    records = read_records(
        config.sources,
        format=config.format,
        text_column=config.text_column,
        limit=config.limit,
        report=report,
    )
    by_text = config.ask == "echo_text"
    names, encoder = TokenNames(tokenizer), Encoder(tokenizer)
    for sequence in tokenise(placed(records), tokenizer, config, report):
        where = places[sequence.record]
        asked: dict[str, object] = {"tokens": sequence.tokens.tolist()}
        if by_text:
            text = _text(sequence.tokens, names, encoder)
            if text is None:
                uncount(report, sequence)
                left_out.add("a piece that begins or ends inside a character", where)
                continue
            asked = {"text": text, "num_tokens": len(sequence.tokens)}
        prompt = Prompt(json.dumps(asked, ensure_ascii=False), "scores", None, None, False, (1, 1))
        yield Question(prompt, where, sequence)


def uncount(report: CorpusReport, sequence: Tokenised) -> None:
    """Take a sequence that is left out of the counts of the corpus."""
    report.sequences -= 1
    report.tokens -= len(sequence.tokens)
    report.supervised -= int(sequence.supervised.sum())


def _asked(record: Record, system: str | None) -> list[Message]:
    if record.messages is None:
        text = record.text if record.text is not None else record.prompt or ""
        messages = [Message("user", text)]
    else:
        messages = list(record.messages)
        while messages and messages[-1].role == "assistant":
            messages.pop()
    if system is not None and messages and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    return messages


def _prompt_ids(
    messages: list[Message], template: ChatTemplate, encoder: Encoder, where: str
) -> NDArray[np.uint32]:
    """The tokens before the answer: all that the template puts before a turn of the assistant's."""
    rendered = template.render([*messages, Message("assistant", ANSWER)], where)
    text = rendered.text[: rendered.spans[-1][0]]
    encode = encoder.encode_aliased if rendered.aliased else encoder.encode
    return encode([text])[0].ids


def _text(tokens: NDArray[np.uint32], names: TokenNames, encoder: Encoder) -> str | None:
    """A sequence as text, without what the server's own tokenizer puts before it."""
    ids = tokens.tolist()
    before = len(encoder.before_ids)
    if ids[:before] == encoder.before_ids:
        ids = ids[before:]
    try:
        return b"".join(names.bytes_of[number] for number in ids).decode()
    except (UnicodeDecodeError, KeyError):
        return None
