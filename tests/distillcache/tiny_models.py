"""Tiny random causal models of many families, and a tokenizer of bytes for them, made without a download.

`TINY` names one builder a family; each stands for something a family does to its logits.
Weights are random but larger than a fresh model's, so that a scale or a cap left out shows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 320
BASE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FALCON_H1 = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "lm_head_multiplier": 0.3,
}
MINICPM3 = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}


def tiny(model_type: str, *, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A small model of a type that transformers knows, fp32, in evaluation mode."""
    base = GPT2 if model_type == "gpt2" else BASE
    config = AutoConfig.for_model(model_type, **{**base, **settings})
    torch.manual_seed(seed)
    return loud(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def loud(model: PreTrainedModel) -> PreTrainedModel:
    """The model with matrices large enough that its logits spread over several units."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
        bias = getattr(model.get_output_embeddings(), "bias", None)
        if bias is not None:
            bias.normal_()
    return model.eval()


TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "llama_tied": lambda: tiny("llama", tie_word_embeddings=True),
    "llama_untied": lambda: tiny("llama", tie_word_embeddings=False),
    "gpt2_learned_positions": lambda: tiny("gpt2"),
    "phi_bias": lambda: tiny("phi"),
    "qwen2": lambda: tiny("qwen2"),
    "qwen3": lambda: tiny("qwen3"),
    "gemma2_soft_cap": lambda: tiny("gemma2", final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    "gemma3_soft_cap": lambda: tiny("gemma3_text", final_logit_softcapping=3.0, query_pre_attn_scalar=8),
    "cohere_scale_multiplies": lambda: tiny("cohere", logit_scale=0.0625),
    "granite_scale_divides": lambda: tiny("granite", logits_scaling=8.0),
    "minicpm3_scale_divides_hidden": lambda: tiny("minicpm3", dim_model_base=16, **MINICPM3),
    "falcon_h1_scale_on_the_body": lambda: tiny("falcon_h1", **FALCON_H1),
    "mamba_no_attention": lambda: tiny("mamba", state_size=8),
}


class OddHead(LlamaForCausalLM):
    """A model whose logits need more than its hidden states: token ids push their own logit down."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        out = super().forward(input_ids=input_ids, **kwargs)
        if input_ids is not None:
            out.logits = out.logits.scatter_add(
                2, input_ids[:, :, None], torch.full_like(out.logits[:, :, :1], -5.0)
            )
        return out


def odd_head() -> OddHead:
    """A model whose head cannot be run apart from its body."""
    torch.manual_seed(0)
    model = OddHead(LlamaConfig(**BASE))
    loud(model)
    return model


def byte_tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """A real fast tokenizer of 259 ids: <pad>, <s>, </s>, and each byte; adds nothing of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )
    if chat:
        tokenizer.chat_template = (
            "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
        )
    return tokenizer


def save_teacher(folder: Path, model: PreTrainedModel) -> Path:
    """A folder that `from_pretrained` loads: the model, and the byte tokenizer with its fewer ids."""
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
