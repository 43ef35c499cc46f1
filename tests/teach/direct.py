"""A cache beside its teacher, asked again without any of our code: one whole sequence at a time, unpadded.

L tokens, N rows, V ids of the tokenizer, K kept.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from distillcache_shards.cache import Cache

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """What the cache says at N rows of K ids, and what the model says there of all V ids."""

    ids_NK: NDArray[np.int32]
    cached_NK: F64
    tail_mass_N: F64
    entropy_N: F64
    direct_NV: F64  # log-probabilities

    def __len__(self) -> int:
        return len(self.ids_NK)

    @property
    def kept_NK(self) -> F64:
        """The model's log-probabilities of the ids in the cache."""
        return np.take_along_axis(self.direct_NV, self.ids_NK, 1)

    @property
    def difference(self) -> float:
        """Mean absolute difference of log-probabilities, in nats."""
        return float(np.abs(self.cached_NK - self.kept_NK).mean())

    @property
    def disorder(self) -> float:
        """The most by which the model prefers an id to one that comes before it in the cache, in nats."""
        others_NV = self.direct_NV.copy()
        np.put_along_axis(others_NV, self.ids_NK, -np.inf, 1)
        last_out_N = (others_NV.max(1) - self.kept_NK[:, -1]).max()
        return float(max(last_out_N, np.diff(self.kept_NK, axis=1).max(initial=-np.inf)))

    @property
    def margin_N(self) -> F64:
        """By how much the model prefers its first id to its second."""
        top_N2 = np.sort(self.direct_NV, 1)[:, -2:]
        return top_N2[:, 1] - top_N2[:, 0]

    @property
    def same_top1_N(self) -> NDArray[np.bool_]:
        """Whether both have the same first id."""
        return self.direct_NV.argmax(1) == self.ids_NK[:, 0]

    @property
    def direct_entropy_N(self) -> F64:
        """In nats."""
        return -(np.exp(self.direct_NV) * self.direct_NV).sum(1)

    @property
    def direct_tail_N(self) -> F64:
        """Probability of all ids that are not in the cache."""
        rest_NV = np.exp(self.direct_NV)
        np.put_along_axis(rest_NV, self.ids_NK, 0.0, 1)
        return rest_NV.sum(1)


def compare(cache: Cache, model: PreTrainedModel, num_ids: int, *, shift: int = 0) -> Comparison:
    """Every row of a finished cache; with `shift` each is held against the model's output so much later."""
    k = int(cache.plan["rows"]["k"])
    parts = []
    for index in range(len(cache)):
        sequence = cache[index]
        direct_TV = logprobs(model, sequence.tokens, num_ids)
        # The row of the target at t + 1 was said at t.
        positions_N = np.flatnonzero(sequence.supervised) - 1 + shift
        inside_N = (positions_N >= 0) & (positions_N < len(direct_TV))
        rows = sequence.rows
        ids_NK, cached_NK = rows.head_ids.reshape(-1, k), rows.head_logprobs.reshape(-1, k)
        shown = (ids_NK, cached_NK, rows.tail_mass, rows.entropy)
        parts.append([*(each[inside_N] for each in shown), direct_TV[positions_N[inside_N]]])
    ids_NK, *values = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Comparison(ids_NK, *(each.astype(np.float64) for each in values))


@torch.inference_mode()
def logprobs(model: PreTrainedModel, tokens_L: NDArray[np.integer], num_ids: int) -> F64:
    """log-softmax over the tokenizer's ids in float64, [L, V], of one call with one sequence."""
    ids_1L = torch.from_numpy(tokens_L.astype(np.int64))[None]
    out: F64 = model(input_ids=ids_1L).logits[0, :, :num_ids].double().log_softmax(1).numpy()
    return out
