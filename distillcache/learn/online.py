"""A whole teacher beside the student, which learns from its logits in place of a cache's rows.

The reference that rows are measured against, for those who have the memory.
Knows nothing of students.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distillcache.errors import TeacherError
from distillcache.head import OutputHead
from distillcache.learn.loading import load_fitting
from distillcache.model_source import ModelSource
from distillcache.tokenizer import load_tokenizer, vocabulary
from distillcache_shards.cache import Cache

__all__ = ["OnlineTeacher", "load_online_teacher", "teacher_identity"]


@dataclass(frozen=True)
class OnlineTeacher:
    """A frozen model to be read, in evaluation mode."""

    head: OutputHead
    name: str
    num_ids: int  # that the tokenizer has; logits past them pad the embedding
    warning: str | None  # if it is not the teacher that the cache's rows are of


def teacher_identity(source: str) -> dict[str, Any]:
    """What tells one teacher from another before it is loaded. Raises TeacherError if there is none."""
    return ModelSource.of(source, TeacherError).identity()


def load_online_teacher(
    source: str, cache: Cache, *, dtype: torch.dtype, device: torch.device, probe_ids_BT: Tensor
) -> OnlineTeacher:
    """The teacher of a model folder, a hub name or a GGUF file, in `dtype` on `device`.

    Raises TeacherError for what cannot be loaded or does not fit the cache, MismatchError for a tokenizer
    that is not the cache's.
    """
    found = ModelSource.of(source, TeacherError)
    model = load_fitting(found, cache, dtype)
    model.requires_grad_(False)
    model.to(device)  # type: ignore[arg-type]
    head = OutputHead.of(model, probe_ids_BT)
    num_ids = vocabulary(load_tokenizer(cache.tokenizer_folder))
    return OnlineTeacher(head, found.name, num_ids, _other_teacher(found, cache))


def _other_teacher(found: ModelSource, cache: Cache) -> str | None:
    identity, about = found.identity(), cache.about
    taught = str(cache.plan["teacher"].get("sha256"))
    same = (
        identity["weights"] == taught
        if "weights" in identity
        else identity["revision"] is not None and identity["revision"] == about.get("revision")
    )
    if same:
        return None
    return (
        f"{found.name} is not the teacher whose rows the cache holds ({about.get('teacher') or 'unnamed'}); "
        "held-out scores are against those rows"
    )
