"""A teacher: a causal model ready to be read, its tokenizer, its output head, and who it is.

From a folder, a hub name or a GGUF file.
Checked for what makes a teacher useless without an error: weights that are not there, a view of what comes,
logits that are not numbers, a text that it finds absurd.
Knows nothing of corpora or caches.

B sequences, T positions, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distillcache.device import pick_device, pick_dtype
from distillcache.errors import TeacherError
from distillcache.head import OutputHead
from distillcache.model_source import ModelSource
from distillcache.quiet import quiet_loading
from distillcache.teach.keep import chunk_rows
from distillcache.tokenizer import valid_ids

__all__ = [
    "Probe",
    "Teacher",
    "load_teacher",
    "probe_perplexity",
]

PROBE_TEXT = (
    "The quick brown fox jumps over the lazy dog, and nobody asks why.\n"
    "def add(a: int, b: int) -> int:\n    return a + b\n"
    "Water boils at 100 degrees Celsius at sea level; higher up it boils sooner."
)


@dataclass(frozen=True)
class Teacher:
    """A model to be read, in evaluation mode and without gradients, and what a cache says about it."""

    model: PreTrainedModel
    head: OutputHead
    tokenizer: Any
    name: str  # the hub's, or the last part of a path
    revision: str | None  # the hub's commit
    sha256: str  # of the weights, see `weights_fingerprint`
    dtype: torch.dtype
    device: torch.device  # where token ids go in
    vocab_size: int  # V, the width of the logits
    num_parameters: int
    valid_V: Tensor  # bool on `device`: ids that the tokenizer has

    @property
    def num_positions(self) -> int | None:
        """Tokens of the longest sequence it can read; None if its config does not say."""
        return _num_positions(self.model)

    @property
    def num_valid(self) -> int:
        """Ids that the tokenizer has: the largest K."""
        return int(self.valid_V.sum())


@dataclass(frozen=True)
class Probe:
    """How a teacher finds real text: `warning` is None where it seems at home in it."""

    perplexity: float  # exp of the mean cross-entropy, over valid ids
    num_positions: int
    warning: str | None


def load_teacher(
    name: str,
    *,
    gguf_file: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> Teacher:
    """The teacher of a folder or a hub name, or of a GGUF file in there; `name` may be that file itself.

    `dtype` and `device` as in `distillcache.device`; `device="split"` spreads one model over all GPUs.
    `tokenizer`: the teacher's own, if it is loaded already.
    Raises TeacherError for what cannot be found, loaded or used, ConfigError for dtype, device and tokenizer.
    """
    source = ModelSource.of(name, TeacherError, gguf_file=gguf_file, revision=revision)
    target = pick_device("auto" if device == "split" else device)
    torch_dtype = pick_dtype(dtype, target)
    device_map: Any = None
    if device == "split":
        device_map = "auto"
    elif target.type != "cpu":
        device_map = {"": target}  # straight to the device, never whole in memory
    source.require_causal(trust_remote_code=trust_remote_code)
    model = source.load(torch_dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    model.requires_grad_(False)
    if tokenizer is None:
        tokenizer = source.tokenizer()

    with torch.inference_mode(), quiet_loading():
        probe_ids_1T = torch.tensor([tokenizer.encode(PROBE_TEXT)], dtype=torch.long)
        probe_ids_1T = probe_ids_1T[:, : _num_positions(model)]
        _check_ids(source.shown, probe_ids_1T, model)
        head = OutputHead.of(model, probe_ids_1T)
        vocab_size = _check_probe(source.shown, head, probe_ids_1T)
    return Teacher(
        model=model,
        head=head,
        tokenizer=tokenizer,
        name=source.name,
        revision=None if source.folder is not None else getattr(model.config, "_commit_hash", None),
        sha256=source.sha256(),
        dtype=torch_dtype,
        device=head.device,
        vocab_size=vocab_size,
        num_parameters=sum(each.numel() for each in model.parameters()),
        valid_V=torch.as_tensor(valid_ids(tokenizer, vocab_size)).to(head.device),
    )


@torch.inference_mode()
def probe_perplexity(
    teacher: Teacher, sequences: Sequence[Sequence[int] | np.ndarray], *, limit: float = 1000.0
) -> Probe:
    """Perplexity of the teacher on real token ids, a few sequences of what it is about to teach.

    A wrong BOS or a broken conversion makes a teacher talk garbage without an error.
    A sound one finds its own kind of text far below `limit`; guessing gives the size of the vocabulary.
    Raises TeacherError if its logits are not finite, or no sequence has two tokens.
    """
    loss_sum, num_positions = 0.0, 0
    valid_V = teacher.valid_V
    for number, sequence in enumerate(sequences):
        ids_T = torch.as_tensor(np.asarray(sequence, dtype=np.int64))
        positions_N = torch.arange(max(0, len(ids_T) - 1))
        targets_N = ids_T[1:]
        start = 0
        for logits_nV in teacher.head.rows_logits(
            ids_T[None],
            None,
            torch.zeros_like(positions_N),
            positions_N,
            chunk_rows(teacher.vocab_size, teacher.device),
        ):
            logits_nV = logits_nV.masked_fill(~valid_V.to(logits_nV.device), -math.inf)
            targets_n = targets_N[start : start + len(logits_nV)].to(logits_nV.device)
            losses_n = torch.nn.functional.cross_entropy(logits_nV, targets_n, reduction="none")
            bad_n = ~torch.isfinite(losses_n)
            if bad_n.any():
                position = start + int(bad_n.nonzero()[0])
                raise TeacherError(
                    f"{teacher.name}: logits are not finite; found nan or inf at sequence {number}, "
                    f"position {position} of the probe; try --dtype bf16 or fp32"
                )
            loss_sum += float(losses_n.double().sum())
            start += len(logits_nV)
        num_positions += start
    if num_positions == 0:
        raise TeacherError(f"{teacher.name}: nothing to probe it with; found no sequence of two tokens")
    perplexity = math.exp(loss_sum / num_positions)
    warning = None
    if perplexity > limit:
        warning = (
            f"{teacher.name}: finds this text absurd; found perplexity {perplexity:,.0f} "
            f"on {num_positions:,} tokens, where {limit:,.0f} is far too much; "
            "check its BOS token, its chat template and its conversion"
        )
    return Probe(perplexity, num_positions, warning)


def _num_positions(model: PreTrainedModel) -> int | None:
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _check_ids(shown: str, ids_1T: Tensor, model: PreTrainedModel) -> None:
    embedding: Any = model.get_input_embeddings()
    num_ids = embedding.weight.shape[0]
    largest = int(ids_1T.max()) if ids_1T.numel() else None
    if largest is None or ids_1T.shape[1] < 2 or largest >= num_ids:
        raise TeacherError(
            f"{shown}: its tokenizer is not this model's; found id {largest} for {num_ids} embeddings; "
            "take tokenizer and weights from one place"
        )


def _check_probe(shown: str, head: OutputHead, ids_1T: Tensor) -> int:
    """The width of the logits; refuses what is no number, and a model that sees what it is to predict."""
    logits_1TV = head.model_logits(ids_1T)
    if not torch.isfinite(logits_1TV).any(2).all():
        raise TeacherError(
            f"{shown}: its logits are not numbers; found nan or inf on a probe; try --dtype bf16 or fp32"
        )
    other_1T = ids_1T.clone()
    other_1T[0, -1] = ids_1T[0, 0] if ids_1T[0, -1] != ids_1T[0, 0] else ids_1T[0, 1]
    change = (head.model_logits(other_1T) - logits_1TV)[0, :-1].abs().max()
    # Same shapes, so even in bf16 a causal model repeats itself but for the order of sums.
    if change > 0.05 * logits_1TV.abs().max():
        raise TeacherError(
            f"{shown}: not a causal language model; found that a later token changes earlier predictions; "
            "name a decoder"
        )
    return int(logits_1TV.shape[2])
