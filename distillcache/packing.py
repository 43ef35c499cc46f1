"""Sequences packed into one row: positions start again, and each sequence attends to itself alone.

transformers keeps packed sequences apart by a mask over the whole row, which costs the square of its length:
8 sequences of 512 tokens took up to eight times as long as padded.
Here each sequence goes through the kernel for causal attention by itself, without a mask, and everything else
sees one row without padding.
Whether a model does as told is found out on a probe, never assumed: state spaces, attention of another
kind and positions of its own making let sequences leak into each other.
Knows nothing of students, teachers or batches.

T tokens of a row.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["can_pack", "pack_attention", "packed_inputs", "packed_positions", "unpack_attention"]

# The names of our attention, in transformers' registry, and of its argument.
PACKED, LENGTHS = "distillcache_packed", "packed_lengths"
# Largest difference of two hidden states, over the largest, that is noise: sums run in another order.
NOISE = {torch.float32: 1e-3, torch.float16: 5e-3}


class Body(Protocol):
    """What of an output head is needed here."""

    model: PreTrainedModel

    def hidden(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, [B, T, D]."""


def packed_positions(lengths: Sequence[int]) -> Tensor:
    """Positions of sequences that follow one another, each from 0, int64 [T]."""
    return torch.cat([torch.arange(length) for length in lengths])


def packed_inputs(model: PreTrainedModel, position_ids_1T: Tensor) -> dict[str, Any]:
    """Arguments of a forward pass over packed sequences, beside their ids."""
    inputs: dict[str, Any] = {"position_ids": position_ids_1T}
    if model.config.get_text_config()._attn_implementation == PACKED:
        starts = (position_ids_1T[0] == 0).nonzero()[:, 0].tolist()
        ends = [*starts[1:], position_ids_1T.shape[1]]
        inputs[LENGTHS] = [end - start for start, end in zip(starts, ends, strict=True)]
    return inputs


def pack_attention(model: PreTrainedModel) -> bool:
    """Have a model attend to each of packed sequences alone; all else stays as it was.

    False, and nothing changed, for a model whose attention is not torch's own.
    """
    if model.config.get_text_config()._attn_implementation not in ("sdpa", PACKED):
        return False
    model.set_attn_implementation(PACKED)
    return bool(model.config.get_text_config()._attn_implementation == PACKED)


def unpack_attention(model: PreTrainedModel) -> None:
    """Give a model its own attention back."""
    if model.config.get_text_config()._attn_implementation == PACKED:
        model.set_attn_implementation("sdpa")


@torch.no_grad()
def can_pack(head: Body, sequences: Sequence[Tensor]) -> bool:
    """Whether two or more sequences of ids, [T] each, come out packed as they do alone.

    Two are made of one. The model is in evaluation mode.
    """
    if len(sequences) == 1:
        sequences = [sequences[0], sequences[0].flip(0)]
    device = head.model.device
    lengths = [len(each) for each in sequences]
    alone = [head.hidden(each.to(device)[None])[0] for each in sequences]
    try:
        packed_TD = head.hidden(
            torch.cat(list(sequences)).to(device)[None], None, packed_positions(lengths).to(device)[None]
        )[0]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the code of any model may fail in any way on what it does not know
        return False
    alone_TD = torch.cat(alone)
    if packed_TD.shape != alone_TD.shape:
        return False
    difference = (packed_TD - alone_TD).abs().max() / alone_TD.abs().max().clamp_min(1e-6)
    return bool(difference <= NOISE.get(head.model.dtype, 3e-2))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """torch's attention, of each packed sequence by itself; [1, heads, T, head width] in, heads third out."""
    lengths: list[int] | None = kwargs.pop(LENGTHS, None)
    if lengths is None or len(lengths) == 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    found, start = [], 0
    parts = zip(*(torch.split(each, lengths, 2) for each in (query, key, value)), strict=True)
    for query_part, key_part, value_part in parts:
        stop = start + query_part.shape[2]
        # A mask is there if a sequence is not to see all of itself, such as with a sliding window.
        mask = None if attention_mask is None else attention_mask[:, :, start:stop, start:stop]
        found.append(sdpa_attention_forward(module, query_part, key_part, value_part, mask, **kwargs)[0])
        start = stop
    return torch.cat(found, 1), None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """torch's mask; none where a sequence sees all that came before, packed or not."""
    needs_mask = kwargs.get("attention_mask") is not None or kwargs.get("local_size") is not None
    continues = kwargs.get("q_offset") or kwargs.get("q_length") != kwargs.get("kv_length")
    if not needs_mask and not continues and not kwargs.get("use_vmap"):
        return None
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(PACKED, _attention)
AttentionMaskInterface.register(PACKED, _mask)
