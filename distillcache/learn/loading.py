"""A model that is to work on a cache, as a student or beside one: it fits the cache, or it is refused.

Knows nothing of what is done with the model.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from distillcache.errors import DistillcacheError
from distillcache.model_source import ModelSource
from distillcache.tokenizer import load_tokenizer, require_same_tokenizer, vocabulary
from distillcache_shards.cache import Cache

__all__ = ["load_fitting", "require_fitting"]


def load_fitting(source: ModelSource, cache: Cache, dtype: torch.dtype) -> PreTrainedModel:
    """The model, on the CPU, in evaluation mode.

    Raises the source's error for what cannot be loaded or is too small for the cache, MismatchError for a
    tokenizer that is not the cache's.
    """
    source = source.pinned()
    source.require_causal()
    # The tokenizer first: it is refused in no time, a model may take minutes to load.
    require_same_tokenizer(source.tokenizer(), cache)
    model = source.load(dtype)
    require_fitting(source.text, model, cache, source.error)
    return model


def require_fitting(text: str, model: PreTrainedModel, cache: Cache, error: type[DistillcacheError]) -> None:
    """Raises `error` unless the model has an embedding for every token, and positions for every sequence."""
    embedding: Any = model.get_input_embeddings()
    num_ids, needed = embedding.weight.shape[0], vocabulary(load_tokenizer(cache.tokenizer_folder))
    if num_ids < needed:
        raise error(
            f"{text}: too few embeddings for the cache's tokenizer; found {num_ids}, needs {needed}; "
            "resize its embeddings, or take another model"
        )
    longest = int(cache.sequence_lengths.max())
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise error(
            f"{text}: too few positions for the cache's longest sequence; found {positions}, "
            f"needs {longest}; take a model with more, or teach with --max-length {positions}"
        )
