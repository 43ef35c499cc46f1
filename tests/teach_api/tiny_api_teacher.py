"""Tiny random teachers, and byte-level tokenizers for them, made without a download."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = ["the teacher reads the corpus once and the student learns from what the teacher said " * 3]


def tokenizer_of(*, merges: bool = False, turned: bool = False) -> PreTrainedTokenizerFast:
    """Bytes alone, or bytes and some 50 pieces of words; 259 ids are the same in both, unless `turned`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=turned)
    if merges:
        inner = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        )
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.train_from_iterator(WORDS, trainer)
    else:
        vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
        inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def model_of(tokenizer: Any, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama over a tokenizer's ids, with logits that spread over several units."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model.eval()


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A folder that `from_pretrained` loads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_ascii(tokenizer: Any) -> list[int]:
    """Ids of the tokens that are one printable ASCII character: any string of them is text."""
    return [number for name, number in tokenizer.get_vocab().items() if len(name) == 1 and "!" <= name <= "~"]
