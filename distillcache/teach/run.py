"""`teach`: a teacher reads a corpus once, and what it says goes to a cache folder, shard by shard.

The plan is written before the teacher runs. A shard that is there and sound is left alone, so the same call
finishes what a crash left undone; another plan on the same folder is refused before anything is written.
While the teacher computes a batch, the next one is made and the last shard is coded and written.
Knows nothing of how rows are chosen or coded.

N rows, K kept.
"""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distillcache.corpus.records import read_records
from distillcache.corpus.report import CorpusReport
from distillcache.corpus.spool import Spool
from distillcache.corpus.tokenise import tokenise_corpus
from distillcache.device import dtype_name, pick_device, pick_dtype
from distillcache.errors import ConfigError, TeacherError
from distillcache.teach.batches import TeacherBatch, batch_members, input_lengths, make_batch
from distillcache.teach.config import TeachConfig
from distillcache.teach.events import Event, Planned, Progress, TeachReport, Warned
from distillcache.teach.fidelity import combined, measure
from distillcache.teach.keep import keep_batch
from distillcache.teach.plan import make_index, plan_corpus, plan_settings
from distillcache.teach.teacher import (
    Teacher,
    load_teacher,
    load_teacher_tokenizer,
    local_fingerprint,
    probe_perplexity,
)
from distillcache.tokenizer import fingerprint, save_tokenizer
from distillcache_shards.cache import TOKENIZER_FOLDER, Cache
from distillcache_shards.claims import claimed
from distillcache_shards.codecs import Codec, codec_of
from distillcache_shards.durable import disk_errors, partials_of, write_whole
from distillcache_shards.errors import CacheError
from distillcache_shards.index import INDEX_FILE, IndexData
from distillcache_shards.plan import PLAN_FILE, Plan
from distillcache_shards.rows import Rows
from distillcache_shards.shard import Sequences, decode_blocks, encode_blocks, shard_file, write_shard

__all__ = ["teach"]

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 4096, 16_384
PROBE_TOKENS = 1024
BAD = ".bad"
OnEvent = Callable[[Event], None]


def teach(config: TeachConfig, *, on_event: OnEvent = lambda event: None) -> TeachReport:
    """Teach a corpus into a cache folder, or finish it; returns what the folder then holds.

    Raises DistillcacheError, one line, for what the caller can mend; nothing is lost or half written then.
    """
    folder = config.cache
    existing = _existing_plan(folder)
    settings = plan_settings(config)
    if existing is not None:
        existing.require_same(settings, folder)
    # A source that is missing is refused before any model is loaded.
    read_records(config.sources, format=config.format)
    sha256 = local_fingerprint(config.teacher, config.gguf_file)
    dtype = _dtype(config, existing)
    if existing is not None and sha256 is not None:
        existing.require_same({"teacher": {"sha256": sha256, "dtype": dtype}}, folder)

    tokenizer = load_teacher_tokenizer(config.teacher, gguf_file=config.gguf_file, revision=config.revision)
    vocab_size = 1 + max(tokenizer.get_vocab().values())
    if config.k > len(set(tokenizer.get_vocab().values())):
        raise ConfigError(
            f"--k: must be at most {len(set(tokenizer.get_vocab().values()))}, the tokens of the teacher's "
            f"tokenizer, found {config.k}"
        )
    words = {"tokenizer": {"sha256": fingerprint(tokenizer), "vocab_size": vocab_size}}
    if existing is not None:
        existing.require_same(words, folder)

    report = CorpusReport()
    spool = Spool(tokenise_corpus(config, tokenizer, report), _nearest_folder(folder))
    report.require_supervised()
    codec = codec_of(settings["codec"], settings["rows"]["kind"], vocab_size)
    index = make_index(spool, config.shard_rows, codec.tables)
    corpus = {"corpus": plan_corpus(spool, index)}
    if existing is not None:
        existing.require_same(corpus, folder)
    row_bytes = codec.row_bytes(config.k, 0)
    on_event(Planned(report, len(index.shard_sha256), row_bytes))

    teacher = None
    if existing is None or sha256 is None:
        teacher = _load(config, dtype, tokenizer)
        sha256 = teacher.sha256
    plan = Plan(
        {"teacher": {"sha256": sha256, "dtype": dtype}, **words, **settings, **corpus},
        existing.about if existing is not None else _about(config, teacher, row_bytes),
    )
    if existing is not None:
        existing.require_same(plan.data, folder)
    _write_plan(folder, plan, index, tokenizer)

    work = _Work(folder, plan, codec, spool, index, config, on_event)
    missing, redone = work.find_missing()
    if missing:
        teacher = teacher if teacher is not None else _load(config, dtype, tokenizer)
        _probe(teacher, spool, on_event)
        work.run(teacher, missing)
    return work.report(redone)


class _Work:
    """The shards of one plan, for one process."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        codec: Codec,
        spool: Spool,
        index: IndexData,
        config: TeachConfig,
        on_event: OnEvent,
    ) -> None:
        self.folder, self.plan, self.codec, self.spool = folder, plan, codec, spool
        self.bounds: list[int] = index.shard_first_sequence.astype(np.int64).tolist()
        self.config, self.on_event = config, on_event
        self.batch_tokens = config.batch_tokens or int(plan.about["batch_tokens"])
        self.shards_done = 0
        self.tokens_done = self.tokens_total = self.rows_done = self.bytes_written = 0
        self.began = time.monotonic()
        self.seconds = 0.0

    def find_missing(self) -> tuple[list[int], int]:
        """Shards that are not there, and how many damaged ones were set aside to be among them."""
        cache = Cache(self.folder, self.plan)
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
                with disk_errors(file):
                    file.rename(file.with_name(file.name + BAD))
                missing.append(shard)
                redone += 1
        self.shards_done = self.plan.num_shards - len(missing)
        return missing, redone

    def run(self, teacher: Teacher, missing: list[int]) -> None:
        """Teach the missing shards that no other process is at."""

        def tokens(shard: int) -> int:
            return int(self.spool.lengths[self.bounds[shard] : self.bounds[shard + 1]].sum())

        self.tokens_total = sum(map(tokens, missing))
        self.began = time.monotonic()
        writing: Future[int] | None = None
        # One thread makes the next batch, one codes and writes the last shard: two shards in memory at most.
        with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer:
            for shard in missing:
                with contextlib.ExitStack() as claim:
                    if not claim.enter_context(self._claimed(shard)):
                        self.tokens_total -= tokens(shard)
                        continue
                    sequences = self.spool.read(self.bounds[shard], self.bounds[shard + 1])
                    rows = self._ask(teacher, sequences, shard, reader)
                    held = claim.pop_all()
                if writing is not None:
                    self._written(writing.result())
                writing = writer.submit(self._write, shard, sequences, rows, held)
            if writing is not None:
                self._written(writing.result())
        self.seconds = time.monotonic() - self.began

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

    def _ask(self, teacher: Teacher, sequences: Sequences, shard: int, reader: ThreadPoolExecutor) -> Rows:
        """The rows of a shard, in its order."""
        num_rows, k = int(sequences.supervised.sum()), self.config.k
        ids_NK = np.empty((num_rows, k), np.int32)
        logprobs_NK = np.empty((num_rows, k), np.float32)
        tail_mass_N, entropy_N = np.empty(num_rows, np.float32), np.empty(num_rows, np.float32)
        lengths = input_lengths(sequences)
        asked_tokens, shard_tokens = 0, len(sequences.tokens)
        shard_inputs, done_before = int(lengths.sum()), self.tokens_done
        for batch in _ahead(sequences, lengths, self.batch_tokens, reader):
            numbers = self.bounds[shard] + batch.members

            def name_sequence(b: int, numbers: NDArray[np.int64] = numbers) -> str:
                return f"sequence {numbers[b]}"

            with _memory_errors(teacher.name, self.batch_tokens):
                kept = keep_batch(
                    teacher.head,
                    batch.ids_BT.to(teacher.device),
                    batch.mask_BT.to(teacher.device),
                    batch.sequences_N,
                    batch.positions_N,
                    k,
                    teacher.valid_V,
                    name_sequence=name_sequence,
                )
            ids_NK[batch.rows_N] = kept.ids_NK
            logprobs_NK[batch.rows_N] = kept.logprobs_NK
            tail_mass_N[batch.rows_N] = kept.tail_mass_N
            entropy_N[batch.rows_N] = kept.entropy_N
            asked_tokens += batch.num_tokens
            self.rows_done += len(batch.rows_N)
            # Tokens after the last supervised one are never asked; they count with the others.
            self.tokens_done = done_before + shard_tokens * asked_tokens // max(1, shard_inputs)
            self._tell()
        return Rows.top_k(ids_NK, logprobs_NK, tail_mass_N, entropy_N)

    def _write(self, shard: int, sequences: Sequences, rows: Rows, claim: contextlib.ExitStack) -> int:
        """Code and write one shard, and let go of it; the size of its file in bytes."""
        with claim:
            blocks = encode_blocks(self.codec, sequences, rows, self.plan.block_rows)
            # Read back before it is trusted to the disk: the loss is measured, and a wrong id never written.
            decoded = decode_blocks(self.codec, sequences, blocks, self.plan.block_rows)
            fidelity = measure(rows, decoded, sum(len(each.data) for each in blocks))
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
        found = combined(
            cache.shard(shard).fidelity for shard in range(cache.num_shards) if shard not in missing
        )
        cache_bytes, tokenizer_bytes = _folder_bytes(self.folder), _folder_bytes(cache.tokenizer_folder)
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
            mass_kept=found["mass_kept"],
            entropy_nats=found["entropy_nats"],
            codec_kl_nats=found["codec_kl_nats"],
            codec_kl_max_nats=found["codec_kl_max_nats"],
            planned_row_bytes=float(self.plan.about["planned_row_bytes"]),
            row_bytes=found["row_bytes"],
            token_bytes=(cache_bytes - tokenizer_bytes) / self.plan.num_tokens,
            cache_bytes=cache_bytes,
        )


def _folder_bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _existing_plan(folder: Path) -> Plan | None:
    """The plan of a folder that is a cache, None for one that may become it. Raises CacheError for others."""
    if (folder / PLAN_FILE).exists():
        return Plan.read(folder)
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise CacheError(f"{folder}: is a file; name a folder for the cache")
    ours = (INDEX_FILE, TOKENIZER_FOLDER, f".{TOKENIZER_FOLDER}-", PLAN_FILE, "shard-")
    foreign = sorted(each.name for each in folder.iterdir() if not each.name.startswith(ours))
    if foreign:
        raise CacheError(
            f"{folder}: is neither empty nor a cache; found {foreign[0]}; name another folder for the cache"
        )
    return None


def _dtype(config: TeachConfig, existing: Plan | None) -> str:
    """The dtype to teach in: what is asked for, else what the cache has, else what the device is good at."""
    if config.dtype == "auto" and existing is not None:
        return str(existing.data["teacher"].get("dtype"))
    device = pick_device("auto" if config.device == "split" else config.device)
    return dtype_name(pick_dtype(config.dtype, device))


def _load(config: TeachConfig, dtype: str, tokenizer: Any) -> Teacher:
    return load_teacher(
        config.teacher,
        gguf_file=config.gguf_file,
        revision=config.revision,
        dtype=dtype,
        device=config.device,
        trust_remote_code=config.trust_remote_code,
        tokenizer=tokenizer,
    )


def _about(config: TeachConfig, teacher: Teacher | None, row_bytes: float) -> dict[str, Any]:
    """What is told of a cache beside its plan; names without a folder of this machine."""
    assert teacher is not None
    default = CPU_BATCH_TOKENS if teacher.device.type == "cpu" else GPU_BATCH_TOKENS
    return {
        "teacher": teacher.name,
        "revision": teacher.revision,
        "num_parameters": teacher.num_parameters,
        "corpus": [
            source if source.startswith("hub:") or source == "-" else Path(source).resolve().name
            for source in config.sources
        ],
        "batch_tokens": config.batch_tokens or default,
        "planned_row_bytes": row_bytes,
        "made_with": f"distillcache {version('distillcache')}",
    }


def _write_plan(folder: Path, plan: Plan, index: IndexData, tokenizer: Any) -> None:
    """Put index, tokenizer and plan into the folder, the plan last; what is there already is left alone."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(folder / PLAN_FILE, wait=True):
            if (folder / PLAN_FILE).exists():
                # Perhaps of another process that began at the same time.
                Plan.read(folder).require_same(plan.data, folder)
            for name in (PLAN_FILE, INDEX_FILE):
                for partial in partials_of(folder / name):
                    partial.unlink()
            for left in folder.glob(f".{TOKENIZER_FOLDER}-*"):
                shutil.rmtree(left)
            if _sha256(folder / INDEX_FILE) != plan.index_sha256:
                write_whole(folder / INDEX_FILE, index.parts())
            written = _tokenizer_files(folder)
            if not written or written != plan.about.get("tokenizer_files", written):
                save_tokenizer(tokenizer, folder / TOKENIZER_FOLDER)
            if not (folder / PLAN_FILE).exists():
                plan.about["tokenizer_files"] = _tokenizer_files(folder)
                plan.write(folder)


def _tokenizer_files(folder: Path) -> dict[str, str | None]:
    files = sorted((folder / TOKENIZER_FOLDER).glob("*"))
    return {each.name: _sha256(each) for each in files if each.is_file()}


def _sha256(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _nearest_folder(folder: Path) -> Path:
    """The folder itself, or the first above it that exists."""
    return next(each for each in (folder, *folder.absolute().parents) if each.is_dir())


def _probe(teacher: Teacher, spool: Spool, on_event: OnEvent) -> None:
    """Say what is odd about a teacher before it runs for hours."""
    if teacher.head.warning is not None:
        on_event(Warned(teacher.head.warning))
    texts, num_tokens = [], 0
    for number in range(len(spool)):
        tokens = spool.read(number, number + 1).tokens[:PROBE_TOKENS]
        if len(tokens) > 1:
            texts.append(np.array(tokens))
            num_tokens += len(tokens)
        if num_tokens >= PROBE_TOKENS:
            break
    probe = probe_perplexity(teacher, texts)
    if probe.warning is not None:
        on_event(Warned(probe.warning))


def _ahead(
    sequences: Sequences, lengths: NDArray[np.int64], batch_tokens: int, reader: ThreadPoolExecutor
) -> Iterator[TeacherBatch]:
    """The batches of a shard, each made while the teacher is at the one before."""
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
