"""A teacher behind an API, as a source of rows: it answers the corpus' prompts, or scores the corpus itself.

Everything is asked before the plan is made, since only what can be aligned exactly may be planned.
What was said stays in a folder beside the cache, and rows are made from there, a shard at a time.
A question that was given up, and a text whose tokens cannot be told exactly, are left out, counted and named.
Knows nothing of shards' files or of how an API is spoken to.

See `align.py` for what a row holds.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillcache.corpus.encoder import Encoder
from distillcache.corpus.report import CorpusReport
from distillcache.corpus.spool import Spool
from distillcache.corpus.tokenise import Tokenised
from distillcache.errors import TeacherError
from distillcache.generate.logprobs import Said
from distillcache.generate.progress import Progress
from distillcache.generate.prompts import Prompt
from distillcache.model_source import ModelSource
from distillcache.teach.api.align import (
    OF_TOKENIZERS,
    Aligned,
    Misaligned,
    align_answer,
    align_ids,
    align_text,
)
from distillcache.teach.api.asker import Confirm, Heard, ask_all, folder_of
from distillcache.teach.api.config import ANSWERS
from distillcache.teach.api.names import TokenNames
from distillcache.teach.api.questions import LeftOut, prompts_of, scores_of, uncount
from distillcache.teach.bounds import Bounds
from distillcache.teach.config import TeachConfig
from distillcache.teach.events import Aligned as AlignedEvent
from distillcache.teach.events import Asked
from distillcache.teach.folder import nearest_folder
from distillcache.teach.source import Heard as Told
from distillcache.teach.source import OnEvent
from distillcache_shards.codecs.tilt import TiltedGrid
from distillcache_shards.rows import TOPK, Rows
from distillcache_shards.shard import Sequences

__all__ = ["ApiTeacher"]


class ApiTeacher:
    """One model behind one server; see `RowSource`.

    `settled`: the cache has its plan already, so that nothing more is asked.
    `confirm` is shown what the missing answers are expected to cost, unless they are known to be free.
    """

    def __init__(self, config: TeachConfig, *, settled: bool, confirm: Confirm, on_event: OnEvent) -> None:
        self.config = config
        self._settled, self._confirm, self._on_event = settled, confirm, on_event
        self._tokenizer: Any = None
        self._kept: list[int] = []  # numbers of the questions that sequences are of
        self._ids: list[str] = []  # of all questions
        self._heard: Heard | None = None
        self._unnamed = self._others = self._most = self._without_end = 0
        self._other_prompts = 0
        self._first_other_prompt = ""

    def identity(self) -> dict[str, Any]:
        """Of the model's name and all that shapes what it says; not of the server's address."""
        answers = self.config.ask == ANSWERS
        named = {
            "kind": "api",
            "teacher": self.config.teacher,
            "own_server": self.config.base_url is not None,
            "ask": self.config.ask,
            "top_logprobs": self.config.row_k,
            "max_tokens": self.config.max_tokens if answers else None,
            "temperature": self.config.temperature,
        }
        text = json.dumps(named, sort_keys=True, separators=(",", ":"))
        return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "dtype": "api"}

    def tokenizer(self) -> Any:
        """The tokenizer that was named for the cache."""
        if self._tokenizer is None:
            assert self.config.tokenizer is not None
            self._tokenizer = ModelSource.of(self.config.tokenizer, TeacherError).tokenizer()
            self._names, self._encoder = TokenNames(self._tokenizer), Encoder(self._tokenizer)
        return self._tokenizer

    def sequences(self, report: CorpusReport) -> Iterator[Tokenised]:
        """All that was said and can be aligned exactly, in the order of the corpus.

        Asks first. Raises what `ask_all` does, and TeacherError if nothing can be aligned.
        """
        answers = self.config.ask == ANSWERS
        left_out = LeftOut()
        prompts: dict[str, Prompt] = {}
        places: list[str] = []

        def spooled() -> Iterator[Tokenised]:
            questions = prompts_of if answers else scores_of
            for each in questions(self.config, self.tokenizer(), report, left_out):
                prompts.setdefault(each.prompt.id, each.prompt)
                self._ids.append(each.prompt.id)
                places.append(each.where)
                yield each.sequence

        self._spool = Spool(spooled(), nearest_folder(self.config.cache))
        if not prompts:
            if left_out:
                raise self._nothing(left_out)
            return
        self._heard = ask_all(
            self.config,
            list(prompts.values()),
            settled=self._settled,
            confirm=self._confirm,
            progress=self._progress,
        )
        for number, id in enumerate(self._ids):
            found = self._found(number, places[number], left_out)
            if found is not None:
                self._kept.append(number)
                self._look(found, number, id, places[number])
                sequence = Tokenised(found.tokens, found.supervised, int(self._spool.records[number]))
                if answers:
                    report.sequences += 1
                    report.tokens += len(found.tokens)
                    report.supervised += len(found.rows)
                yield sequence
            elif not answers:
                uncount(report, self._asked(number))
        answered = len(self._heard.references)
        folder = str(folder_of(self.config))
        self._on_event(AlignedEvent(answered, len(self._kept), dict(left_out), self._heard.ledger, folder))
        if not self._kept:
            raise self._nothing(left_out)

    def load(self, longest: int) -> dict[str, Any]:
        """Nothing to load."""
        return self.identity()

    def about(self) -> dict[str, Any]:
        """Its name, what the server calls the model, and what it was asked."""
        models = [] if self._heard is None else list(self._heard.models)
        return {"teacher": self.config.teacher, "revision": None, "models": models, "asked": self.config.ask}

    def probe(self, spool: Spool) -> Iterator[str]:
        """What is odd about what it said."""
        teacher, wanted = self.config.teacher, self.config.row_k
        if self._most < wanted:
            yield f"{teacher}: at most {self._most} log-probabilities a token came of {wanted} asked for"
        if self._unnamed:
            share = 100 * self._unnamed / max(1, self._others)
            yield (
                f"{teacher}: {self._unnamed} of {self._others} alternatives ({share:.1f} %) are no tokens of "
                f"{self.config.tokenizer} that can be told exactly; their mass is in the tail"
            )
        if self._without_end:
            yield (
                f"{teacher}: {self._without_end} of {len(self._kept)} answers come without a log-probability "
                "of their end, which they do not teach"
            )
        if self._other_prompts:
            yield (
                f"{teacher}: counts other tokens in {self._other_prompts} prompts than the tokenizer's chat "
                f"template makes, first {self._first_other_prompt}; its rows are of another context"
            )

    def rows(
        self,
        sequences: Sequences,
        numbers: NDArray[np.int64],
        batch_tokens: int,
        heard: Told,
        tilted: TiltedGrid | None = None,
    ) -> Rows:
        """What was said of sequences, read again."""
        assert tilted is None
        parts = []
        tokens_done, tokens = 0, max(1, len(sequences.tokens))
        for place, number in enumerate(numbers.tolist()):
            found = self._align(self._kept[number])
            span = slice(int(sequences.offsets[place]), int(sequences.offsets[place + 1]))
            assert np.array_equal(found.tokens, sequences.tokens[span])
            parts.append(found.rows)
            tokens_done += len(found.tokens)
            heard(1000 * tokens_done // tokens, len(found.rows))
        return self._bounded(Rows.concatenate(parts) if parts else Rows.empty(TOPK))

    def topk_rows(
        self, sequences: Sequences, numbers: NDArray[np.int64], batch_tokens: int, heard: Told
    ) -> Rows:
        """The same: an API gives no other rows."""
        return self.rows(sequences, numbers, batch_tokens, heard)

    def _bounded(self, rows: Rows) -> Rows:
        bounds = Bounds.of(self.config)
        return rows if bounds is None else bounds.bound(rows)

    def _progress(self, far: Progress) -> None:
        self._on_event(Asked(far.answered, far.failed, far.total, far.spent_usd))

    def _asked(self, number: int) -> Tokenised:
        """The tokens that a question is about."""
        one = self._spool.read(number, number + 1)
        return Tokenised(np.array(one.tokens, np.uint32), np.array(one.supervised), int(one.records[0]))

    def _found(self, number: int, where: str, left_out: LeftOut) -> Aligned | None:
        """A question's sequence; where there is none, it is left out."""
        assert self._heard is not None
        reason = self._heard.failed.get(self._ids[number])
        if reason is not None:
            left_out.add("no answer", f"{where} ({reason})")
            return None
        try:
            return self._align(number)
        except Misaligned as fault:
            left_out.add(fault.reason, f"{where} ({fault.detail})")
            return None

    def _align(self, number: int) -> Aligned:
        """Raises Misaligned."""
        assert self._heard is not None
        data = self._heard.store.load(self._heard.references[self._ids[number]])
        said, asked, k = Said.unpack(data), self._asked(number), self.config.row_k
        if self.config.ask == ANSWERS:
            if said.finish == "refusal":
                raise Misaligned("a refusal", repr(said.text[:60]))
            prompt_ids: NDArray[np.uint32] = asked.tokens
            return align_answer(said, prompt_ids, self._names, self._encoder, k, self.config.max_length)
        align = align_text if self.config.ask == "echo_text" else align_ids
        return align(said, asked.tokens, asked.supervised, self._names, k)

    def _look(self, found: Aligned, number: int, id: str, where: str) -> None:
        """Note what `probe` will tell."""
        assert self._heard is not None
        self._unnamed += found.unnamed
        self._others += found.others
        self._most = max(self._most, found.most)
        self._without_end += not found.ended
        reported = self._heard.prompt_tokens.get(id)
        if self.config.ask == ANSWERS and reported is not None:
            ours = int(self._spool.lengths[number])
            if reported != ours:
                self._other_prompts += 1
                self._first_other_prompt = self._first_other_prompt or f"{where}: {reported} for {ours}"

    def _nothing(self, left_out: LeftOut) -> TeacherError:
        """All were left out: the commonest reason, and a remedy."""
        reason, tally = max(left_out.items(), key=lambda each: each[1].count)
        remedy = (
            "name the tokenizer of the server's own model by --tokenizer"
            if reason in OF_TOKENIZERS
            else "mend that, and start again; what was said is kept"
        )
        return TeacherError(
            f"{self.config.teacher}: no sequence comes of {len(self._ids)} questions: {tally.count} times "
            f"{reason}, first {tally.first[0]}; {remedy}"
        )
