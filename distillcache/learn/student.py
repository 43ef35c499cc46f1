"""A student: a new Llama-style model from a file of sizes, or any causal model to continue from.

Its tokenizer is the cache's, or it is refused.
Knows nothing of training.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from distillcache.config import load_config
from distillcache.errors import ConfigError, StudentError
from distillcache.learn.architecture import Architecture
from distillcache.learn.loading import load_fitting, require_fitting
from distillcache.model_source import ModelSource
from distillcache.tokenizer import load_tokenizer, require_same_tokenizer, vocabulary
from distillcache_shards.cache import Cache

__all__ = ["Student", "load_student", "student_identity"]


@dataclass(frozen=True)
class Student:
    """A model to be trained, in fp32, and who it was before."""

    model: PreTrainedModel
    tokenizer: Any  # the cache's
    name: str  # of the file of sizes, or of the model it continues from; no path
    is_new: bool
    num_parameters: int  # tied matrices count once


def student_identity(source: str) -> dict[str, Any]:
    """What tells one student from another before it is loaded, as plain JSON data.

    Of a new one all sizes, of one to continue from its weights, whatever it is called.
    Raises StudentError for a file that is not there or not right.
    """
    if is_new(source):
        return {"architecture": asdict(_architecture(source))}
    return ModelSource.of(source, StudentError).identity()


def load_student(source: str, cache: Cache, *, seed: int) -> Student:
    """The student of a TOML file, a model folder or a hub name, ready for this cache.

    Raises StudentError for what cannot be built, loaded or trained on this cache, and MismatchError for a
    tokenizer that is not the cache's.
    """
    tokenizer = load_tokenizer(cache.tokenizer_folder)
    require_same_tokenizer(tokenizer, cache)
    if is_new(source):
        model, name = _build(_architecture(source), tokenizer, seed), Path(source).stem
        require_fitting(source, model, cache, StudentError)
    else:
        found = ModelSource.of(source, StudentError)
        model, name = load_fitting(found, cache, torch.float32), found.name
    model.requires_grad_(True)
    return Student(
        model=model,
        tokenizer=tokenizer,
        name=name,
        is_new=is_new(source),
        num_parameters=sum(each.numel() for each in model.parameters()),
    )


def is_new(source: str) -> bool:
    """True if the source is a file of sizes, not a model."""
    return source.endswith(".toml")


def _architecture(source: str) -> Architecture:
    file = Path(source)
    if not file.is_file():
        raise StudentError(f"{source}: no such file; name one as in configs/student, or a model")
    try:
        return load_config(Architecture, file, {})
    except ConfigError as error:
        if str(error).startswith("--"):  # of a setting that the file lacks, which has no flag here
            flags = str(error).partition(":")[0]
            names = flags.replace("--", "").replace("-", "_")
            raise StudentError(f"{source}: {names} missing; see configs/student") from None
        raise


def _build(sizes: Architecture, tokenizer: Any, seed: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocabulary(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_hidden_layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.max_position_embeddings,
        tie_word_embeddings=sizes.tie_word_embeddings,
        rms_norm_eps=sizes.rms_norm_eps,
        initializer_range=sizes.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # A caller's own random numbers go on as if nothing had been drawn.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
