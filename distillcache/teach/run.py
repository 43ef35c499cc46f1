"""`teach`: a teacher reads a corpus once, and what it says goes to a cache folder, shard by shard.

The plan is written before the teacher runs. A shard that is there and sound is left alone, so the same call
finishes what a crash left undone; another plan on the same folder is refused before anything is written.
While the teacher is at a shard, the last one is coded and written.
Knows nothing of how rows are come by, chosen or coded.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distillcache.corpus.records import read_records
from distillcache.corpus.report import CorpusReport
from distillcache.corpus.spool import Spool
from distillcache.errors import ConfigError
from distillcache.teach.calibrate import calibrated
from distillcache.teach.config import TeachConfig
from distillcache.teach.events import Planned, Progress, TeachReport, Warned
from distillcache.teach.fidelity import combined, measure
from distillcache.teach.folder import (
    existing_plan,
    existing_tables,
    folder_bytes,
    nearest_folder,
    planning,
    prepare_folder,
)
from distillcache.teach.local import LocalTeacher
from distillcache.teach.plan import cut_shards, make_index, plan_corpus, plan_settings
from distillcache.teach.source import OnEvent, RowSource
from distillcache.tokenizer import fingerprint, vocabulary
from distillcache_shards.cache import Cache
from distillcache_shards.claims import claimed, remove_leftovers
from distillcache_shards.codecs import Codec, codec_of
from distillcache_shards.durable import disk_errors, partials_of
from distillcache_shards.errors import CorruptError
from distillcache_shards.index import INDEX_FILE, IndexData
from distillcache_shards.plan import Plan
from distillcache_shards.rows import Rows
from distillcache_shards.shard import Sequences, decode_blocks, encode_blocks, shard_file, write_shard

if TYPE_CHECKING:
    from distillcache.generate.estimate import Estimate

__all__ = ["teach"]

BAD = ".bad"


def teach(
    config: TeachConfig,
    *,
    on_event: OnEvent = lambda event: None,
    confirm: Callable[["Estimate"], bool] = lambda estimate: False,
) -> TeachReport:
    """Teach a corpus into a cache folder, or finish it; returns what the folder then holds.

    `confirm` is shown what a teacher behind an API is expected to cost, before the first request.
    Raises DistillcacheError, one line, for what the caller can mend; nothing is lost or half written then.
    """
    folder = config.cache
    existing = existing_plan(folder)
    # What is cheap to know comes first: a refusal is not to cost the loading of a model.
    settings = plan_settings(config, existing)
    _require_same(existing, settings, folder)
    read_records(config.sources, format=config.format)
    source = _source(config, existing, on_event, confirm)
    identity = source.identity()
    _require_same(existing, {"teacher": identity} if identity else {}, folder)
    tokenizer = source.tokenizer()
    words = {"tokenizer": _tokenizer_section(tokenizer, config.row_k)}
    _require_same(existing, words, folder)

    report = CorpusReport()
    spool = Spool(source.sequences(report), nearest_folder(folder))
    report.require_supervised()
    num_shards = len(cut_shards(spool.rows, config.shard_rows)) - 1
    on_event(Planned(report, num_shards))
    kind, vocab_size = settings["rows"]["kind"], words["tokenizer"]["vocab_size"]

    def known_codec(existing: Plan | None) -> Codec | None:
        """The codec, unless it is yet to be calibrated."""
        if not config.is_calibrated:
            return codec_of(settings["codec"], kind, vocab_size)
        if existing is None:
            return None
        tables = existing_tables(folder, existing)
        return None if tables is None else codec_of(existing.data["codec"], kind, vocab_size, tables)

    def plan_data(codec: Codec, index: IndexData) -> dict[str, Any]:
        """What is known of the plan beside the teacher."""
        params = {"codec": {**settings["codec"], "params": codec.params}}
        return {**words, **settings, **params, "corpus": plan_corpus(spool, index)}

    codec = known_codec(existing)
    if codec is not None:
        index = make_index(spool, config.shard_rows, codec.tables)
        _require_same(existing, plan_data(codec, index), folder)
    longest = int(spool.lengths.max())
    if existing is None or identity is None or codec is None:
        identity = source.load(longest)
    # Whoever comes second to a new folder waits here for the plan of the first.
    with planning(folder) as existing:
        if codec is None:
            codec = known_codec(existing) or calibrated(config, source, spool, vocab_size, on_event)
            index = make_index(spool, config.shard_rows, codec.tables)
            if existing is not None and index.sha256() != existing.index_sha256:
                raise CorruptError(
                    f"{folder / INDEX_FILE}: is damaged or lost, and cannot be made again on this machine; "
                    "copy the file from another copy of the cache, or teach into another folder"
                )
        data = {"teacher": identity, **plan_data(codec, index)}
        _require_same(existing, data, folder)
        about = existing.about if existing is not None else _about(config, source)
        plan = Plan(data, about)
        prepare_folder(folder, plan, index, tokenizer)

    work = _Work(folder, plan, codec, spool, index, config.batch_tokens, on_event)
    missing, redone = work.find_missing()
    if missing:
        source.load(longest)
        for warning in source.probe(spool):
            on_event(Warned(warning))
        work.run(source, missing)
    return work.report(redone)


def _source(
    config: TeachConfig, existing: Plan | None, on_event: OnEvent, confirm: Callable[["Estimate"], bool]
) -> RowSource:
    if config.is_api:
        # Imported here: a vendor's client takes a second to import.
        from distillcache.teach.api.source import ApiTeacher

        return ApiTeacher(config, settled=existing is not None, confirm=confirm, on_event=on_event)
    return LocalTeacher(config, existing.data["teacher"].get("dtype") if existing else None)


class _Work:
    """The shards of one plan, for one process."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        codec: Codec,
        spool: Spool,
        index: IndexData,
        batch_tokens: int | None,
        on_event: OnEvent,
    ) -> None:
        self.folder, self.plan, self.codec, self.spool = folder, plan, codec, spool
        self.bounds: list[int] = index.shard_first_sequence.astype(np.int64).tolist()
        self.on_event = on_event
        self.batch_tokens = batch_tokens or int(plan.about.get("batch_tokens", 0))
        self.shards_done = 0
        self.tokens_done = self.tokens_total = self.rows_done = self.bytes_written = 0
        self.began = time.monotonic()
        self.seconds = 0.0

    def find_missing(self) -> tuple[list[int], int]:
        """Shards that are not there, and how many damaged ones were set aside to be among them."""
        cache = Cache(self.folder, self.plan)
        with disk_errors(self.folder):
            remove_leftovers(self.folder)
        missing, redone = [], 0
        for shard in range(self.plan.num_shards):
            file = shard_file(self.folder, shard)
            if not file.is_file():
                missing.append(shard)
                continue
            # Every byte again: a shard that rotted since is redone now, while a teacher is at hand.
            faults = cache.faults_of_shard(shard, decode=False)
            if faults:
                self.on_event(Warned(f"{faults[0]}; set aside as {file.name}{BAD}"))
                # Another process may have found it at the same time.
                with disk_errors(file), contextlib.suppress(FileNotFoundError):
                    file.rename(file.with_name(file.name + BAD))
                missing.append(shard)
                redone += 1
        self.shards_done = self.plan.num_shards - len(missing)
        return missing, redone

    def run(self, source: RowSource, missing: list[int]) -> None:
        """Teach the missing shards that no other process is at."""

        def tokens(shard: int) -> int:
            return int(self.spool.lengths[self.bounds[shard] : self.bounds[shard + 1]].sum())

        self.tokens_total = sum(map(tokens, missing))
        self.began = time.monotonic()
        writing: Future[int] | None = None
        # Two shards are in memory at most: the one that is taught, and the last, which is written.
        with ThreadPoolExecutor(1, "writer") as writer:
            for shard in missing:
                with contextlib.ExitStack() as claim:
                    if not claim.enter_context(self._claimed(shard)):
                        self.tokens_total -= tokens(shard)
                        continue
                    sequences = self.spool.read(self.bounds[shard], self.bounds[shard + 1])
                    numbers = np.arange(self.bounds[shard], self.bounds[shard + 1])
                    heard = self._listener(tokens(shard))
                    rows = source.rows(sequences, numbers, self.batch_tokens, heard, self.codec.tilted)
                    if writing is not None:
                        self._written(writing.result())
                    writing = writer.submit(self._write, shard, sequences, rows, claim.pop_all())
            if writing is not None:
                self._written(writing.result())
        self.seconds = time.monotonic() - self.began
        elsewhere = self.plan.num_shards - self.shards_done
        if elsewhere:
            self.on_event(
                Warned(
                    f"{self.folder}: {elsewhere} shards are with other processes; should those be stopped, "
                    "start the same command again"
                )
            )

    @contextlib.contextmanager
    def _claimed(self, shard: int) -> Iterator[bool]:
        """Whether the shard is ours to make; what makers that were killed left of it is removed then."""
        file = shard_file(self.folder, shard)
        with disk_errors(file), claimed(file) as ours:
            # Another process may have made it since it was found missing.
            ours = ours and not file.is_file()
            for partial in partials_of(file) if ours else ():
                partial.unlink(missing_ok=True)
            yield ours

    def _written(self, num_bytes: int) -> None:
        self.bytes_written += num_bytes
        self.shards_done += 1
        self._tell()

    def _listener(self, shard_tokens: int) -> Callable[[int, int], None]:
        before = self.tokens_done

        def heard(thousandths: int, num_rows: int) -> None:
            self.tokens_done = before + shard_tokens * thousandths // 1000
            self.rows_done += num_rows
            self._tell()

        return heard

    def _write(self, shard: int, sequences: Sequences, rows: Rows, claim: contextlib.ExitStack) -> int:
        """Code and write one shard, and let go of it; the size of its file in bytes."""
        with claim:
            blocks = encode_blocks(self.codec, sequences, rows, self.plan.block_rows)
            # Read back before it is trusted to the disk: the loss is measured, and a wrong id never written.
            decoded = decode_blocks(self.codec, sequences, blocks, self.plan.block_rows)
            fidelity = measure(rows, decoded, sum(len(each.data) for each in blocks))
            asked = self.plan.data["codec"]["asked"]
            fidelity |= {f"asked_{name}": value for name, value in asked.items()}
            counts = {"kept": rows.num_kept, "draws": rows.num_draws}
            file = write_shard(self.folder, shard, self.plan, sequences, blocks, counts, fidelity)
            return file.stat().st_size

    def _tell(self) -> None:
        seconds = max(1e-9, time.monotonic() - self.began)
        rate = self.tokens_done / seconds
        left = (self.tokens_total - self.tokens_done) / rate if self.tokens_done else None
        self.on_event(
            Progress(
                self.shards_done,
                self.plan.num_shards,
                self.tokens_done,
                self.tokens_total,
                self.rows_done,
                self.bytes_written,
                rate,
                left,
            )
        )

    def report(self, redone: int) -> TeachReport:
        """What the folder holds now."""
        cache = Cache(self.folder, self.plan)
        missing = cache.missing_shards()
        said: list[tuple[int, Mapping[str, Any]]] = []
        kept = draws = 0
        for number in range(cache.num_shards):
            if number not in missing:
                shard = cache.shard(number)
                kept, draws = kept + shard.num_kept, draws + shard.num_draws
                said.append((shard.num_rows, shard.fidelity))
        found, num_rows = combined(said), max(1, sum(rows for rows, _ in said))
        cache_bytes, tokenizer_bytes = folder_bytes(self.folder), folder_bytes(cache.tokenizer_folder)
        return TeachReport(
            teacher=str(self.plan.about["teacher"]),
            sequences=self.plan.num_sequences,
            tokens=self.plan.num_tokens,
            rows=self.plan.num_rows,
            shards=self.plan.num_shards,
            shards_missing=len(missing),
            shards_redone=redone,
            tokens_taught=self.tokens_done,
            teach_seconds=self.seconds,
            tokens_per_second=self.tokens_done / self.seconds if self.seconds else 0.0,
            kept_a_row=kept / num_rows,
            draws_a_row=draws / num_rows,
            mass_kept=found["mass_kept"],
            entropy_nats=found["entropy_nats"],
            codec_kl_nats=found["codec_kl_nats"],
            codec_kl_max_nats=found["codec_kl_max_nats"],
            asked_max_kl_nats=self.plan.data["codec"]["asked"].get("max_kl_nats"),
            asked_row_bytes=self.plan.data["codec"]["asked"].get("row_bytes"),
            row_bytes=found["row_bytes"],
            token_bytes=(cache_bytes - tokenizer_bytes) / self.plan.num_tokens,
            cache_bytes=cache_bytes,
        )


def _require_same(existing: Plan | None, sections: Mapping[str, Any], folder: Path) -> None:
    if existing is not None:
        existing.require_same(sections, folder)


def _tokenizer_section(tokenizer: Any, k: int) -> dict[str, Any]:
    """The section of a plan. Raises ConfigError if there are fewer than k tokens."""
    ids = set(tokenizer.get_vocab().values())
    if k > len(ids):
        raise ConfigError(
            f"--k: must be at most {len(ids)}, the tokens of the teacher's tokenizer, found {k}"
        )
    return {"sha256": fingerprint(tokenizer), "vocab_size": vocabulary(tokenizer)}


def _about(config: TeachConfig, source: RowSource) -> dict[str, Any]:
    """What is told of a cache beside its plan; names without a folder of this machine."""
    return {
        **source.about(),
        "corpus": [
            each if each.startswith("hub:") or each == "-" else Path(each).resolve().name
            for each in config.sources
        ],
        "made_with": f"distillcache {version('distillcache')}",
    }
