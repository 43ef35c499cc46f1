"""A small cache that a small teacher fills here, its rows taken from whole logits and kept in fp32.

Sequences are bytes of real sentences, of unequal lengths, each with an unsupervised beginning.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from distillcache.tokenizer import fingerprint, save_tokenizer
from distillcache_shards.codecs import codec_of
from distillcache_shards.durable import write_whole
from distillcache_shards.index import INDEX_FILE, IndexData
from distillcache_shards.plan import Plan
from distillcache_shards.rows import Rows
from distillcache_shards.shard import Sequences, encode_blocks, write_shard
from tests.distillcache.tiny_models import byte_tokenizer, tiny

NUM_IDS = 259  # of the byte tokenizer
PROMPT_TOKENS = 3
SEQUENCES_A_SHARD = 8
WORDS = (
    "the",
    "teacher",
    "reads",
    "a",
    "corpus",
    "once",
    "and",
    "student",
    "learns",
    "from",
    "what",
    "it",
    "said",
)


def small_teacher(*, seed: int = 7) -> PreTrainedModel:
    """A teacher with exactly the tokenizer's ids."""
    return tiny("llama", seed=seed, vocab_size=NUM_IDS)


def sentences(number: int = 24) -> list[str]:
    """Sentences of 12 to about 60 bytes, the same in every run."""
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, size=random.integers(3, 12))) for _ in range(number)]


def write_cache(
    folder: Path,
    teacher: PreTrainedModel,
    texts: Sequence[str],
    *,
    k: int = 16,
    tau: float | None = None,
    temperature: float = 1.0,
    records: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
) -> Path:
    """A cache of `topk` rows, or with `tau` of `sampled` ones; of all its shards or some."""
    tokenizer = byte_tokenizer()
    encoded = [np.array(tokenizer.encode(text), np.uint16) for text in texts]
    numbers = np.array(range(len(texts)) if records is None else records, np.int64)
    parts = [
        _sequences(encoded[start : start + SEQUENCES_A_SHARD], numbers[start : start + SEQUENCES_A_SHARD])
        for start in range(0, len(encoded), SEQUENCES_A_SHARD)
    ]
    whole = _sequences(encoded, numbers)
    index = IndexData(
        shard_first_sequence=np.cumsum([0, *(len(each) for each in parts)]).astype(np.uint64),
        shard_sha256=np.frombuffer(b"".join(each.sha256() for each in parts), np.uint8).reshape(-1, 32),
        sequence_hash=whole.hashes(),
        sequence_tokens=np.diff(whole.offsets).astype(np.uint32),
        sequence_rows=np.diff(whole.row_offsets).astype(np.uint32),
        sequence_record=whole.records.astype(np.uint64),
        tables={},
    )
    about_rows: dict[str, object] = {"kind": "topk", "k": k}
    if tau is not None:
        about_rows = {"kind": "sampled", "method": "threshold", "units": round(4 / tau), "draw_units": 4}
        about_rows["temperature"] = temperature
    plan = Plan(
        {
            "tokenizer": {"sha256": fingerprint(tokenizer), "vocab_size": NUM_IDS},
            "teacher": {"sha256": "0" * 64},
            "rows": about_rows,
            "codec": {"id": "plain", "params": {"logprobs": "f32"}, "block_rows": 32},
            "corpus": {
                "sequences": len(texts),
                "tokens": len(whole.tokens),
                "rows": int(whole.row_offsets[-1]),
                "shards": len(parts),
                "index_sha256": index.sha256(),
            },
        },
        {"teacher": "tiny-teacher", "revision": None},
    )
    folder.mkdir(parents=True)
    save_tokenizer(tokenizer, folder / "tokenizer")
    write_whole(folder / INDEX_FILE, index.parts())
    plan.write(folder)
    codec = codec_of(plan.data["codec"], plan.row_kind, plan.vocab_size)
    for number, part in enumerate(parts):
        if shards is None or number in shards:
            rows = _taught(teacher, part, k, tau, temperature)
            blocks = encode_blocks(codec, part, rows, plan.block_rows)
            counts = {"kept": rows.num_kept, "draws": rows.num_draws}
            write_shard(folder, number, plan, part, blocks, counts, {})
    return folder


def _sequences(encoded: Sequence[np.ndarray], records: np.ndarray) -> Sequences:
    masks = [np.arange(len(each)) >= min(PROMPT_TOKENS, len(each) - 1) for each in encoded]
    offsets = np.cumsum([0, *(len(each) for each in encoded)]).astype(np.int64)
    return Sequences(np.concatenate(encoded), np.concatenate(masks), offsets, records)


@torch.no_grad()
def _taught(teacher: PreTrainedModel, part: Sequences, k: int, tau: float | None, temperature: float) -> Rows:
    found = []
    for start, end in zip(part.offsets[:-1], part.offsets[1:], strict=True):
        ids_T = torch.from_numpy(part.tokens[start:end].astype(np.int64))
        logits_TV = teacher(ids_T[None]).logits[0].double() / temperature
        logprobs_NV = logits_TV[:-1][torch.from_numpy(part.supervised[start + 1 : end])].log_softmax(1)
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(1)
        if tau is None:
            kept = logprobs_NV.topk(k)
            tail_N = 1 - kept.values.exp().sum(1)
            arrays = (kept.indices, kept.values, tail_N, entropy_N)
            found.append(Rows.top_k(*(each.float().numpy() for each in arrays)))
        else:
            found += [
                _sampled(row_V.numpy(), float(h), tau)
                for row_V, h in zip(logprobs_NV, entropy_N, strict=True)
            ]
    return Rows.concatenate(found)


def _sampled(logprobs_V: np.ndarray, entropy: float, tau: float) -> Rows:
    """Threshold sampling: a head of everything at or above tau, systematic draws from the tail."""
    p_V = np.exp(logprobs_V)
    head = np.flatnonzero(p_V >= tau)
    head = head[np.argsort(-p_V[head], kind="stable")]
    tail_V = np.where(p_V < tau, p_V, 0)
    tail_mass = tail_V.sum()
    num_draws = int(np.ceil(tail_mass / tau))
    seed = int(1e6 * entropy)
    points = (np.arange(num_draws) + np.random.default_rng(seed).random()) / max(num_draws, 1) * tail_mass
    draws = np.searchsorted(np.cumsum(tail_V), points).clip(max=len(p_V) - 1)
    return Rows(
        "sampled",
        np.array([0, len(head)], np.int64),
        head.astype(np.int32),
        logprobs_V[head].astype(np.float32),
        np.array([tail_mass], np.float32),
        np.array([0, num_draws], np.int64),
        np.sort(draws).astype(np.int32),
        np.array([entropy], np.float32),
    )
