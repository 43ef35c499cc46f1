"""Claims about alignment: a row in the cache is what the teacher says at that place of that sequence.

A direct call has one sequence and no padding, a teacher's batch has many, so sums run in another order.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from distillcache_shards.cache import Cache
from tests.distillcache.tiny_models import TINY, byte_tokenizer, save_teacher, tiny
from tests.teach.direct import Comparison, compare
from tests.teach.teaching import NUM_IDS, answers, chats, documents, teach_into, write_records

TEACHERS: dict[str, Callable[[], PreTrainedModel]] = {
    "tied": lambda: tiny("llama", tie_word_embeddings=True, vocab_size=NUM_IDS),
    "untied": lambda: tiny("llama", tie_word_embeddings=False, vocab_size=NUM_IDS),
    "padded": lambda: tiny("llama", vocab_size=NUM_IDS + 61),
    "soft_cap": TINY["gemma2_soft_cap"],
    "scale": TINY["cohere_scale_multiplies"],
    "learned_positions": lambda: tiny("gpt2", n_positions=256),
}
# fp32 has 24 bits: logits of about 10, summed in another order, differ by a few 1e-6.
FP32_NOISE = 1e-4
# Half a step of bf16 at logits of 8 to 16 is 1/32, and both sides are rounded, after layers that were too.
BF16_NOISE = 0.3
# Promised for fp32; most of it is the rounding of values to f16, at most 1/512 below 8 nats.
MEAN_DIFFERENCE = 2e-3


def assert_aligned(found: Comparison, *, noise: float = FP32_NOISE, mean: float = MEAN_DIFFERENCE) -> None:
    """The cache and the model say the same, as far as numbers of this size can."""
    clear_N = found.margin_N > noise
    assert clear_N.mean() > 0.5
    assert found.same_top1_N[clear_N].all()
    assert found.difference < mean
    assert found.disorder < noise
    np.testing.assert_allclose(found.tail_mass_N, found.direct_tail_N, atol=mean)
    # Entropy has 8 bits.
    np.testing.assert_allclose(found.entropy_N, found.direct_entropy_N, atol=np.log(NUM_IDS) / 255 + mean)


def loaded(teacher: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model as transformers alone loads it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(teacher, dtype=dtype)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "supervise"),
    [*((name, "assistant") for name in TEACHERS), ("tied", "all"), ("padded", "all")],
)
def test_rows_are_what_the_model_says_alone(name: str, supervise: str, corpus: Path, tmp_path: Path) -> None:
    """Every kind of head, with and without prompts masked; documents in windows, answers and chats."""
    teacher = save_teacher(tmp_path / "teacher", TEACHERS[name]())
    teach_into(tmp_path / "cache", teacher, corpus, supervise=supervise, batch_tokens=300, codec="zstd")
    model, cache = loaded(teacher), Cache.open(tmp_path / "cache")
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == (
        model.config.tie_word_embeddings
    )
    found = compare(cache, model, NUM_IDS)
    assert len(found) == cache.num_rows > 1000
    assert found.ids_NK.max() < NUM_IDS
    assert_aligned(found)


@pytest.mark.parametrize("codec", ["plain", "zstd"])
@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_batches_of_any_size_say_the_same(
    batch_tokens: int, codec: str, teacher: Path, corpus: Path, tmp_path: Path
) -> None:
    """One sequence a batch, a few of unequal lengths, or a whole shard padded to its longest."""
    teach_into(
        tmp_path / "cache", teacher, corpus, batch_tokens=batch_tokens, codec=codec, shard_rows=2000, k=64
    )
    assert_aligned(compare(Cache.open(tmp_path / "cache"), loaded(teacher), NUM_IDS))


@pytest.mark.parametrize("shift", [-1, 1])
def test_row_sits_at_its_target_and_at_no_neighbour(shift: int, teacher: Path, taught: Path) -> None:
    """One position earlier or later the same cache is far from the model: a shift cannot go unnoticed."""
    found = compare(Cache.open(taught), loaded(teacher), NUM_IDS, shift=shift)
    assert len(found) > 1000
    assert found.difference > 100 * MEAN_DIFFERENCE
    assert found.same_top1_N.mean() < 0.5


def test_bf16_teacher_says_the_same_within_its_own_noise(teacher: Path, corpus: Path, tmp_path: Path) -> None:
    """The model is asked directly in the same numbers; what differs is the order of sums."""
    teach_into(tmp_path / "cache", teacher, corpus, dtype="bf16", batch_tokens=300, codec="zstd")
    found = compare(Cache.open(tmp_path / "cache"), loaded(teacher, torch.bfloat16), NUM_IDS)
    assert_aligned(found, noise=BF16_NOISE, mean=BF16_NOISE / 10)


def test_rows_belong_to_what_the_assistant_says(teacher: Path, tmp_path: Path) -> None:
    """The supervised bytes of a sequence are the answers, with the token that ends each, and nothing else."""
    said, asked = answers(9), chats(9)
    source = write_records(tmp_path / "corpus.jsonl", [*said, *asked])
    teach_into(tmp_path / "cache", teacher, source, max_length=128, stride=0)
    cache, tokenizer = Cache.open(tmp_path / "cache"), byte_tokenizer()
    turns = [[each["response"]] for each in said]
    turns += [[m["content"] for m in each["messages"] if m["role"] == "assistant"] for each in asked]
    assert max(map(len, turns)) == 3
    found = dict.fromkeys(range(len(turns)), "")
    for index in range(len(cache)):
        sequence = cache[index]
        found[sequence.record] += tokenizer.decode(sequence.tokens[sequence.supervised])
        assert len(sequence.rows) == sequence.supervised.sum()
    assert [found[number] for number in range(len(turns))] == [
        "".join(f"{turn}</s>" for turn in each) for each in turns
    ]


def test_every_target_of_a_document_in_windows_has_one_row(teacher: Path, tmp_path: Path) -> None:
    """Windows overlap by the stride, which is context; the targets read on are the document and its end."""
    texts = documents(10)
    source = write_records(tmp_path / "corpus.jsonl", texts)
    teach_into(tmp_path / "cache", teacher, source, max_length=40, stride=7)
    cache, tokenizer = Cache.open(tmp_path / "cache"), byte_tokenizer()
    found = [text["text"][0] for text in texts]  # the first byte of a document has no prediction
    for index in range(len(cache)):
        sequence = cache[index]
        found[sequence.record] += tokenizer.decode(sequence.tokens[sequence.supervised])
    assert found == [each["text"] + "</s>" for each in texts]
    assert len(cache) > len(texts)
