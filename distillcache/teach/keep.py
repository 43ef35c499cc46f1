"""What is kept of a teacher's logits: the K most likely ids of each position, the mass and entropy of all.

Exact, in one order, a chunk of positions at a time: all positions x vocabulary never exist at once.
Ids that the tokenizer does not have are left out of the softmax.
Knows nothing of shards, codecs or text.

B sequences, T positions, N rows, V vocabulary, K kept, G groups.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distillcache.errors import TeacherError
from distillcache.head import OutputHead
from distillcache_shards.limits import MAX_VOCABULARY

__all__ = ["KeptRows", "KeptTopK", "chunk_rows", "keep_batch", "top_k"]

# A logit that stands for "not an id": far below any real one, and finite, since 0 times -inf is not a number.
NEVER = -1e30
CHUNK_BYTES = {"cpu": 32 << 20, "mps": 128 << 20, "cuda": 256 << 20}
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class KeptTopK:
    """The kept part of N rows of logits, as tensors on the device of the logits."""

    ids_NK: Tensor  # int32, most likely first, equal ones by ascending id
    logprobs_NK: Tensor  # fp32, natural log, under the full softmax over valid ids at temperature 1
    tail_mass_N: Tensor  # fp32, probability of all valid ids that are not kept
    entropy_N: Tensor  # fp32, nats, of the full distribution over valid ids


@dataclass(frozen=True)
class KeptRows:
    """The kept part of N rows, as numpy arrays in memory; fields as in `KeptTopK`."""

    ids_NK: np.ndarray  # int32
    logprobs_NK: np.ndarray  # float32
    tail_mass_N: np.ndarray  # float32
    entropy_N: np.ndarray  # float32

    def __len__(self) -> int:
        return len(self.ids_NK)


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Rows of fp32 logits a chunk, at least 1: enough to be worth reading the head's weights for."""
    return max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // (4 * vocab_size))


def top_k(
    logits_NV: Tensor, k: int, valid_V: Tensor, *, where: Callable[[int], str] = "row {} of the chunk".format
) -> KeptTopK:
    """The k most likely valid ids of each row, exactly, most likely first; ties go to the lower id.

    `logits_NV` fp32, not changed. `valid_V` bool on the same device: ids that the tokenizer has, k at least.
    Tail mass is the sum of what is not kept, never 1 minus what is: it is good to 6 digits at any size.
    Raises TeacherError, with `where` of the first such row, if a logit of a valid id is not finite.
    """
    num_valid = int(valid_V.sum())
    assert logits_NV.dtype == torch.float32
    assert logits_NV.shape[1] == len(valid_V) <= MAX_VOCABULARY
    assert 1 <= k <= num_valid
    num_ids = int(valid_V.nonzero()[-1]) + 1
    # Padding of an embedding matrix stands at its end: cut off, not masked.
    logits_NV = logits_NV[:, :num_ids]
    if num_valid < num_ids:
        logits_NV = logits_NV.masked_fill(~valid_V[:num_ids], NEVER)
    # The passes below over one block find it in a CPU's cache, and its memory is reused, not asked for anew.
    block_rows = (
        max(1, BLOCK_BYTES // (4 * num_ids)) if logits_NV.device.type == "cpu" else max(1, len(logits_NV))
    )
    parts = [_top_k(block_nV, k) for block_nV in torch.split(logits_NV, block_rows)]
    ids_NK, logprobs_NK, tail_mass_N, entropy_N = (torch.cat(each) for each in zip(*parts, strict=True))
    bad_N = ~torch.isfinite(entropy_N)
    if bad_N.any():
        raise TeacherError(
            f"{where(int(bad_N.nonzero()[0]))}: the teacher's logits are not finite; found nan or inf; "
            "try --dtype bf16 or fp32, or check the teacher's weights"
        )
    return KeptTopK(ids_NK.int(), logprobs_NK.float(), tail_mass_N.float(), entropy_N.clamp_min(0.0).float())


def _top_k(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids, log-probabilities, tail mass and entropy of rows; entropy is not finite where any logit is not."""
    ids_NK = _largest(logits_NV, k)
    # The first kept is the largest, and a NaN, should there be one, goes through everything below.
    below_max_NV = logits_NV - logits_NV.gather(1, ids_NK[:, :1])
    kept_below_max_NK = below_max_NV.gather(1, ids_NK)
    exp_NV = below_max_NV.exp()
    kept_NK = exp_NV.gather(1, ids_NK)
    # Of all here, only this product turns -inf into NaN (0 times -inf), so entropy tells that too.
    weighted_N = below_max_NV.mul_(exp_NV).sum(1).double()
    tail_N = exp_NV.scatter_(1, ids_NK, 0.0).sum(1).double()
    total_N = tail_N + kept_NK.double().sum(1)
    log_total_N = total_N.log()
    logprobs_NK = kept_below_max_NK.double() - log_total_N[:, None]
    return ids_NK, logprobs_NK, tail_N / total_N, log_total_N - weighted_N / total_N


@torch.inference_mode()
def keep_batch(
    head: OutputHead,
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor | None,
    sequences_N: Tensor,
    positions_N: Tensor,
    k: int,
    valid_V: Tensor,
    *,
    rows_per_chunk: int | None = None,
    name_sequence: Callable[[int], str] = "sequence {} of the batch".format,
) -> KeptRows:
    """What is kept at the positions (sequences_N[n], positions_N[n]) of a batch padded on the right.

    Row n says what the teacher predicts for token positions_N[n] + 1.
    `sequences_N` ascends, as from `nonzero`.
    `rows_per_chunk`: None takes what suits the vocabulary and the device.
    Raises TeacherError naming sequence and position if logits are not finite.
    """
    num_rows = len(sequences_N)
    kept = KeptRows(
        np.empty((num_rows, k), np.int32),
        np.empty((num_rows, k), np.float32),
        np.empty(num_rows, np.float32),
        np.empty(num_rows, np.float32),
    )
    device = head.device
    rows_per_chunk = chunk_rows(len(valid_V), device) if rows_per_chunk is None else rows_per_chunk
    start = 0
    for logits_nV in head.rows_logits(
        input_ids_BT, attention_mask_BT, sequences_N, positions_N, rows_per_chunk
    ):

        def where(n: int, start: int = start) -> str:
            b, t = int(sequences_N[start + n]), int(positions_N[start + n])
            return f"{name_sequence(b)}, position {t}"

        part = top_k(logits_nV, k, valid_V.to(logits_nV.device), where=where)
        rows = slice(start, start + len(logits_nV))
        kept.ids_NK[rows] = part.ids_NK.cpu().numpy()
        kept.logprobs_NK[rows] = part.logprobs_NK.cpu().numpy()
        kept.tail_mass_N[rows] = part.tail_mass_N.cpu().numpy()
        kept.entropy_N[rows] = part.entropy_N.cpu().numpy()
        start = rows.stop
    assert start == num_rows
    return kept


def _largest(values_NV: Tensor, k: int) -> Tensor:
    """Ids of the k largest values of each row, int64, by falling value and, where equal, rising id.

    Exact through the maxima of groups of neighbours: an id of the top k is in one of the k groups with the
    largest maxima, for otherwise each of those k would hold something that comes before it.
    So every value is looked at once, for the maxima, and then those of k groups only.
    """
    num_rows, num_ids = values_NV.shape
    here = values_NV.device
    # As many values in k groups as there are groups would be least work; torch reduces powers of 2 several
    # times faster than sizes near them.
    group_size = 1 << max(0, round(math.log2(num_ids / k) / 2))
    num_groups = num_ids // group_size
    if group_size < 4 or num_groups <= k:
        return _first_k(values_NV, torch.arange(num_ids, device=here).expand(num_rows, -1), k)
    grouped = num_groups * group_size
    maxima_NG = values_NV[:, :grouped].view(num_rows, num_groups, group_size).amax(2)
    groups_NK = _first_k(maxima_NG, torch.arange(num_groups, device=here).expand(num_rows, -1), k)
    ids_NC = (groups_NK[:, :, None] * group_size + torch.arange(group_size, device=here)).flatten(1)
    if grouped < num_ids:
        ids_NC = torch.cat([ids_NC, torch.arange(grouped, num_ids, device=here).expand(num_rows, -1)], 1)
    return _first_k(values_NV.gather(1, ids_NC), ids_NC, k)


def _first_k(values_NC: Tensor, ids_NC: Tensor, k: int) -> Tensor:
    """The ids of the k largest values, ties by rising id: `topk` leaves them open, so its keys have none.

    Logits in bf16 tie all the time, at the edge of the top k too.
    """
    # Adding 0 makes -0 the 0 it equals, and the copy contiguous. The bits of floats, read as integers, rise
    # with the value where it is positive and fall where it is negative, until those are flipped.
    bits_NC = (values_NC + 0.0).view(torch.int32)
    rising_NC = bits_NC ^ ((bits_NC >> 31) & 0x7FFFFFFF)
    keys_NC = rising_NC.long() * MAX_VOCABULARY + (MAX_VOCABULARY - 1 - ids_NC)
    return MAX_VOCABULARY - 1 - keys_NC.topk(k, dim=1, sorted=True).values % MAX_VOCABULARY
