"""A teacher on this machine, through the same interface as the paid ones."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from distillcache.errors import TeacherError
from distillcache.generate.config import GenerateConfig
from distillcache.generate.local_teacher import LocalTeacher
from distillcache.generate.run import generate
from distillcache.generate.teacher import Question

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few thousand parameters with a byte tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=512,
        eos_token_id=vocabulary["<eos>"], bos_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def ask(teacher: LocalTeacher, **changes: Any) -> Any:
    """One answer."""
    known: dict[str, Any] = {
        "id": "0" * 20,
        "prompt": "Hi.",
        "system": None,
        "max_tokens": 8,
        "temperature": None,
    }
    return asyncio.run(teacher.ask(Question(**(known | changes))))


def test_a_local_model_answers_through_a_whole_run(tiny_model: Path, tmp_path: Path) -> None:
    """It needs no key and no price, costs nothing, and its tokens are counted."""
    (tmp_path / "p.txt").write_text("One.\nTwo.\nThree.\n")
    config = GenerateConfig(
        out=tmp_path / "run", teacher=f"local:{tiny_model}", prompts=tmp_path / "p.txt", max_tokens=8
    )
    report = generate(config, confirm=lambda _: True)
    assert report["answered"] == 3 and report["ledger"]["total"]["cost_usd"] == "0"
    lines = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
    assert len(lines) + report["kept"] == 3
    assert all(json.loads(line)["response_tokens"] <= 8 for line in lines)


def test_tokens_are_counted_and_the_limit_is_told(tiny_model: Path) -> None:
    """A random model rarely ends by itself: eight tokens and the reason `length`."""
    answer = ask(LocalTeacher(str(tiny_model)))
    assert answer.usage is not None and answer.usage.output_tokens == 8 and answer.finish == "length"
    assert answer.usage.input_tokens == len("<|user|>Hi.<|a|>")


def test_sampling_is_seeded_by_the_question(tiny_model: Path) -> None:
    """The same question gives the same answer, another one another; without a temperature it is greedy."""
    teacher = LocalTeacher(str(tiny_model))
    first, again = (ask(teacher, temperature=1.0, max_tokens=32).text for _ in range(2))
    assert first == again != ask(teacher, temperature=1.0, max_tokens=32, id="1" * 20).text
    assert ask(teacher).text == ask(teacher, id="1" * 20).text


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    """One line that names the folder."""
    with pytest.raises(TeacherError, match="no folder"):
        LocalTeacher(str(tmp_path / "absent"))
    with pytest.raises(TeacherError, match="cannot be loaded"):
        LocalTeacher(str(tmp_path))
